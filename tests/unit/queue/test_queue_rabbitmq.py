"""The queue on RabbitMQ: the contract, who gets which message when, and what operators do to the server."""

import logging
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pika
import pytest
from services.base import free_port
from services.rabbitmq import RabbitMq

from polytope_server.broker.loop import Broker
from polytope_server.config.embedded import SqliteStoreSection
from polytope_server.config.model import BrokerSection
from polytope_server.config.rabbitmq import RabbitMqSection
from polytope_server.errors import BackendUnavailable, ConfigurationError
from polytope_server.observability.metrics import Metrics
from polytope_server.queue import Delivery, Message, Queue, Topic
from polytope_server.queue.rabbitmq import RabbitMqQueue
from polytope_server.reloading import Current
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.testing.queue import QueueContract, message
from polytope_server.testing.request_store import new_request
from polytope_server.user import User

Open = Callable[..., RabbitMqQueue]


@pytest.fixture
def name() -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def open_queue(rabbitmq: RabbitMq, name: str) -> Iterator[Open]:
    """Opens the queue of this test on the shared server, as each process does for itself."""
    with ExitStack() as stack:

        def make(**options: Any) -> RabbitMqQueue:
            options = {"host": "127.0.0.1", "port": rabbitmq.port(), "name": name} | options
            queue = RabbitMqQueue(RabbitMqSection(**options))
            stack.callback(queue.close)
            return queue

        yield make
    with rabbitmq.connected() as connection:
        connection.channel().queue_delete(name)


class TestQuorum(QueueContract):
    @pytest.fixture
    def queue(self, open_queue: Open) -> Queue:
        return open_queue()

    @pytest.fixture
    def again(self, open_queue: Open) -> Queue:
        return open_queue()


class TestClassic(QueueContract):
    @pytest.fixture
    def queue(self, open_queue: Open) -> Queue:
        return open_queue(queue_type="classic")

    @pytest.fixture
    def again(self, open_queue: Open) -> Queue:
        return open_queue(queue_type="classic")


# --- who gets which message, and when


class Slot:
    """A thread that does as a worker's slot does: asks, waits for hints, asks again."""

    def __init__(self, queue: Queue, *, poll_s: float = 30.0, wanted: int = 1) -> None:
        self.got: list[tuple[float, Delivery]] = []
        self._queue, self._poll_s, self._wanted = queue, poll_s, wanted
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._idle.wait(10)

    def _run(self) -> None:
        with self._queue.listen(Topic.PUBLISHED) as hints:
            while len(self.got) < self._wanted:
                try:
                    delivery = self._queue.receive()
                except BackendUnavailable:
                    time.sleep(0.1)
                    continue
                if delivery is None:
                    self._idle.set()
                    hints.wait(self._poll_s)
                    continue
                self.got.append((time.monotonic(), delivery))
                self._queue.acknowledge(delivery)

    def end(self, timeout_s: float = 10.0) -> list[Message]:
        self._thread.join(timeout=timeout_s)
        assert not self._thread.is_alive(), "it still waits"
        return [delivery.message for _, delivery in self.got]


def test_a_published_message_wakes_a_worker_that_does_not_look(open_queue: Open) -> None:
    broker, worker = open_queue(), open_queue()
    for number in range(5):
        slot = Slot(worker)
        time.sleep(0.05)
        begin = time.monotonic()
        broker.publish([message(number)])
        assert slot.end() == [message(number)]
        assert slot.got[0][0] - begin < 1.0


def test_all_slots_of_a_process_get_one_each(open_queue: Open) -> None:
    broker, worker = open_queue(), open_queue()
    slots = [Slot(worker) for _ in range(6)]
    broker.publish([message(number) for number in range(6)])
    got = [slot.end()[0] for slot in slots]
    assert sorted(got, key=lambda m: m.id) == [message(number) for number in range(6)]


