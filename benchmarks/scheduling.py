"""What one scheduling cycle costs, with a hundred times the backlog."""

import contextlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.options import Options, main
from benchmarks.table import Figure, at_most, ratio_at_most, show
from polytope_server.broker.loop import Broker
from polytope_server.collection import Limits
from polytope_server.config.embedded import SqliteQueueSection, SqliteStoreSection
from polytope_server.config.loading import load
from polytope_server.config.model import BrokerSection
from polytope_server.errors import ConfigurationError
from polytope_server.lifecycle import Stop, open_chosen
from polytope_server.observability.metrics import Metrics
from polytope_server.queue import Queue
from polytope_server.queue.sqlite import SqliteQueue
from polytope_server.reloading import Current
from polytope_server.request import Request, Status, Step, Verb
from polytope_server.request_store import RequestStore, Wanted
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.user import User

WAITING = 100_000
OTHERS_WAITING = 5_000
"""Where the store is not the embedded one: a test server may be slow to fill."""
REFERENCE = 1_000
USERS = 1_000
FREE = 40
CYCLES = 10
"""In each run; the median counts."""
OTHERS_CYCLES = 3
"""The same where each of them, and filling up again after it, may take a second."""


def measure(options: Options) -> bool:
    """Budget, embedded: 50 ms, and twice a cycle over 1,000 waiting requests."""
    if options.config:
        raise ConfigurationError(
            "fills a store with requests, so it does not measure a deployment; --back-ends"
            " names a configuration whose store is empty"
        )
    is_embedded = not options.back_ends
    waiting = options.waiting or (WAITING if is_embedded else OTHERS_WAITING)
    measured = _embedded(options.runs, waiting) if is_embedded else _others(options, waiting)
    few_waiting = f"{REFERENCE:,} waiting"
    return show(
        f"scheduling: {waiting:,} waiting requests of {USERS:,} users, {FREE} free slots",
        [
            Figure(
                name="one cycle",
                unit="ms",
                runs=measured.cycles,
                budget=at_most(50, "ms") if is_embedded else None,
            ),
            Figure(
                name="the same",
                unit="ms",
                runs=measured.cycles,
                reference=measured.reference,
                reference_name=few_waiting,
                budget=ratio_at_most(2),
            ),
            Figure(name="a cycle that tells positions, too", unit="ms", runs=measured.positions),
        ],
        file=options.json,
    )


@dataclass(slots=True)
class _Measured:
    """Milliseconds, one of each run."""

    cycles: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    positions: list[float] = field(default_factory=list)


def _embedded(runs: int, waiting: int) -> _Measured:
    """Of two stores in turn, so that whatever else the machine does meets both; each run of fresh copies."""
    measured = _Measured()
    with tempfile.TemporaryDirectory(prefix="polytope-bench-") as temporary:
        full, small = Path(temporary) / "full", Path(temporary) / "small"
        for directory, count in ((full, waiting), (small, REFERENCE)):
            _opened(directory).fill(count)
        for run in range(runs):
            with _copied(full, run) as many, _copied(small, run) as few:
                pairs = [(_cycle(many), _cycle(few)) for _ in range(CYCLES)]
                measured.cycles.append(_median(first for first, _ in pairs))
                measured.reference.append(_median(second for _, second in pairs))
                measured.positions.append(_told(many))
    return measured


def _others(options: Options, waiting: int) -> _Measured:
    """Of one store that is filled further after the reference; what was put there is removed."""
    config = load(options.back_ends, strict=True, environ=os.environ).config
    store = open_chosen("request_store", config.request_store, stop=Stop())
    queue = open_chosen("queue", config.queue, stop=Stop())
    if store.counts(Wanted()) or queue.size():
        raise ConfigurationError(
            "the request store or the queue is in use; it only fills those that are empty"
        )
    measured, made = _Measured(), _Made(store, queue)
    try:
        made.fill(REFERENCE)
        made.begin()
        for _ in range(options.runs):
            measured.reference.append(_median(_cycle(made) for _ in range(OTHERS_CYCLES)))
        made.fill(waiting - REFERENCE)
        for _ in range(options.runs):
            measured.cycles.append(_median(_cycle(made) for _ in range(OTHERS_CYCLES)))
            measured.positions.append(_told(made))
    finally:
        made.clear()
    return measured


class _Made:
    """A store, a queue and the broker over them."""

    def __init__(self, store: RequestStore, queue: Queue) -> None:
        self.store, self.queue = store, queue
        self._ids: list[str] = []
        self.broker = Broker(
            store=self.store,
            queue=self.queue,
            limits=Current({"c": Limits(per_role={})}),
            settings=BrokerSection(max_queued=FREE),
            metrics=Metrics(),
            grace_s=0,
        )

    def begin(self) -> None:
        """Become the active one, and do what is due now and then."""
        self.broker.turn()
        self.finish_all()

    def fill(self, count: int) -> None:
        for number in range(count):
            self._ids.append(self.store.add(_request(number)).id)

    def finish_all(self) -> None:
        """Whatever is queued ends, and as many wait again."""
        ids = [request_id for request_id, _ in self.store.queued_since(time.time(), limit=FREE)]
        self.store.apply_each(
            [Step(id=i, source=Status.QUEUED, target=Status.FAILED, message="") for i in ids]
        )
        while (delivery := self.queue.receive()) is not None:
            self.queue.acknowledge(delivery)
        self.fill(len(ids))

    def clear(self) -> None:
        """Remove all that was put there."""
        self.finish_all()
        for request_id in self._ids:
            self.store.remove(request_id)


def _cycle(made: _Made) -> float:
    """Milliseconds of a cycle that queues as many requests as there is room for."""
    begin = time.perf_counter()
    made.broker.turn()
    elapsed = 1000 * (time.perf_counter() - begin)
    if made.store.queued_count() != FREE:
        raise AssertionError("the cycle has not filled the queue")
    made.finish_all()
    return elapsed


def _told(made: _Made) -> float:
    """Milliseconds of a cycle in which everything is due that a broker does once a second."""
    time.sleep(1.1)
    return _cycle(made)


def _request(number: int) -> Request:
    return Request(
        id=str(uuid.uuid4()),
        user=User(username=f"user-{number % USERS}", realm="bench"),
        verb=Verb.RETRIEVE,
        collection="c",
        datasource="echo",
        user_request="hello",
        coerced_request={},
        status=Status.WAITING,
    )


def _opened(directory: Path) -> _Made:
    return _Made(
        SqliteRequestStore(SqliteStoreSection(path=directory / "requests.sqlite")),
        SqliteQueue(SqliteQueueSection(path=directory / "queue.sqlite")),
    )


@contextlib.contextmanager
def _copied(directory: Path, run: int) -> Iterator[_Made]:
    copy = directory.with_name(f"{directory.name}-{run}")
    shutil.copytree(directory, copy)
    try:
        made = _opened(copy)
        made.begin()
        yield made
    finally:
        shutil.rmtree(copy)


def _median(values: Iterator[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


if __name__ == "__main__":
    main(__doc__, measure)
