"""The health listener and the metrics, over real sockets."""

import functools
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from polytope_server.errors import BackendUnavailable, ConfigurationError
from polytope_server.observability.health import AWAY, HealthListener, LateChecks, Readiness, ask
from polytope_server.observability.metrics import Metrics


def there() -> None:
    """Answers."""


def away() -> None:
    raise BackendUnavailable("mongodb://joe:xyzzy@db is away")


def broken() -> None:
    raise RuntimeError("xyzzy")


@contextmanager
def listening(
    metrics: Metrics | None = None, **checks: Callable[[], None]
) -> Iterator[HealthListener]:
    listener = HealthListener("127.0.0.1", 0, checks, metrics)
    listener.start()
    try:
        yield listener
    finally:
        listener.close()


def get(port: int, path: str, method: str = "GET") -> tuple[int, bytes, str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read(), response.getheader("Content-Type", "")


def test_a_process_says_that_it_is_alive() -> None:
    with listening(store=away) as listener:
        status, body, content_type = get(listener.port, "/healthz")
    assert (status, json.loads(body), content_type) == (
        200,
        {"status": "alive"},
        "application/json",
    )


def test_a_process_is_ready_when_all_that_it_needs_answers() -> None:
    with listening(store=there, queue=there) as listener:
        status, body, _ = get(listener.port, "/readyz?verbose")
        assert ask("127.0.0.1", listener.port) == (True, {"store": "ok", "queue": "ok"})
    assert (status, json.loads(body)) == (200, {"store": "ok", "queue": "ok"})


def test_a_back_end_is_away_until_it_has_been_opened_which_is_no_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    checks = LateChecks("store", "queue")
    with listening(**checks) as listener:
        assert ask("127.0.0.1", listener.port) == (False, {"store": "away", "queue": "away"})
    checks.opened("store", there)
    with listening(**checks) as listener:
        assert ask("127.0.0.1", listener.port) == (False, {"store": "ok", "queue": "away"})
    assert not caplog.records
    checks.opened("queue", away)
    with listening(**checks) as listener:
        ask("127.0.0.1", listener.port)
    assert [record.__dict__["backend"] for record in caplog.records] == ["queue"]


def test_a_process_says_what_it_waits_for_by_name_only() -> None:
    with listening(store=there, queue=away, staging=broken) as listener:
        status, body, _ = get(listener.port, "/readyz")
        states = {"store": "ok", "queue": "away", "staging": "away"}
        assert ask("127.0.0.1", listener.port) == (False, states)
    assert (status, json.loads(body)) == (503, states)


def test_metrics_are_served_where_there_are_some() -> None:
    metrics = Metrics()
    metrics.slots(busy=2, total=4)
    with listening(metrics) as listener:
        status, body, content_type = get(listener.port, "/metrics")
        assert get(listener.port, "/metrics", "HEAD")[:2] == (200, b"")
    assert status == 200
    assert content_type.startswith("text/plain")
    assert b"polytope_slots_busy 2.0" in body
    with listening() as listener:
        assert get(listener.port, "/metrics")[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/healthz/x", 404), ("POST", "/healthz", 501), ("X<b>", "/", 501)],
)
def test_anything_else_is_refused_in_json(method: str, path: str, status: int) -> None:
    with listening() as listener:
        found, body, content_type = get(listener.port, path, method)
    assert (found, content_type) == (status, "application/json")
    assert json.loads(body).keys() == {"message"}


def test_rubbish_on_the_socket_does_not_end_the_listener() -> None:
    with listening(store=there) as listener:
        for rubbish in (
            b"\x00\xff\r\n\r\n",
            b"GET " + b"a" * 70_000,
            b"GET / HTTP/9.9\r\n\r\n",
            b"",
        ):
            with socket.create_connection(("127.0.0.1", listener.port), timeout=10) as peer:
                peer.sendall(rubbish)
        assert ask("127.0.0.1", listener.port)[0]


def test_silent_peers_hold_a_bounded_number_of_connections() -> None:
    with listening(store=there) as listener:
        before = threading.active_count()
        peers = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(40)]
        deadline = time.monotonic() + 5
        while threading.active_count() < before + 16 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert threading.active_count() == before + 16
        for peer in peers:
            peer.close()
        _until(lambda: threading.active_count() == before)
        assert ask("127.0.0.1", listener.port)[0]


def test_a_closed_listener_answers_no_more_and_its_port_is_free() -> None:
    with listening(store=there) as listener:
        port = listener.port
    with pytest.raises(BackendUnavailable, match=str(port)):
        ask("127.0.0.1", port, timeout_s=1)
    again = HealthListener("127.0.0.1", port, {})
    assert again.port == port
    again.close()


def test_a_port_that_is_taken_is_the_operators_to_put_right() -> None:
    with listening() as listener, pytest.raises(ConfigurationError, match=str(listener.port)):
        HealthListener("127.0.0.1", listener.port, {})


