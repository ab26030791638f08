"""What one scheduling cycle costs, with a hundred times the backlog."""

import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from benchmarks.options import Options, main
from benchmarks.table import Figure, at_most, ratio_at_most, show
from polytope_server.broker.loop import Broker
from polytope_server.collection import Limits
from polytope_server.config.embedded import SqliteQueueSection, SqliteStoreSection
from polytope_server.config.model import BrokerSection
from polytope_server.errors import ConfigurationError
from polytope_server.observability.metrics import Metrics
from polytope_server.queue.sqlite import SqliteQueue
from polytope_server.reloading import Current
from polytope_server.request import Request, Status, Step, Verb
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.user import User

WAITING = 100_000
REFERENCE = 1_000
USERS = 1_000
FREE = 40
CYCLES = 10
"""In each run; the median counts."""


def measure(options: Options) -> bool:
    """Budget: 50 ms, and twice a cycle over 1,000 waiting requests."""
    if options.config:
        raise ConfigurationError(
            "scheduling: fills the store with 100,000 requests, so it only measures one of its own"
        )
    cycles: list[float] = []
    reference: list[float] = []
    positions: list[float] = []
    with tempfile.TemporaryDirectory(prefix="polytope-bench-") as temporary:
        full, small = Path(temporary) / "full", Path(temporary) / "small"
        _fill(full, WAITING)
        _fill(small, REFERENCE)
        for run in range(options.runs):
            with _copied(full, run) as store, _copied(small, run) as few:
                # in turn, so that whatever else the machine does meets both
                pairs = [(_cycle(store), _cycle(few)) for _ in range(CYCLES)]
                cycles.append(_median(first for first, _ in pairs))
                reference.append(_median(second for _, second in pairs))
                positions.append(_told(store))
    title = f"scheduling: {WAITING:,} waiting requests of {USERS:,} users, {FREE} free slots"
    few_waiting = f"{REFERENCE:,} waiting"
    return show(
        title,
        [
            Figure(name="one cycle", unit="ms", runs=cycles, budget=at_most(50, "ms")),
            Figure(
                name="the same",
                unit="ms",
                runs=cycles,
                reference=reference,
                reference_name=few_waiting,
                budget=ratio_at_most(2),
            ),
            Figure(name="a cycle that tells positions, too", unit="ms", runs=positions),
        ],
        file=options.json,
    )


class _Store:
    """A store, a queue and the broker over them."""

    def __init__(self, directory: Path) -> None:
        self.store = SqliteRequestStore(SqliteStoreSection(path=directory / "requests.sqlite"))
        self.queue = SqliteQueue(SqliteQueueSection(path=directory / "queue.sqlite"))
        self.broker = Broker(
            store=self.store,
            queue=self.queue,
            limits=Current({"c": Limits(per_role={})}),
            settings=BrokerSection(max_queued=FREE),
            metrics=Metrics(),
            grace_s=0,
        )
        self.broker.turn()  # becomes the active one, and does what is due now and then
        self.finish_all()

    def finish_all(self) -> None:
        """Whatever is queued ends, and as many wait again."""
        ids = [request_id for request_id, _ in self.store.queued_since(time.time(), limit=FREE)]
        self.store.apply_each(
            [Step(id=i, source=Status.QUEUED, target=Status.FAILED, message="") for i in ids]
        )
        while (delivery := self.queue.receive()) is not None:
            self.queue.acknowledge(delivery)
        for number in range(len(ids)):
            self.store.add(_request(number))


def _cycle(made: _Store) -> float:
    """Milliseconds of a cycle that queues as many requests as there is room for."""
    begin = time.perf_counter()
    made.broker.turn()
    elapsed = 1000 * (time.perf_counter() - begin)
    if made.store.queued_count() != FREE:
        raise AssertionError("the cycle has not filled the queue")
    made.finish_all()
    return elapsed


def _told(made: _Store) -> float:
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


def _fill(directory: Path, count: int) -> None:
    store = SqliteRequestStore(SqliteStoreSection(path=directory / "requests.sqlite"))
    for number in range(count):
        store.add(_request(number))


@contextlib.contextmanager
def _copied(directory: Path, run: int) -> Iterator[_Store]:
    copy = directory.with_name(f"{directory.name}-{run}")
    shutil.copytree(directory, copy)
    try:
        yield _Store(copy)
    finally:
        shutil.rmtree(copy)


def _median(values: Iterator[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


if __name__ == "__main__":
    main(__doc__, measure)