def test_a_busy_process_holds_no_message_that_another_could_run(open_queue: Open) -> None:
    broker, busy, idle = open_queue(), open_queue(), open_queue()
    for number in range(10):
        slot = Slot(busy)
        broker.publish([message(number)])
        slot.end()
        broker.publish([message(100 + number)])
        delivery = idle.receive()
        assert delivery is not None, "the busy one has it"
        assert delivery.message == message(100 + number)
        idle.acknowledge(delivery)


def test_what_came_for_a_thread_that_has_left_goes_to_another_process(open_queue: Open) -> None:
    broker, left, other = open_queue(), open_queue(), open_queue()
    with left.listen(Topic.PUBLISHED) as hints:
        assert left.receive() is None
        hints.wait(0.05)
        broker.publish([message(1)])
        assert Slot(other, poll_s=0.2).end(5) == [message(1)]


def test_who_only_waits_is_given_nothing(open_queue: Open) -> None:
    """As a worker that is drained, whose slots wait for the end of it."""
    broker, draining, other = open_queue(), open_queue(), open_queue()
    with draining.listen(Topic.PUBLISHED) as hints:
        draining.receive()
        hints.wait(0.4)
        waiting = threading.Thread(target=hints.wait, args=(5,))
        waiting.start()
        broker.publish([message(1)])
        assert _received(other).message == message(1)
        hints.interrupt()
        waiting.join()


def test_a_message_of_a_process_that_ended_comes_again(open_queue: Open) -> None:
    first, second = open_queue(), open_queue()
    first.publish([message(1)])
    assert first.receive() is not None
    assert second.receive() is None
    first.close()
    assert _received(second).message == message(1)


def test_an_acknowledgement_from_before_a_lost_connection_does_no_harm(
    rabbitmq: RabbitMq, open_queue: Open
) -> None:
    queue, other = open_queue(), open_queue()
    queue.publish([message(1)])
    late = queue.receive()
    assert late is not None
    rabbitmq.control("close_all_connections", "a test")
    assert _received(other).message == message(1)
    queue.acknowledge(late)
    queue.put_back(late)
    assert _patiently(queue.receive) is None
    assert _patiently(other.size) == 1


def test_one_that_is_closed_says_so(open_queue: Open) -> None:
    queue = open_queue()
    queue.ping()
    queue.close()
    queue.close()
    queue.hint(Topic.CHANGED, "x")
    with pytest.raises(BackendUnavailable, match="closed"):
        queue.ping()


# --- what others put there, and what operators do


def test_what_is_no_message_is_dropped_and_an_id_alone_is_one(
    rabbitmq: RabbitMq, name: str, open_queue: Open, caplog: pytest.LogCaptureFixture
) -> None:
    queue = open_queue()
    assert queue.size() == 0
    bodies = [
        *(b"", b"{", b"\xff", b"[" * 5000, b"[]", b"null", b"7", b"{}", b'{"id": 7, "attempt": 1}'),
        *(
            b'{"id": "x", "attempt": "1"}',
            b'{"id": "x", "attempt": 0}',
            b'{"id": "x", "attempt": true}',
        ),
        *(
            b'{"id": "", "attempt": 1}',
            b'{"id": "half \\ud800", "attempt": 1}',
            b'{"id": "\\ud800", "attempt": 1}',
            b'{"id": "a\\u0000b", "attempt": 1}',
            b'{"id": "a", "attempt": %s}' % (b"9" * 5000),
            b'{"id": "%s"}' % (b"x" * 1000),
            b'{"id": "x", "attempt": null}',
        ),
        *(b'{"id": "old"}', b'{"id": "new", "attempt": 2, "more": []}'),
    ]
    with rabbitmq.connected() as connection:
        channel = connection.channel()
        for body in bodies:
            channel.basic_publish("", name, body)
    got = [_received(queue).message for _ in range(2)]
    assert got == [Message(id="old", attempt=1), Message(id="new", attempt=2)]
    assert queue.receive() is None
    assert queue.size() == 2
    assert sum("no message of ours" in line for line in caplog.messages) == len(bodies) - 2
    slot = Slot(queue)  # the same, sent to one that waits
    with rabbitmq.connected() as connection:
        for body in bodies[:-1]:
            connection.channel().basic_publish("", name, body)
    assert slot.end() == [Message(id="old", attempt=1)]


