"""What a broker tells the metrics and the traces of requests, over real embedded back-ends."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread

import pytest

from polytope_server.broker.backlog import Backlog
from polytope_server.broker.loop import Broker
from polytope_server.config.embedded import SqliteQueueSection, SqliteStoreSection
from polytope_server.config.model import BrokerSection
from polytope_server.lifecycle import Stop
from polytope_server.observability.families import BROKER
from polytope_server.observability.metrics import Metrics
from polytope_server.observability.tracing import Span
from polytope_server.queue.sqlite import SqliteQueue
from polytope_server.reloading import Current
from polytope_server.request import Status
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.testing.request_store import enqueue, new_request, start
from polytope_server.user import User


class NoLimits:
    total = None

    def for_user(self, _user: User) -> int:
        return 0


class Told:
    """Keeps the spans, by request."""

    def __init__(self) -> None:
        self.spans: dict[str, list[Span]] = {}

    def wants(self, request_id: str) -> bool:
        return bool(request_id)

    def submitted(self, request_id: str, span: Span) -> None:
        raise AssertionError("a broker submits nothing")

    def add(self, request_id: str, *spans: Span) -> None:
        self.spans.setdefault(request_id, []).extend(spans)

    def removed(self, request_ids: Sequence[str], span: Span) -> None:
        raise AssertionError("a broker removes nothing")

    def close(self) -> None:
        """Nothing to do."""


@pytest.fixture
def store(tmp_path: Path) -> SqliteRequestStore:
    return SqliteRequestStore(SqliteStoreSection(path=tmp_path / "r.sqlite"))


@pytest.fixture
def queue(tmp_path: Path) -> SqliteQueue:
    return SqliteQueue(SqliteQueueSection(path=tmp_path / "q.sqlite"))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(BROKER)


@pytest.fixture
def told() -> Told:
    return Told()


MakeBroker = Callable[..., Broker]


@pytest.fixture
def make(store: SqliteRequestStore, queue: SqliteQueue, metrics: Metrics, told: Told) -> MakeBroker:
    def make(*collections: str, **settings: float) -> Broker:
        return Broker(
            store=store,
            queue=queue,
            limits=Current({name: NoLimits() for name in collections}),
            settings=BrokerSection.model_validate(settings),
            metrics=metrics,
            grace_s=0.0,
            traces=told,
        )

    return make


def values(metrics: Metrics, sample: str) -> Mapping[tuple[str, ...], float]:
    return {
        tuple(each.labels.values()): each.value
        for family in metrics.registry.collect()
        for each in family.samples
        if each.name == sample
    }


def test_what_is_unfinished_is_counted_and_what_is_not_there_is_0(
    store: SqliteRequestStore, queue: SqliteQueue, metrics: Metrics
) -> None:
    first = store.add(new_request())
    store.add(new_request())
    enqueue(store, store.add(new_request(collection="gone")))
    Backlog(store=store, queue=queue, collections=lambda: ["c1", "c2"], metrics=metrics).tell()
    unfinished = values(metrics, "polytope_requests_unfinished")
    assert {key: count for key, count in unfinished.items() if count} == {
        ("c1", "waiting"): 2,
        ("gone", "queued"): 1,
    }
    assert len(unfinished) == 2 * 4 + 1
    ages = values(metrics, "polytope_oldest_request_age_seconds")
    assert 0 < ages["c1", "waiting"] <= time.time() - first.created_at
    assert ages["c2", "waiting"] == ages["c1", "queued"] == 0
    assert values(metrics, "polytope_queue_messages") == {(): 0}


def test_only_the_active_broker_tells_of_it(
    store: SqliteRequestStore, metrics: Metrics, make: MakeBroker
) -> None:
    store.take_post("broker", "another one", duration_s=60)
    stop = Stop()
    thread = Thread(target=make("c1", interval=0.05).run, args=(stop,))
    thread.start()
    try:
        _until(lambda: values(metrics, "polytope_broker_active") == {(): 0})
        assert values(metrics, "polytope_requests_unfinished") == {}
        store.leave_post("broker", "another one")
        _until(lambda: values(metrics, "polytope_requests_unfinished") != {})
        assert values(metrics, "polytope_broker_active") == {(): 1}
    finally:
        stop.request()
        thread.join(timeout=30)


def test_the_time_that_requests_wait_is_told(
    store: SqliteRequestStore, metrics: Metrics, make: MakeBroker, told: Told
) -> None:
    waiting = store.add(new_request())
    make("c1").turn()
    queued = store.get(waiting.id)
    assert values(metrics, "polytope_requests_total") == {("c1", "queued"): 1}
    waited_s = queued.modified_at - waiting.modified_at
    assert values(metrics, "polytope_request_status_seconds_sum") == {
        ("c1", "waiting"): pytest.approx(waited_s)
    }
    (span,) = told.spans[waiting.id]
    assert (span.name, span.start, span.end, span.failed) == (
        "waiting",
        waiting.modified_at,
        queued.modified_at,
        False,
    )


def test_a_lost_worker_is_told_for_each_of_its_requests(
    store: SqliteRequestStore, metrics: Metrics, make: MakeBroker, told: Told
) -> None:
    lost = [start(store, store.add(new_request()), lease_s=0.01) for _ in range(3)]
    last = [start(store, store.add(new_request(collection="c2")), lease_s=0.01)]
    _until(lambda: len(store.expired_leases(limit=10)) == 4)
    make("c1", "c2", max_attempts=1).turn()
    assert values(metrics, "polytope_expired_leases_total") == {(): 4}
    assert values(metrics, "polytope_requests_total") == {("c1", "failed"): 3, ("c2", "failed"): 1}
    assert values(metrics, "polytope_request_duration_seconds_count") == {("failed",): 4}
    for request in (*lost, *last):
        (span,) = told.spans[request.id]
        assert (span.name, span.start, span.failed) == ("processing", request.modified_at, True)


def test_what_fails_for_its_age_or_its_collection_is_timed(
    store: SqliteRequestStore, metrics: Metrics, make: MakeBroker
) -> None:
    store.add(new_request(collection="gone"))
    make("c1").turn()
    assert values(metrics, "polytope_requests_total") == {("gone", "failed"): 1}
    assert values(metrics, "polytope_request_status_seconds_count") == {("gone", "waiting"): 1}


def test_what_is_published_again_is_counted(
    store: SqliteRequestStore, queue: SqliteQueue, metrics: Metrics, make: MakeBroker
) -> None:
    for _ in range(3):
        enqueue(store, store.add(new_request()))
    make("c1").turn()
    assert values(metrics, "polytope_republished_messages_total") == {(): 3}
    assert queue.size() == 3
    assert {store.get(d.message.id).status for d in [queue.receive()] if d} == {Status.QUEUED}


def _until(condition: Callable[[], bool], *, within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
