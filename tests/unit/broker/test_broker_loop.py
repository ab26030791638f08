"""The broker over real embedded back-ends, one cycle at a time."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from polytope_server.broker.loop import Broker
from polytope_server.config.embedded import SqliteQueueSection, SqliteStoreSection
from polytope_server.config.model import BrokerSection
from polytope_server.lifecycle import Stop
from polytope_server.observability.metrics import Metrics
from polytope_server.queue import Topic
from polytope_server.queue.sqlite import SqliteQueue
from polytope_server.reloading import Current
from polytope_server.request import Lease, Request, Status, Step
from polytope_server.request_store import Mark
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.testing.request_store import (
    ANN,
    JOE,
    an_entry,
    enqueue,
    finish,
    new_request,
    start,
    start_over,
)
from polytope_server.user import User


@dataclass(frozen=True)
class SomeLimits:
    total: int | None = None
    per_user: int = 0

    def for_user(self, _user: User) -> int:
        return self.per_user


@pytest.fixture
def store(tmp_path: Path) -> SqliteRequestStore:
    return SqliteRequestStore(SqliteStoreSection(path=tmp_path / "r.sqlite"))


@pytest.fixture
def queue(tmp_path: Path) -> SqliteQueue:
    return SqliteQueue(SqliteQueueSection(path=tmp_path / "q.sqlite"))


MakeBroker = Callable[..., Broker]


@pytest.fixture
def make(store: SqliteRequestStore, queue: SqliteQueue) -> MakeBroker:
    def make(
        limits: Mapping[str, SomeLimits] | Current[Mapping[str, SomeLimits]] | None = None,
        *,
        grace_s: float = 0,
        **settings: float,
    ) -> Broker:
        if limits is None:
            limits = {"c1": SomeLimits(), "c2": SomeLimits()}
        return Broker(
            store=store,
            queue=queue,
            limits=limits if isinstance(limits, Current) else Current(limits),
            settings=BrokerSection.model_validate(settings),
            metrics=Metrics(),
            grace_s=grace_s,
        )

    return make


def drain(queue: SqliteQueue) -> list[str]:
    ids = []
    while delivery := queue.receive():
        ids.append(delivery.message.id)
        queue.acknowledge(delivery)
    return ids


def test_waiting_requests_are_queued_and_published(
    store: SqliteRequestStore, queue: SqliteQueue, make: MakeBroker
) -> None:
    ids = [store.add(new_request()).id for _ in range(3)]
    make().turn()
    assert drain(queue) == ids
    assert {store.get(i).status for i in ids} == {Status.QUEUED}


def test_no_more_is_queued_than_workers_will_take_soon(
    store: SqliteRequestStore, queue: SqliteQueue, make: MakeBroker
) -> None:
    for _ in range(10):
        store.add(new_request())
    broker = make(max_queued=4)
    broker.turn()
    broker.turn()
    assert store.queued_count() == 4


def test_a_saturated_user_with_a_backlog_does_not_hide_the_others(
    store: SqliteRequestStore, queue: SqliteQueue, make: MakeBroker
) -> None:
    for _ in range(100):
        store.add(new_request())
    late = [store.add(new_request(user=ANN)).id for _ in range(2)]
    broker = make({"c1": SomeLimits(per_user=2)}, max_queued=10)
    broker.turn()
    assert set(late) <= set(drain(queue))
    assert store.active_counts() == {("c1", JOE.id): 2, ("c1", ANN.id): 2}


def test_limits_are_filled_up_in_one_cycle(store: SqliteRequestStore, make: MakeBroker) -> None:
    everybody = [User(username=f"u{n}", realm="r") for n in range(12)]
    for user in everybody:
        for _ in range(5):
            store.add(new_request(user=user))
    make({"c1": SomeLimits(per_user=3)}, max_queued=30).turn()
    assert store.queued_count() == 30
    assert max(store.active_counts().values()) == 3


def test_one_collection_does_not_starve_another(
    store: SqliteRequestStore, make: MakeBroker
) -> None:
    for _ in range(50):
        store.add(new_request(collection="c1"))
    store.add(new_request(collection="c2"))
    make(max_queued=10).turn()
    assert ("c2", JOE.id) in store.active_counts()


def pause(store: SqliteRequestStore, collection: str) -> None:
    assert store.mark(Mark.PAUSED, collection, audit=an_entry(collection))


def resume(store: SqliteRequestStore, collection: str) -> None:
    assert store.unmark(Mark.PAUSED, collection, audit=an_entry(collection))


def test_nothing_of_a_paused_collection_begins_until_it_is_resumed(
    store: SqliteRequestStore, queue: SqliteQueue, make: MakeBroker
) -> None:
    held, free = store.add(new_request()), store.add(new_request(collection="c2"))
    pause(store, "c1")
    broker = make()
    broker.turn()
    assert drain(queue) == [free.id]
    assert store.get(held.id).status is Status.WAITING
    assert store.positions("c1") == [held.id]
    resume(store, "c1")
    broker.turn()
    assert drain(queue) == [held.id]


def test_what_is_queued_waits_again_when_its_collection_is_paused_and_what_runs_goes_on(
    store: SqliteRequestStore, queue: SqliteQueue, make: MakeBroker
) -> None:
    running = start(store, store.add(new_request()))
    queued = [store.add(new_request()).id for _ in range(3)]
    broker = make()
    broker.turn()
    assert store.queued_count() == 3
    pause(store, "c1")
    broker.turn()
    assert {store.get(i).status for i in queued} == {Status.WAITING}
    assert store.get(running.id) == running
    resume(store, "c1")
    broker.turn()
    assert drain(queue) == queued, "in the old order"


def test_resuming_wakes_the_broker_at_once(
    store: SqliteRequestStore, queue: SqliteQueue, make: MakeBroker
) -> None:
    pause(store, "c1")
    store.add(new_request())
    stop = Stop()
    thread = threading.Thread(target=make(interval=30, lease=90).run, args=(stop,))
    with queue.listen(Topic.PUBLISHED) as published:
        thread.start()
        assert not published.wait(0.5)
        resume(store, "c1")
        begin = time.monotonic()
        queue.hint(Topic.MARKED, "c1")
        assert published.wait(10)
        assert time.monotonic() - begin < 5
    stop.request()
    thread.join(timeout=10)


def test_what_started_over_may_fail_as_often_as_before(
    store: SqliteRequestStore, make: MakeBroker
) -> None:
    broker = make(max_attempts=2)
    request = store.add(new_request())
    for attempt in (1, 2):
        start_queued_or_waiting(store, request.id)
        time.sleep(0.02)
        broker._due.clear()
        broker.turn()
        assert store.get(request.id).attempt == min(2, attempt + 1)
    failed = store.get(request.id)
    assert failed.status is Status.FAILED
    start_over(store, failed)
    start_queued_or_waiting(store, request.id)
    time.sleep(0.02)
    broker._due.clear()
    broker.turn()
    again = store.get(request.id)
    assert (again.status, again.attempt, again.tries) == (Status.QUEUED, 4, 2)
    assert again.message == "The worker was lost; this is attempt 2."


def start_queued_or_waiting(store: SqliteRequestStore, request_id: str) -> None:
    request = store.get(request_id)
    if request.status is Status.WAITING:
        enqueue(store, request)
    start_queued(store, request_id, lease_s=0.01)


def test_requests_of_a_removed_collection_fail_alone(
    store: SqliteRequestStore, queue: SqliteQueue, make: MakeBroker
) -> None:
    gone = store.add(new_request(collection="gone"))
    here = store.add(new_request())
    make().turn()
    assert store.get(gone.id).status is Status.FAILED
    assert "gone" in store.get(gone.id).message
    assert drain(queue) == [here.id]


def test_a_request_of_a_collection_that_is_not_known_yet_is_kept_for_a_while(
    store: SqliteRequestStore, queue: SqliteQueue, make: MakeBroker
) -> None:
    ids = [store.add(new_request(collection=name)).id for name in ("new", "never")]
    known: Current[Mapping[str, SomeLimits]] = Current({})
    broker = make(known, grace_s=60)
    broker.turn()
    assert {store.get(i).status for i in ids} == {Status.WAITING}
    known.replace({"new": SomeLimits()})
    broker.turn()
    assert drain(queue) == ids[:1]
    assert store.get(ids[1]).status is Status.WAITING


def test_old_requests_of_a_removed_collection_fail_although_newer_ones_are_kept(
    store: SqliteRequestStore, make: MakeBroker
) -> None:
    old = [store.add(new_request(collection="gone")).id for _ in range(60)]
    time.sleep(0.6)
    young = store.add(new_request(collection="gone", user=ANN)).id
    make(grace_s=0.5).turn()
    statuses = [store.get(i).status for i in old]
    assert Status.FAILED in statuses
    assert store.get(young).status is Status.WAITING


def test_a_request_whose_worker_died_is_tried_again_and_then_fails(
    store: SqliteRequestStore, queue: SqliteQueue, make: MakeBroker
) -> None:
    request = store.add(new_request())
    broker = make(max_attempts=2)
    start(store, request, lease_s=0.01)
    time.sleep(0.02)
    broker.turn()
    again = store.get(request.id)
    assert (again.status, again.attempt) == (Status.QUEUED, 2)
    running = start_queued(store, request.id, lease_s=0.01)
    assert running.attempt == 2
    time.sleep(0.02)
    make(max_attempts=2).turn()  # the first still holds the post
    broker._due.clear()
    broker.turn()
    failed = store.get(request.id)
    assert failed.status is Status.FAILED
    assert "2 times" in failed.message


def start_queued(store: SqliteRequestStore, request_id: str, *, lease_s: float) -> Request:
    attempt = store.get(request_id).attempt
    return store.apply(
        Step(
            id=request_id,
            source=Status.QUEUED,
            target=Status.PROCESSING,
            lease=Lease(holder="w", attempt=attempt),
            lease_s=lease_s,
        )
    )


def test_what_was_queued_but_never_published_is_published(
    store: SqliteRequestStore, queue: SqliteQueue, make: MakeBroker
) -> None:
    lost = enqueue(store, store.add(new_request()))
    make().turn()
    assert drain(queue) == [lost.id]


def test_too_old_requests_fail(store: SqliteRequestStore, make: MakeBroker) -> None:
    waiting = store.add(new_request())
    time.sleep(0.03)
    make({"c1": SomeLimits(total=0)}, max_age=0.02).turn()
    assert store.get(waiting.id).status is Status.FAILED
    assert "did not finish" in store.get(waiting.id).message


def test_those_in_front_are_told_their_place(store: SqliteRequestStore, make: MakeBroker) -> None:
    ids = [store.add(new_request()).id for _ in range(3)]
    broker = make({"c1": SomeLimits(total=0)})
    broker.turn()
    assert store.positions("c1") == ids


def test_only_one_of_two_is_active(
    store: SqliteRequestStore, queue: SqliteQueue, make: MakeBroker
) -> None:
    one, two = make(), make()
    one.turn()
    store.add(new_request())
    two.turn()
    assert drain(queue) == []
    one.turn()
    assert len(drain(queue)) == 1


def test_a_submission_wakes_the_broker_at_once(
    store: SqliteRequestStore, queue: SqliteQueue, make: MakeBroker
) -> None:
    stop = Stop()
    broker = make(interval=30, lease=90)
    with queue.listen(Topic.PUBLISHED) as published:
        thread = threading.Thread(target=broker.run, args=(stop,))
        thread.start()
        deadline = time.monotonic() + 10
        while not broker._active:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        begin = time.monotonic()
        request = store.add(new_request())
        queue.hint(Topic.SUBMITTED, request.id)
        assert published.wait(10)
        assert time.monotonic() - begin < 5
        stop.request()
        thread.join(timeout=10)
    assert not thread.is_alive()
    assert store.take_post("broker", "other", duration_s=1), "the post was not given up"


def test_finished_requests_make_room(
    store: SqliteRequestStore, queue: SqliteQueue, make: MakeBroker
) -> None:
    for _ in range(3):
        store.add(new_request())
    broker = make({"c1": SomeLimits(per_user=1)})
    broker.turn()
    (first,) = drain(queue)
    broker.turn()
    assert drain(queue) == []
    finish(store, start_queued(store, first, lease_s=10))
    broker.turn()
    assert len(drain(queue)) == 1
