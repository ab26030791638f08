"""A worker in this process, with real back-ends and real slots, and an operator at its back."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from polytope_server.config.embedded import SqliteQueueSection, SqliteStoreSection
from polytope_server.config.model import WorkerSection
from polytope_server.config.rabbitmq import RabbitMqSection
from polytope_server.config.staging import LocalStagingSection
from polytope_server.lifecycle import Stop
from polytope_server.observability.metrics import Metrics
from polytope_server.queue import Message, Queue, Topic
from polytope_server.queue.rabbitmq import RabbitMqQueue
from polytope_server.queue.sqlite import SqliteQueue
from polytope_server.reloading import Current
from polytope_server.request import BINARY, DataObject, Request, Status, Verb
from polytope_server.request_store import Attendance, Mark
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.staging.local import LocalStaging
from polytope_server.testing.request_store import an_entry, enqueue, new_request, start_over
from polytope_server.worker.supervisor import Source, Sources, Worker

HANGING = Source(type="raise", options={"type": "raise", "mode": "hang"})
ECHO = Source(type="echo", options={"type": "echo"})


@pytest.fixture
def store(tmp_path: Path) -> SqliteRequestStore:
    return SqliteRequestStore(SqliteStoreSection(path=tmp_path / "r.sqlite"))


@pytest.fixture
def queue(tmp_path: Path) -> SqliteQueue:
    return SqliteQueue(SqliteQueueSection(path=tmp_path / "q.sqlite"))


@pytest.fixture
def working(
    tmp_path: Path, store: SqliteRequestStore, queue: SqliteQueue
) -> Callable[..., contextmanager]:
    @contextmanager
    def working(
        source: Source, *, beside: Queue | None = None, **settings: float | str
    ) -> Iterator[None]:
        stop = Stop()
        worker = Worker(
            store=store,
            queue=beside or queue,
            staging=LocalStaging(LocalStagingSection(root_dir=tmp_path / "staging")),
            sources=Current(Sources(by_name={("c1", "d"): source}, log_level="INFO")),
            settings=WorkerSection.model_validate({"drain_timeout": 0, **settings}),
            metrics=Metrics(),
            grace_s=0.0,
        )
        thread = threading.Thread(target=worker.run, args=(stop,))
        thread.start()
        try:
            until(lambda: bool(store.workers()))
            yield
        finally:
            stop.request()
            thread.join(timeout=30)
        assert not thread.is_alive()
        assert store.workers() == []

    return working


def until(condition: Callable[[], bool], *, deadline_s: float = 20.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


def publish(store: SqliteRequestStore, queue: SqliteQueue, request: Request) -> None:
    queued = enqueue(store, request)
    queue.publish([Message(id=queued.id, attempt=queued.attempt)])


def the_worker(store: SqliteRequestStore) -> Attendance:
    (worker,) = store.workers()
    return worker


def test_a_request_that_comes_back_to_the_same_worker_is_told_from_its_old_run(
    store: SqliteRequestStore, queue: SqliteQueue, working: Callable[..., contextmanager]
) -> None:
    request = store.add(new_request())
    with working(HANGING, slots=2, lease=2.5):
        publish(store, queue, request)
        until(lambda: store.get(request.id).status is Status.PROCESSING)
        first = store.get(request.id)
        begin = time.monotonic()
        # no hint, as if it had got lost: the other slot takes it before the first has noticed
        publish(store, queue, start_over(store, first))
        until(lambda: store.get(request.id).status is Status.PROCESSING)
        second = store.get(request.id)
        assert (second.attempt, second.holder != first.holder) == (2, True)
        until(lambda: the_worker(store).busy == 1)
        assert time.monotonic() - begin < 5, "the first run went on"
        assert second.lease_expires_at is not None
        until(lambda: (store.get(request.id).lease_expires_at or 0) > second.lease_expires_at + 2)
        assert store.get(request.id).lease == second.lease


def test_a_drained_worker_finishes_takes_nothing_new_and_goes_on_when_asked(
    store: SqliteRequestStore, queue: SqliteQueue, working: Callable[..., contextmanager]
) -> None:
    with working(ECHO, slots=2):
        name = the_worker(store).name
        store.mark(Mark.DRAINING, name, audit=an_entry(name))
        queue.hint(Topic.MARKED, name)
        time.sleep(0.3)  # it is woken
        request = store.add(new_request())
        publish(store, queue, request)
        time.sleep(1.5)
        assert store.get(request.id).status is Status.QUEUED
        store.unmark(Mark.DRAINING, name, audit=an_entry(name))
        queue.hint(Topic.MARKED, name)
        begin = time.monotonic()
        until(lambda: store.get(request.id).status is Status.PROCESSED)
        assert time.monotonic() - begin < 5


def test_a_worker_says_how_busy_it_is_once_a_second(
    store: SqliteRequestStore, queue: SqliteQueue, working: Callable[..., contextmanager]
) -> None:
    with working(HANGING, slots=2):
        worker = the_worker(store)
        assert (worker.slots, worker.busy) == (2, 0)
        assert f"-{os.getpid()}-" in worker.name
        publish(store, queue, store.add(new_request()))
        until(lambda: the_worker(store).busy == 1)
        seen = the_worker(store).seen_at
        until(lambda: the_worker(store).seen_at > seen, deadline_s=3)


def test_what_nobody_expected_fails_the_request_at_once(
    store: SqliteRequestStore, queue: SqliteQueue, working: Callable[..., contextmanager]
) -> None:
    request = store.add(new_request())
    cannot_be_sent = Source(type="echo", options={"type": "echo", "what": object()})
    with working(cannot_be_sent, slots=1, lease=60):
        publish(store, queue, request)
        until(lambda: store.get(request.id).status is Status.FAILED, deadline_s=10)
    assert f"not your fault; please quote {request.id}" in store.get(request.id).message


def test_data_that_cannot_be_unpacked_are_said_not_to_be_archived(
    tmp_path: Path,
    store: SqliteRequestStore,
    queue: SqliteQueue,
    working: Callable[..., contextmanager],
) -> None:
    data = DataObject(name="in.bin", media_type=BINARY, size_bytes=0, sha256=sha256().hexdigest())
    staging = LocalStaging(LocalStagingSection(root_dir=tmp_path / "staging"))
    with staging.create(data.name, media_type=BINARY) as upload:
        upload.commit()
    request = store.add(replace(new_request(verb=Verb.ARCHIVE), input=data))
    missing = str(tmp_path / "missing")
    with working(ECHO, slots=1, lease=60, tmp_dir=missing, storage_retry=0):
        publish(store, queue, request)
        until(lambda: store.get(request.id).status is Status.FAILED, deadline_s=10)
    message = store.get(request.id).message
    assert message.startswith("The data were not archived: the server's storage had no room")


def test_the_log_says_once_for_all_slots_that_a_back_end_is_away(
    working: Callable[..., contextmanager], caplog: pytest.LogCaptureFixture
) -> None:
    section = {"host": "127.0.0.1", "port": 9}  # nobody listens there
    away = RabbitMqQueue(RabbitMqSection.read(section, where="queue.rabbitmq"))
    with working(ECHO, beside=away, slots=3):
        until(lambda: "a back-end is away" in caplog.messages)
        time.sleep(2.5)  # each slot has tried again by now
    assert caplog.messages.count("a back-end is away") == 1
    away.close()