@pytest.mark.parametrize("port", [-1, 70_000])
def test_a_port_that_cannot_be_is_refused(port: int) -> None:
    with pytest.raises(ConfigurationError, match=str(port)):
        HealthListener("127.0.0.1", port, {})


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"rubbish\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\n\r\n{",
        b"HTTP/1.1 404 X\r\n\r\n{}",
    ],
)
def test_somebody_else_at_the_port_is_not_taken_for_us(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(BackendUnavailable):
            ask("127.0.0.1", server.getsockname()[1], timeout_s=5)
        thread.join()


def test_checks_run_at_once_and_their_answer_is_shared_for_a_second() -> None:
    now = [100.0]
    calls: list[str] = []

    def slow(name: str) -> Callable[[], None]:
        def check() -> None:
            calls.append(name)
            time.sleep(0.2)

        return check

    readiness = Readiness({name: slow(name) for name in "abcde"}, clock=lambda: now[0])
    begin = time.monotonic()
    threads = [threading.Thread(target=readiness.look) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begin < 0.9
    assert sorted(calls) == list("abcde")
    now[0] += 1.0
    assert readiness.look() == (True, dict.fromkeys("abcde", "ok"))
    assert len(calls) == 10


def test_a_check_that_hangs_is_away_and_holds_one_thread_only() -> None:
    release = threading.Event()
    runs: list[int] = []

    def hanging() -> None:
        runs.append(1)
        release.wait(30)

    readiness = Readiness({"store": hanging, "queue": there}, timeout_s=0.05, remembered_s=0.0)
    for _ in range(5):
        assert readiness.look() == (False, {"store": "away", "queue": "ok"})
    assert len(runs) == 1
    release.set()
    _until(lambda: readiness.look().ready)


def test_coming_and_going_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    state = {"check": there}
    readiness = Readiness({"store": lambda: state["check"]()}, remembered_s=0.0)
    for check in (there, away, away, there, there):
        state["check"] = check
        readiness.look()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "xyzzy" not in caplog.text


# --- metrics


def test_what_can_be_done_without_is_told_but_does_not_count() -> None:
    away = {"store": False, "cache": True}

    def check(name: str) -> None:
        if away[name]:
            raise BackendUnavailable(name)

    checks = {name: functools.partial(check, name) for name in away}
    readiness = Readiness(checks, dispensable={"cache"}, remembered_s=0.0)
    assert readiness.look() == (True, {"store": "ok", "cache": "away"})
    away["store"] = True
    assert readiness.look() == (False, {"store": "away", "cache": "away"})


def test_everything_that_is_counted_is_rendered_in_the_text_format() -> None:
    metrics = Metrics()
    metrics.request_entered(collection="od", status="queued")
    metrics.request_finished(status="processed", duration_s=2.0)
    metrics.http_request(method="GET", route="/api/v1/test", status=200, duration_s=0.002)
    metrics.backend_failed(abstraction="staging", backend="s3", operation="read", reason="away")
    metrics.slots(busy=1, total=2)
    metrics.staged(1 << 20)
    metrics.cycle(0.004)
    body, content_type = metrics.render()
    text = body.decode()
    assert content_type.startswith("text/plain")
    for line in (
        'polytope_requests_total{collection="od",status="queued"} 1.0',
        'polytope_request_duration_seconds_sum{status="processed"} 2.0',
        'polytope_http_requests_total{method="GET",route="/api/v1/test",status="200"} 1.0',
        'polytope_http_request_duration_seconds_count{method="GET",route="/api/v1/test"} 1.0',
        'polytope_backend_errors_total{abstraction="staging",backend="s3",operation="read",'
        'reason="away"} 1.0',
        "polytope_slots_busy 1.0",
        "polytope_slots_total 2.0",
        "polytope_staged_bytes_total 1.048576e+06",
        "polytope_scheduling_cycle_seconds_count 1.0",
    ):
        assert re.search(f"^{re.escape(line)}$", text, re.MULTILINE), line


def test_a_client_cannot_make_up_new_series() -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.http_request(method=f"X{number}", route=None, status=404, duration_s=0.0)
    text = metrics.render()[0].decode()
    assert 'polytope_http_requests_total{method="other",route="none",status="404"} 1000.0' in text
    assert "X999" not in text


def test_two_processes_in_one_do_not_share_metrics() -> None:
    one, other = Metrics(), Metrics()
    one.staged(7)
    assert b"polytope_staged_bytes_total 0.0" in other.render()[0]


def _until(condition: Callable[[], bool], *, within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_log_says_why_a_back_end_is_away(caplog: pytest.LogCaptureFixture) -> None:
    def check() -> None:
        raise BackendUnavailable("staging: has no such bucket")

    caplog.set_level("WARNING")
    assert Readiness({"staging": check}).look().states == {"staging": AWAY}
    (record,) = [each for each in caplog.records if "is away" in each.message]
    assert record.cause == "staging: has no such bucket"  # type: ignore[attr-defined]
