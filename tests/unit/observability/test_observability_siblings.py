"""Several processes behind one address: what a scrape of any of them answers."""

import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from polytope_server.observability.metrics import Metrics
from polytope_server.observability.siblings import SharedListener, together


@dataclass(frozen=True, slots=True)
class Server:
    """What a parent of several processes has."""

    listener: SharedListener
    port: int

    def answer(self, metrics: Metrics) -> None:
        self.listener.answer({}, metrics)


@contextmanager
def serving(*, processes: int) -> Iterator[Server]:
    listening = socket.create_server(("127.0.0.1", 0))
    port = int(listening.getsockname()[1])
    threads = threading.active_count()
    with SharedListener([listening], processes=processes) as listener:
        yield Server(listener, port)
    assert threading.active_count() <= threads, "nobody answers any more"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(processes=3) as server:
        yield server


def scraped(server: Server) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def staged(text: str) -> dict[str, float]:
    """By the number of the process."""
    return {
        sample.labels.get("process", ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "polytope_staged_bytes_total"
    }


def test_each_process_is_told_apart_whoever_answers(server: Server) -> None:
    for size in (1, 20, 300):
        metrics = Metrics()
        metrics.staged(size)
        server.answer(metrics)
    for _ in range(10):
        assert staged(scraped(server)) == {"1": 1, "2": 20, "3": 300}


def test_many_scrapes_at_once_are_all_answered_in_full(server: Server) -> None:
    for _ in range(3):
        server.answer(Metrics())
    answers: list[dict[str, float]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(staged(scraped(server)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert answers == [{"1": 0, "2": 0, "3": 0}] * 8


def test_a_single_process_needs_no_label() -> None:
    with serving(processes=1) as server:
        server.answer(Metrics())
        assert staged(scraped(server)) == {"": 0}


def test_a_process_inherits_the_number_of_a_dead_one(server: Server) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        metrics = Metrics()
        metrics.staged(7)
        server.answer(metrics)
        os.write(writer, b"x")
        threading.Event().wait(60)
        os._exit(0)
    try:
        os.read(reader, 1)
        server.answer(Metrics())
        assert staged(scraped(server)) == {"1": 7, "2": 0}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert staged(scraped(server)) == {"2": 0}
    server.answer(Metrics())
    assert staged(scraped(server)) == {"1": 0, "2": 0}


def test_texts_are_put_together_family_by_family() -> None:
    metrics = Metrics()
    metrics.http_request(method="GET", route="/requests/{name}", status=200, duration_s=0.002)
    text = metrics.render()[0].decode()
    whole = together([("1", text), ("2", text)])
    for line in (
        'polytope_http_requests_total{process="2",method="GET",route="/requests/{name}",'
        'status="200"} 1.0',
        'polytope_staged_bytes_total{process="1"} 0.0',
    ):
        assert f"\n{line}\n" in whole
    names = [line.split()[2] for line in whole.splitlines() if line.startswith("# TYPE ")]
    assert len(set(names)) == len(names), "every family stands there once"
    assert whole.count("\npolytope_slots_total{") == 2
    assert together([]) == ""


def test_a_process_that_stands_still_does_not_hide_the_others(server: Server) -> None:
    child = os.fork()
    if child == 0:
        server.answer(Metrics())
        threading.Event().wait(60)
        os._exit(0)
    try:
        server.answer(Metrics())
        while staged(scraped(server)).keys() != {"1", "2"}:
            time.sleep(0.01)
        os.kill(child, signal.SIGSTOP)
        assert len(staged(scraped(server))) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_nothing_is_left_behind() -> None:
    before = set(Path("/tmp").glob("polytope-metrics-*"))
    with serving(processes=2) as server:
        assert set(Path("/tmp").glob("polytope-metrics-*")) - before
    assert not set(Path("/tmp").glob("polytope-metrics-*")) - before
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)