def test_messages_outlive_the_server_and_say_what_they_are(
    rabbitmq: RabbitMq, name: str, open_queue: Open
) -> None:
    open_queue().publish([message(1, attempt=3)])
    with rabbitmq.connected() as connection:
        _, properties, body = connection.channel().basic_get(name, auto_ack=True)
    assert body == b'{"id": "id1", "attempt": 3}'
    assert properties.delivery_mode == pika.DeliveryMode.Persistent.value


def test_a_purged_queue_is_used_on(rabbitmq: RabbitMq, name: str, open_queue: Open) -> None:
    queue = open_queue()
    queue.publish([message(1)])
    with rabbitmq.connected() as connection:
        connection.channel().queue_purge(name)
    assert queue.size() == 0
    queue.publish([message(2)])
    assert _received(queue).message == message(2)


def test_a_deleted_queue_is_made_again_by_whoever_comes_first(
    rabbitmq: RabbitMq, name: str, open_queue: Open
) -> None:
    queue, worker = open_queue(timeout=1), open_queue(timeout=1)
    uses: list[Callable[[], object]] = [
        *(queue.size, queue.receive, queue.ping),
        lambda: queue.publish([message(9)]),
    ]
    for use in uses:
        _patiently(use)
        with rabbitmq.connected() as connection:
            connection.channel().queue_delete(name)
        _patiently(use)
        slot = Slot(worker, wanted=2 if use is uses[-1] else 1, poll_s=0.5)
        with rabbitmq.connected() as connection:
            connection.channel().queue_delete(name)  # while it waits
        queue.publish([message(1)] if use is not uses[-1] else [message(1), message(2)])
        assert message(1) in slot.end()


def test_a_deleted_exchange_is_made_again(rabbitmq: RabbitMq, name: str, open_queue: Open) -> None:
    queue = open_queue()
    with queue.listen(Topic.CHANGED) as hints:
        queue.hint(Topic.CHANGED, "1")
        assert [hint.text for hint in hints.wait(5)] == ["1"]
        with rabbitmq.connected() as connection:
            connection.channel().exchange_delete(f"{name}.hints")
        with queue.listen(Topic.REVOKED):  # asks for more, and finds out
            _until_hinted(queue, Topic.CHANGED, hints.wait)


@pytest.mark.parametrize("queue_type", ["auto", "quorum", "classic"])
def test_a_queue_that_is_there_is_used_as_it_is(
    rabbitmq: RabbitMq, name: str, open_queue: Open, queue_type: str
) -> None:
    arguments = {"x-max-length": 100, "x-queue-type": "classic"}
    with rabbitmq.connected() as connection:
        connection.channel().queue_declare(name, durable=True, arguments=arguments)
        queue = open_queue(queue_type=queue_type)
        queue.publish([message(1)])
        assert queue.size() == 1
        connection.channel().queue_declare(
            name, durable=True, arguments=arguments
        )  # still the same
    assert _received(queue).message == message(1)


@pytest.mark.parametrize(
    ("queue_type", "kind"), [("auto", "quorum"), ("quorum", "quorum"), ("classic", "classic")]
)
def test_a_new_queue_is_durable_and_of_the_wanted_type(
    rabbitmq: RabbitMq, name: str, open_queue: Open, queue_type: str, kind: str
) -> None:
    open_queue(queue_type=queue_type).publish([message(1)])
    with rabbitmq.connected() as connection:
        connection.channel().queue_declare(name, durable=True, arguments={"x-queue-type": kind})


def test_a_full_queue_refuses(rabbitmq: RabbitMq, name: str, open_queue: Open) -> None:
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    with rabbitmq.connected() as connection:
        connection.channel().queue_declare(name, durable=True, arguments=arguments)
    queue = open_queue()
    with pytest.raises(BackendUnavailable, match=f"does not take messages for {name}"):
        queue.publish([message(1), message(2), message(3)])
    queue.acknowledge(_received(queue))
    queue.publish([message(3)])


