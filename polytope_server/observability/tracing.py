"""One request, one trace through all processes, although no message carries a context.

A request's id is its trace's: a UUID has the 128 bits that a trace id needs, so whoever knows the one can
look for the other. The span of its submission is the root, and has an id that is made of the request's,
too. So each process can tell its part of the story on its own, whenever it has come to its end. Whether a
request is traced at all is decided from the id, in all processes alike.

Nothing here needs OpenTelemetry; `polytope_server.observability.otlp` does.
"""

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import time
from types import MappingProxyType
from typing import Final, Protocol

from polytope_server.request import Request

Attributes = Mapping[str, str | int]
"""Names, numbers and states: never what a user asked for, nor who it was."""

_RANDOM_BITS: Final = 56
"""The lowest bits of a UUID that are all random, which are also those that samplers go by."""
_MOST_PARTS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What a process did for a request, or how long that waited; from when to when in Unix seconds."""

    name: str
    start: float
    end: float
    attributes: Attributes = field(default_factory=lambda: MappingProxyType({}))
    failed: bool = False
    parts: Sequence["Span"] = ()
    """What it was made of: its children."""


class Traces(Protocol):
    """Where a process tells its spans. Safe between threads; never raises, and never waits."""

    def wants(self, request_id: str) -> bool:
        """Whether this request is traced. To tell of one that is not does nothing."""

    def submitted(self, request_id: str, span: Span) -> None:
        """The root: the submission of a request."""

    def add(self, request_id: str, *spans: Span) -> None:
        """What comes after it: children of the root."""

    def removed(self, request_ids: Sequence[str], span: Span) -> None:
        """Something that was done to many requests, as a trace of its own with links to theirs."""

    def close(self) -> None:
        """Send what is left, if that can be done at once; at most some seconds."""


class NoTraces:
    """Where nobody wants any."""

    def wants(self, request_id: str) -> bool:  # noqa: ARG002
        return False

    def submitted(self, request_id: str, span: Span) -> None: ...

    def add(self, request_id: str, *spans: Span) -> None: ...

    def removed(self, request_ids: Sequence[str], span: Span) -> None: ...

    def close(self) -> None: ...


NO_TRACES: Final = NoTraces()


class Parts:
    """The parts of something that is going on, each noted when it has ended. In one thread at a time."""

    def __init__(self) -> None:
        self.noted: list[Span] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens inside is a part, and a failed one if it ends by an exception."""
        start = time()
        failed = True
        try:
            yield
            failed = False
        finally:
            if len(self.noted) < _MOST_PARTS:
                self.noted.append(Span(name=name, start=start, end=time(), failed=failed))


def about(request: Request, **more: str | int) -> Attributes:
    """What a span may say of a request, and whatever else its process knows."""
    return {
        "polytope.request_id": request.id,
        "polytope.collection": request.collection,
        "polytope.datasource": request.datasource,
        "polytope.verb": str(request.verb),
        **{f"polytope.{name}": value for name, value in more.items()},
    }


def trace_id(request_id: str) -> int | None:
    """The trace of a request; None if its id is none of ours."""
    try:
        number = uuid.UUID(request_id).int
    except ValueError:
        return None
    return number or None


def root_id(request_id: str) -> int:
    """The span of a request's submission: 64 bits, not 0."""
    digest = hashlib.sha256(f"submission of {request_id}".encode()).digest()
    return int.from_bytes(digest[:8]) or 1


def is_sampled(trace: int, *, ratio: float) -> bool:
    """Whether this trace is one of so many, from 0 to 1: the same everywhere.

    As OpenTelemetry's consistent samplers decide. Its older one goes by the lowest 64 bits, of which a
    UUID has two that never change.
    """
    return trace % (1 << _RANDOM_BITS) >= round((1.0 - ratio) * (1 << _RANDOM_BITS))
