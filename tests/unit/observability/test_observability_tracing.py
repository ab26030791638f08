"""Traces: ids and sampling that all processes agree on, and a collector that is away."""

import logging
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from polytope_server.config.tracing import TracingSection
from polytope_server.errors import ConfigurationError
from polytope_server.lifecycle import open_traces, telling_traces
from polytope_server.observability.tracing import (
    NO_TRACES,
    Parts,
    Span,
    is_sampled,
    root_id,
    trace_id,
)

REQUEST = "3d5b2f5e-8a0c-4b3e-9c58-0a3d1f6f7e21"
SPAN = Span(name="waiting", start=1000.0, end=1001.5, attributes={"polytope.attempt": 1})


@given(st.uuids(version=4))
def test_the_trace_of_a_request_has_its_id(request_id: uuid.UUID) -> None:
    trace = trace_id(str(request_id))
    assert trace is not None
    assert f"{trace:032x}" == request_id.hex
    assert 0 < root_id(str(request_id)) < 1 << 64


def test_an_id_that_is_none_of_ours_has_no_trace() -> None:
    assert [trace_id(each) for each in ("", "request-1", str(uuid.UUID(int=0)))] == [None] * 3


@given(st.uuids(version=4), st.floats(0, 1), st.floats(0, 1))
def test_who_is_in_a_small_sample_is_in_every_larger_one(
    request_id: uuid.UUID, one: float, other: float
) -> None:
    small, large = sorted((one, other))
    assert is_sampled(request_id.int, ratio=1.0)
    assert not is_sampled(request_id.int, ratio=0.0)
    assert is_sampled(request_id.int, ratio=small) <= is_sampled(request_id.int, ratio=large)


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.5, 0.9])
def test_a_sample_is_as_large_as_it_should_be(ratio: float) -> None:
    sampled = sum(is_sampled(uuid.uuid4().int, ratio=ratio) for _ in range(20_000))
    deviation = (20_000 * ratio * (1 - ratio)) ** 0.5
    assert abs(sampled - 20_000 * ratio) < 6 * deviation


def test_a_part_that_ends_by_an_exception_has_failed() -> None:
    parts = Parts()
    with parts.part("slot"):
        pass
    with pytest.raises(ValueError), parts.part("staging"):
        raise ValueError
    assert [(part.name, part.failed) for part in parts.noted] == [
        ("slot", False),
        ("staging", True),
    ]


def test_nothing_is_imported_and_nothing_told_without_an_endpoint() -> None:
    assert open_traces(TracingSection(), process="broker") is NO_TRACES
    code = (
        "import sys, polytope_server.frontend.process, polytope_server.worker.process\n"
        "import polytope_server.broker.process, polytope_server.garbage_collector.process\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert out.stdout.strip() == "[]"


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "polytope_server.observability.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    section = TracingSection.read({"endpoint": "http://127.0.0.1:4318"}, where="tracing")
    with pytest.raises(ConfigurationError, match=r"pip install 'polytope-server\[tracing\]'"):
        open_traces(section, process="broker")


# --- somebody who takes them


class Taker:
    """Takes traces while its `status` is 200."""

    def __init__(self) -> None:
        taker = self
        self.status = 200
        self.asked = 0
        self.names: list[str] = []
        self.times: list[tuple[int, int]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if taker.status == 200:
                    taker.take(body)
                self.send_response(taker.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                taker.asked += 1

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.section = TracingSection.read(
            {"endpoint": f"http://127.0.0.1:{self.server.server_address[1]}"}, where="tracing"
        )

    def until_asked(self, times: int) -> None:
        deadline = time.monotonic() + 20
        while self.asked < times:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def take(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in group.scope_spans:
                for span in scope.spans:
                    self.names.append(span.name)
                    self.times.append((span.start_time_unix_nano, span.end_time_unix_nano))


@pytest.fixture
def taker() -> Iterator[Taker]:
    taker = Taker()
    Thread(target=taker.server.serve_forever, args=(0.05,), daemon=True).start()
    yield taker
    taker.server.shutdown()
    taker.server.server_close()


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What came into the log; pytest also sees what a logger keeps to itself."""
    assert not logging.getLogger("opentelemetry").propagate
    return [each for each in caplog.records if each.name.startswith("polytope_server.")]


def test_what_is_left_is_sent_at_the_end(taker: Taker) -> None:
    with telling_traces(taker.section, process="broker") as traces:
        traces.add(REQUEST, SPAN)
    assert (taker.names, taker.times) == (["waiting"], [(1000_000_000_000, 1001_500_000_000)])


def test_a_refusal_is_said_once_and_so_is_its_end(
    taker: Taker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    taker.status = 400
    traces = open_traces(taker.section, process="broker")
    for times in (1, 2):
        traces.add(REQUEST, SPAN)
        taker.until_asked(times)
    taker.status = 200
    traces.add(REQUEST, SPAN)
    traces.close()
    said = ours(caplog)
    assert [(record.levelname, record.getMessage()) for record in said] == [
        ("WARNING", "Traces are not taken; they are dropped meanwhile"),
        ("INFO", "Traces are taken again"),
    ]
    assert "400" in str(said[0].__dict__["cause"])


def test_nobody_waits_for_a_collector_that_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        section = TracingSection.read(
            {"endpoint": f"http://127.0.0.1:{silent.getsockname()[1]}"}, where="tracing"
        )
        traces = open_traces(section, process="worker")
        begin = time.monotonic()
        for _ in range(10_000):  # more than wait in memory
            traces.add(REQUEST, SPAN)
        assert time.monotonic() - begin < 10
        begin = time.monotonic()
        traces.close()
        assert time.monotonic() - begin < 4
    assert len(ours(caplog)) <= 1


# --- the section


@pytest.mark.parametrize(
    ("endpoint", "meant"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://x.example/otlp/v1/traces", "https://x.example/otlp/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_the_usual_path_is_added_where_there_is_none(endpoint: str, meant: str) -> None:
    assert TracingSection.read({"endpoint": endpoint}, where="tracing").endpoint == meant


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint": "collector:4318"},
        {"endpoint": "grpc://collector:4317"},
        {"endpoint": "http://me:secret-9c2@collector:4318"},
        {"endpoint": "http://collector:0"},
        {"headers": {"A b": "secret-9c2"}},
        {"headers": {"Authorization": "secret-9c2\r\nX: y"}},
        {"headers": {"Authorization": "secret-9c2é"}},
        {"sample_ratio": 1.5},
        {"sample_ratio": -0.1},
        {"service_name": " "},
    ],
)
def test_what_cannot_be_is_refused_without_repeating_it(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        TracingSection.read(options, where="tracing")
    assert "tracing." in str(caught.value)
    assert "secret-9c2" not in str(caught.value)


def test_headers_are_in_no_repr() -> None:
    section = TracingSection.read({"headers": {"Authorization": "secret-9c2"}}, where="tracing")
    assert "secret-9c2" not in repr(section)