def test_what_is_lost_or_held_is_published_again_but_not_without_bound(
    rabbitmq: RabbitMq, name: str, open_queue: Open, tmp_path: Path
) -> None:
    store = SqliteRequestStore(SqliteStoreSection(path=tmp_path / "requests.sqlite"))
    queue, holding = open_queue(), open_queue()
    broker = Broker(
        store=store,
        queue=queue,
        limits=Current({"c1": NoLimits()}),
        settings=BrokerSection.model_validate({"republish_after": 0.05}),
        metrics=Metrics(),
        grace_s=0,
    )
    ids = {store.add(new_request()).id for _ in range(3)}
    broker.turn()
    assert queue.size() == 3
    with rabbitmq.connected() as connection:
        connection.channel().queue_purge(name)

    def turns(number: int) -> None:
        for _ in range(number):
            time.sleep(0.06)
            broker.turn()

    turns(5)
    assert queue.size() == 3
    held = [_received(holding) for _ in range(3)]  # by a worker that hangs before it has the lease
    assert {delivery.message.id for delivery in held} == ids
    turns(10)
    assert queue.size() == 3, "they are doubled once, and then there are enough"
    holding.close()
    _until(lambda: queue.size() == 6)
    turns(5)
    assert queue.size() == 6


class NoLimits:
    total = None

    def for_user(self, _user: User) -> int:
        return 0


# --- who cannot get in is told why


def test_a_wrong_password_is_named(open_queue: Open, caplog: pytest.LogCaptureFixture) -> None:
    queue = open_queue(password="hunter2")
    for _ in range(2):
        with pytest.raises(
            BackendUnavailable, match=r"refuses user or password; see queue.rabbitmq"
        ):
            queue.ping()
    assert any("refuses user or password" in str(getattr(r, "cause", "")) for r in caplog.records)
    assert not any("hunter2" in str(vars(record)) for record in caplog.records)
    assert max(record.levelno for record in caplog.records) == logging.ERROR


def test_an_unknown_virtual_host_is_named(open_queue: Open) -> None:
    with pytest.raises(BackendUnavailable, match=r"vhost nowhere not found; see .*virtual_host"):
        open_queue(virtual_host="nowhere").receive()


def test_missing_permissions_are_named(rabbitmq: RabbitMq, name: str, open_queue: Open) -> None:
    rabbitmq.control("add_user", name, "secret")
    try:
        queue = open_queue(user=name, password="secret")
        with pytest.raises(
            BackendUnavailable, match=f"refused for user '{name}'; see .*permissions"
        ):
            queue.ping()
        rabbitmq.control("set_permissions", name, "nothing", "nothing", "nothing")
        _until_raises(queue.size, f"configure access to queue '{name}'|access to queue '{name}'")
        open_queue().publish([message(1)])
        _until_raises(queue.receive, f"access to queue '{name}'")
        _until_raises(lambda: queue.publish([message(1)]), "access to exchange")
        queue.hint(Topic.CHANGED)
        with queue.listen(Topic.CHANGED) as hints:
            assert list(hints.wait(0.01)) == []
        ours = rf"{name}(\.hints.*)?"  # as docs/backends.md says
        rights = (f"^{ours}$", rf"^({ours}|amq\.default)$", f"^{ours}$")
        rabbitmq.control("set_permissions", name, *rights)
        _patiently(lambda: queue.publish([message(2)]))
        with queue.listen(Topic.CHANGED) as hints:
            _until_hinted(queue, Topic.CHANGED, hints.wait)
    finally:
        rabbitmq.control("delete_user", name)


