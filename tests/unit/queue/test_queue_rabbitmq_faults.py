"""A RabbitMQ of our own that is paused, out of memory, killed and restarted, and that speaks TLS."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from services.certificates import Certificates
from services.fixtures import started
from services.rabbitmq import RabbitMq

from polytope_server.config.rabbitmq import RabbitMqSection
from polytope_server.errors import BackendUnavailable, ConfigurationError
from polytope_server.queue import Message, Topic
from polytope_server.queue.rabbitmq import RabbitMqQueue, declaring
from polytope_server.testing.queue import message

pytestmark = pytest.mark.xdist_group("rabbitmq faults")

Open = Callable[..., RabbitMqQueue]
TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def server() -> Iterator[RabbitMq]:
    with started(RabbitMq, tls=True) as server:
        yield server


@pytest.fixture
def open_queue(server: RabbitMq) -> Iterator[Open]:
    with ExitStack() as stack:

        def make(**options: Any) -> RabbitMqQueue:
            given = {"host": "127.0.0.1", "port": server.port(), "timeout": TIMEOUT_S}
            queue = RabbitMqQueue(RabbitMqSection(**(given | options)))
            stack.callback(queue.close)
            return queue

        yield make


# --- TLS


@pytest.fixture
def tls(server: RabbitMq) -> dict[str, Any]:
    return {"tls": True, "port": server.port("tls"), "ca_file": server.certificates.authority}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_certificate_of_the_right_authority_is_trusted(
    open_queue: Open, tls: dict[str, Any], host: str
) -> None:
    queue = open_queue(**tls, host=host, name="tls")
    queue.publish([message(1)])
    delivery = queue.receive()
    assert delivery is not None
    queue.acknowledge(delivery)


def test_others_are_not_and_that_is_said(
    open_queue: Open, tls: dict[str, Any], tmp_path: Path
) -> None:
    wrong = Certificates(tmp_path).authority
    for ca_file in (wrong, None):
        with pytest.raises(BackendUnavailable, match="has a certificate that is not trusted: "):
            open_queue(**tls | {"ca_file": ca_file}).ping()
    with pytest.raises(BackendUnavailable, match="not trusted: Hostname mismatch"):
        open_queue(**tls, host="127.1").ping()  # the same address by another name
    open_queue(**tls | {"ca_file": None}, tls_verify=False).ping()


def test_our_own_certificate_is_shown(
    server: RabbitMq, open_queue: Open, tls: dict[str, Any]
) -> None:
    own = server.certificates.issued("a-worker")
    open_queue(**tls, cert_file=own.certificate, key_file=own.key).ping()


def test_tls_where_there_is_none_and_none_where_there_is(
    server: RabbitMq, open_queue: Open, tls: dict[str, Any]
) -> None:
    with pytest.raises(BackendUnavailable, match=r"TLS|before it was open"):
        open_queue(**tls | {"port": server.port()}).ping()
    with pytest.raises(BackendUnavailable, match=r"does it want TLS there\?"):
        open_queue(port=server.port("tls")).ping()


def test_files_that_cannot_be_used_are_refused_at_start(
    tls: dict[str, Any], tmp_path: Path
) -> None:
    nothing, no_pem = tmp_path / "nothing.pem", tmp_path / "no.pem"
    no_pem.write_text("not a certificate")
    for key in ("ca_file", "cert_file"):
        for path in (nothing, no_pem):
            with pytest.raises(ConfigurationError, match=rf"queue\.rabbitmq\.{key}: {path} cannot"):
                RabbitMqQueue(RabbitMqSection(**tls | {key: path}))


# --- no memory


def test_a_server_without_memory_is_waited_for(server: RabbitMq, open_queue: Open) -> None:
    broker, worker = open_queue(name="memory"), open_queue(name="memory")
    broker.publish([message(1), message(2)])
    server.control("set_vm_memory_high_watermark", "absolute", "10MB")
    try:
        for attempt in range(4):
            with pytest.raises(BackendUnavailable, match=r"has run out of memory or disk"):
                _bounded(lambda number=attempt: broker.publish([message(100 + number)]))
        with pytest.raises(BackendUnavailable, match=r"has run out of memory or disk"):
            _bounded(broker.ping)
        for number in range(1000):
            broker.hint(Topic.CHANGED, str(number))
        assert broker.size() == 2
        for number in (1, 2):  # what is there is worked off
            delivery = worker.receive()
            assert delivery is not None
            assert delivery.message == message(number)
            worker.acknowledge(delivery)
    finally:
        server.control("set_vm_memory_high_watermark", "absolute", "512MB")
    _until_done(lambda: broker.publish([message(3)]))
    got = _drained(worker)
    assert message(3) in got
    assert len(got) <= 3, "what was tried while it was blocked has all come"


# --- hung


def test_a_server_that_hangs_is_away_in_bounded_time(server: RabbitMq, open_queue: Open) -> None:
    options = {"name": "hung", "keep_alive_interval": 1}
    broker, worker, new = open_queue(**options), open_queue(**options), open_queue(**options)
    broker.publish([message(1)])
    assert worker.receive() is not None
    assert worker.receive() is None
    with worker.listen(Topic.PUBLISHED) as hints:
        server.pause()
        try:
            for _ in range(2):
                for queue in (broker, worker, new):
                    calls: list[Callable[[], object]] = [queue.ping, queue.size]
                    calls += [] if queue is worker else [lambda q=queue: q.publish([message(2)])]
                    for call in calls:
                        with pytest.raises(BackendUnavailable):
                            _bounded(call)
            begin = time.monotonic()
            assert list(hints.wait(0.1)) == []
            with new.listen(Topic.CHANGED) as others:
                assert list(others.wait(0.1)) == []
            broker.hint(Topic.CHANGED)
            assert time.monotonic() - begin < TIMEOUT_S + 1
        finally:
            server.resume()
        _until_done(lambda: broker.publish([message(3)]))
        assert message(3) in _drained(worker, until=message(3))
        _until_hinted(broker, hints.wait)


# --- killed


def test_what_was_confirmed_outlives_a_crash_and_all_connect_again(
    server: RabbitMq, open_queue: Open
) -> None:
    broker, worker = open_queue(name="crash"), open_queue(name="crash")
    assert broker.size() == 0
    time.sleep(3)  # the server forgets a quorum queue that is younger than two seconds or so
    confirmed: set[str] = set()
    got: set[str] = set()
    ended = threading.Event()

    def publish() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            with suppress(BackendUnavailable):
                broker.publish([message(number)])
                confirmed.add(f"id{number}")
            time.sleep(0.005)

    def consume() -> None:
        with worker.listen(Topic.PUBLISHED) as hints:
            while not (ended.is_set() and confirmed <= got):
                with suppress(BackendUnavailable):
                    if delivery := worker.receive():
                        got.add(delivery.message.id)
                        worker.acknowledge(delivery)
                        continue
                hints.wait(0.2)

    threads = [threading.Thread(target=each, daemon=True) for each in (publish, consume)]
    for thread in threads:
        thread.start()
    _until(lambda: len(got) > 50)
    server.kill()
    time.sleep(0.3)
    with pytest.raises(BackendUnavailable, match=r"cannot be reached|is gone|closed"):
        _bounded(broker.ping)
    server.start()
    before = len(confirmed)
    _until(lambda: len(confirmed) > before + 50)
    ended.set()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive(), f"lost: {sorted(confirmed - got)}"
    with worker.listen(Topic.REVOKED) as hints:
        _until_hinted(broker, hints.wait)


def test_a_queue_without_a_leader_is_made_anew(
    server: RabbitMq,
    open_queue: Open,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is left of a quorum queue whose server was killed right after it was made."""
    monkeypatch.setattr(declaring, "_BROKEN_S", 2.0)
    broker, worker = open_queue(name="young"), open_queue(name="young")
    broker.publish([message(1)])
    server.kill()
    server.start()
    with server.connected() as connection:  # it is there, and it is the one that hangs
        connection.channel().queue_declare("young", passive=True)
    _until_done(lambda: broker.publish([message(2)]), at_most_s=40)
    assert any("making it anew" in line for line in caplog.messages), "it was not lost this time"
    assert message(2) in _drained(worker, until=message(2))
    assert broker.size() == 0


