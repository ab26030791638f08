"""Traces sent by OTLP over HTTP. Imported only where the configuration wants them."""

import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from polytope_server.config.tracing import TracingSection
from polytope_server.observability.tracing import Span, is_sampled, root_id, trace_id

logger = logging.getLogger(__name__)

_QUEUE_SPANS: Final = 4096
"""Those that wait to be sent; when there are more, the oldest are dropped."""
_BATCH_SPANS: Final = 512
_DELAY_MS: Final = 1000
_TIMEOUT_S: Final = 5.0
_CLOSE_S: Final = 2.0
_LINKS: Final = 100
"""Of one span; the library drops those above 128."""
_NS: Final = 1_000_000_000


class OtlpTraces:
    """See `polytope_server.observability.tracing.Traces`.

    Spans are queued, at most `_QUEUE_SPANS` of them, and sent by a thread. When nobody takes them they
    are dropped, and the log says so once, and once when they are taken again.

    Args:
        endpoint: where to send them.
        process: the name of this one.
    """

    def __init__(self, section: TracingSection, *, endpoint: str, process: str) -> None:
        self._ratio = section.sample_ratio
        self._ids = _Ids()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # who is not wanted does not come here
            resource=Resource(
                {
                    "service.name": f"{section.service_name}-{process}",
                    "service.version": version("polytope-server"),
                    "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
                }
            ),
            shutdown_on_exit=False,  # it might wait for long
            id_generator=self._ids,
        )
        headers = {name: text.get_secret_value() for name, text in section.headers.items()}
        self._provider.add_span_processor(
            BatchSpanProcessor(
                _Exporter(OTLPSpanExporter(endpoint, headers=headers, timeout=_TIMEOUT_S)),
                max_queue_size=_QUEUE_SPANS,
                max_export_batch_size=_BATCH_SPANS,
                schedule_delay_millis=_DELAY_MS,
                export_timeout_millis=_TIMEOUT_S * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("polytope_server")

    def wants(self, request_id: str) -> bool:
        trace = trace_id(request_id)
        return trace is not None and is_sampled(trace, ratio=self._ratio)

    def submitted(self, request_id: str, span: Span) -> None:
        trace = trace_id(request_id)
        if trace is not None and self.wants(request_id):
            with self._ids.given(trace, root_id(request_id)):
                self._tell(span, Context(), kind=SpanKind.SERVER)

    def add(self, request_id: str, *spans: Span) -> None:
        root = self._root(request_id)
        if root is not None:
            context = set_span_in_context(NonRecordingSpan(root), Context())
            for span in spans:
                self._tell(span, context)

    def removed(self, request_ids: Sequence[str], span: Span) -> None:
        roots = [root for each in request_ids if (root := self._root(each)) is not None]
        for start in range(0, len(roots), _LINKS):
            links = [Link(root) for root in roots[start : start + _LINKS]]
            self._tell(span, Context(), links=links)

    def close(self) -> None:
        # the library would try for half a minute
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)

    def _root(self, request_id: str) -> SpanContext | None:
        trace = trace_id(request_id)
        if trace is None or not is_sampled(trace, ratio=self._ratio):
            return None
        return SpanContext(
            trace,
            root_id(request_id),
            is_remote=True,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        )

    def _tell(
        self,
        span: Span,
        context: Context,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
    ) -> None:
        told = self._tracer.start_span(
            span.name,
            context,
            kind=kind,
            attributes=span.attributes,
            links=links,
            start_time=int(span.start * _NS),
        )
        if span.failed:
            told.set_status(StatusCode.ERROR)  # without words, which might be the user's
        inner = set_span_in_context(told, Context())
        for part in span.parts:
            self._tell(part, inner)
        told.end(int(max(span.start, span.end) * _NS))


class _Ids(RandomIdGenerator):
    """Random ids, but for roots, whose ids are given. Safe between threads."""

    def __init__(self) -> None:
        self._thread = threading.local()

    @contextmanager
    def given(self, trace: int, span: int) -> Iterator[None]:
        """The ids of the one span that is begun inside."""
        self._thread.trace, self._thread.span = trace, span
        try:
            yield
        finally:
            self._thread.trace = self._thread.span = None

    def generate_trace_id(self) -> int:
        return self._given("trace") or super().generate_trace_id()

    def generate_span_id(self) -> int:
        return self._given("span") or super().generate_span_id()

    def _given(self, name: str) -> int | None:
        given: int | None = getattr(self._thread, name, None)
        setattr(self._thread, name, None)
        return given


class _Exporter(SpanExporter):
    """The library's own, and few words about what becomes of it: the library would say them all the time."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._words = _LastWords()
        self._lost = 0
        library = logging.getLogger("opentelemetry")
        library.addHandler(self._words)
        library.propagate = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception as exc:  # noqa: BLE001 -- said like any other failure
            result = SpanExportResult.FAILURE
            self._words.said.append(str(exc))
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                logger.info("Traces are taken again", extra={"lost_spans": self._lost})
            self._lost = 0
        else:
            if not self._lost:
                logger.warning(
                    "Traces are not taken; they are dropped meanwhile",
                    extra={"cause": "; ".join(self._words.said)},
                )
            self._lost += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _LastWords(logging.Handler):
    """Remembers what was said last: that it went wrong, and before that why."""

    def __init__(self) -> None:
        super().__init__()
        self.said: deque[str] = deque(maxlen=2)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