def test_a_server_that_is_away_is_only_away(caplog: pytest.LogCaptureFixture) -> None:
    queue = RabbitMqQueue(RabbitMqSection(host="127.0.0.1", port=free_port()))
    try:
        for call in (queue.ping, queue.size, queue.receive, lambda: queue.publish([message(1)])):
            begin = time.monotonic()
            with pytest.raises(BackendUnavailable, match=r"cannot be reached: Connection refused"):
                call()
            assert time.monotonic() - begin < 2
        begin = time.monotonic()
        for number in range(20_000):
            queue.hint(Topic.CHANGED, str(number))
        with queue.listen(Topic.CHANGED) as hints:
            assert list(hints.wait(0.05)) == []
        assert time.monotonic() - begin < 5
    finally:
        queue.close()
    told = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(told) <= 4, "each attempt is told"


def test_a_name_that_nobody_has_is_only_away() -> None:
    queue = RabbitMqQueue(RabbitMqSection(host="rabbitmq.invalid"))
    try:
        with pytest.raises(BackendUnavailable, match=r"rabbitmq.invalid:5672 cannot be reached"):
            queue.ping()
    finally:
        queue.close()


def test_a_hint_of_a_process_that_ends_at_once_is_sent(
    rabbitmq: RabbitMq, name: str, open_queue: Open
) -> None:
    """As of `polytope-server admin`, and with nothing printed at its end."""
    program = f"""
from polytope_server.config.rabbitmq import RabbitMqSection
from polytope_server.queue import Topic
from polytope_server.queue.rabbitmq import RabbitMqQueue
queue = RabbitMqQueue(RabbitMqSection(host="127.0.0.1", port={rabbitmq.port()}, name={name!r}))
queue.hint(Topic.MARKED, "paused")
"""
    with open_queue().listen(Topic.MARKED) as hints:
        ended = subprocess.run(
            [sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, timeout=60
        )
        assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")
        assert [hint.text for hint in hints.wait(5)] == ["paused"]


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"port": 0}, "queue.rabbitmq.port"),
        ({"queue_type": "stream"}, "queue.rabbitmq.queue_type"),
        ({"name": ""}, "queue.rabbitmq.name"),
        ({"keep_alive_interval": 0}, "queue.rabbitmq.keep_alive_interval"),
        ({"ca_file": "/ca.pem"}, "tls: true where there is a ca_file"),
        ({"tls": True, "key_file": "/key.pem"}, "a cert_file where there is a key_file"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigurationError, match=place):
        RabbitMqSection.read(options, where="queue.rabbitmq")


def test_the_options_of_older_servers_are_read() -> None:
    older = RabbitMqSection.read({}, where="queue.rabbitmq")
    assert (older.address, older.name, older.virtual_host) == (("localhost", 5672), "default", "/")
    assert (older.user, older.password.get_secret_value()) == ("guest", "guest")
    assert older.keep_alive_interval == 30
    assert RabbitMqSection(tls=True).address == ("localhost", 5671)
    assert RabbitMqSection(tls=True, port=5672).address == ("localhost", 5672)


# --- waiting


def _received(queue: Queue) -> Delivery:
    found: list[Delivery] = []

    def look() -> bool:
        if delivery := _patiently(queue.receive):
            found.append(delivery)
        return bool(found)

    _until(look)
    return found[0]


def _patiently(call: Callable[[], Any], *, at_most_s: float = 15.0) -> Any:
    """What it gives; as every process does, it is tried again while the server is away."""
    end = time.monotonic() + at_most_s
    while True:
        try:
            return call()
        except BackendUnavailable:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _until_raises(call: Callable[[], object], pattern: str) -> None:
    """At first something else may be wrong that is over by then."""

    def fails() -> bool:
        try:
            call()
        except BackendUnavailable as exc:
            return re.search(pattern, str(exc)) is not None
        return False

    _until(fails)


def _until_hinted(queue: Queue, topic: Topic, wait: Callable[[float], Any]) -> None:
    def hinted() -> bool:
        queue.hint(topic, "again")
        return any(hint.text == "again" for hint in wait(0.1))

    _until(hinted)


def _until(condition: Callable[[], bool], *, at_most_s: float = 15.0) -> None:
    end = time.monotonic() + at_most_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.02)