# --- waiting


def _bounded(call: Callable[[], object]) -> None:
    """Calls it, which may take the time-out and a bit, whatever it comes to."""
    begin = time.monotonic()
    try:
        call()
    finally:
        assert time.monotonic() - begin < TIMEOUT_S + 1


def _drained(queue: RabbitMqQueue, *, until: Message | None = None) -> list[Message]:
    """What is there; with *until*, all up to that one, which may yet have to come."""
    got: list[Message] = []

    def take() -> bool:
        with suppress(BackendUnavailable):
            while delivery := queue.receive():
                got.append(delivery.message)
                queue.acknowledge(delivery)
            return until is None or until in got
        return False

    _until(take)
    return got


def _until_done(call: Callable[[], object], *, at_most_s: float = 20.0) -> None:
    def done() -> bool:
        with suppress(BackendUnavailable):
            call()
            return True
        return False

    _until(done, at_most_s=at_most_s)


def _until_hinted(queue: RabbitMqQueue, wait: Callable[[float], Any]) -> None:
    def hinted() -> bool:
        for topic in (Topic.PUBLISHED, Topic.REVOKED):
            queue.hint(topic, "again")
        return any(hint.text == "again" for hint in wait(0.1))

    _until(hinted)


def _until(condition: Callable[[], bool], *, at_most_s: float = 20.0) -> None:
    end = time.monotonic() + at_most_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.05)
