"""Back-ends behind the proxy: the same to their callers, and every call is told."""

import time
from pathlib import Path

import pytest

from polytope_server.config.embedded import SqliteQueueSection
from polytope_server.config.staging import LocalStagingSection
from polytope_server.errors import BackendUnavailable, ObjectNotFound, StepLost, StorageFull
from polytope_server.observability.backends import observed
from polytope_server.observability.metrics import Metrics
from polytope_server.queue import Queue
from polytope_server.queue.sqlite import SqliteQueue
from polytope_server.staging import Staging
from polytope_server.staging.local import LocalStaging
from polytope_server.testing.queue import QueueContract
from polytope_server.testing.staging import StagingContract


def seen_queue(directory: Path) -> Queue:
    queue = SqliteQueue(SqliteQueueSection(path=directory / "q.sqlite"))
    seen: Queue = observed(queue, abstraction="queue", name="sqlite", metrics=Metrics())
    return seen


def seen_staging(directory: Path) -> Staging:
    staging = LocalStaging(LocalStagingSection(root_dir=directory))
    seen: Staging = observed(staging, abstraction="staging", name="local", metrics=Metrics())
    return seen


class TestQueue(QueueContract):
    @pytest.fixture
    def queue(self, tmp_path: Path) -> Queue:
        return seen_queue(tmp_path)

    @pytest.fixture
    def again(self, tmp_path: Path) -> Queue:
        return seen_queue(tmp_path)


class TestStaging(StagingContract):
    @pytest.fixture
    def staging(self, tmp_path: Path) -> Staging:
        return seen_staging(tmp_path)

    @pytest.fixture
    def again(self, tmp_path: Path) -> Staging:
        return seen_staging(tmp_path)


class Moody:
    """Fails as it is told."""

    realm = "r"

    def __init__(self) -> None:
        self.error: Exception | None = None

    def delete(self, name: str) -> str:
        if self.error is not None:
            raise self.error
        return name

    def _private(self) -> int:
        return 7


def counted(metrics: Metrics, sample: str) -> dict[tuple[str, ...], float]:
    """By the values of the labels, in their order."""
    return {
        tuple(each.labels[name] for name in sorted(each.labels)): each.value
        for family in metrics.registry.collect()
        for each in family.samples
        if each.name == sample
    }


def test_only_what_time_or_the_operator_can_put_right_is_an_error() -> None:
    moody, metrics = Moody(), Metrics()
    seen = observed(moody, abstraction="queue", name="moody", metrics=metrics)
    assert seen.delete("x") == "x"
    for error in (
        BackendUnavailable("away"),
        StorageFull("full"),
        RuntimeError("broken"),
        StepLost("an answer"),
        ObjectNotFound("an answer"),
    ):
        moody.error = error
        with pytest.raises(type(error)):
            seen.delete("x")
    assert counted(metrics, "polytope_backend_errors_total") == {
        ("queue", "moody", "delete", "away"): 1,
        ("queue", "moody", "delete", "full"): 1,
        ("queue", "moody", "delete", "broken"): 1,
    }
    assert counted(metrics, "polytope_backend_call_seconds_count") == {
        ("queue", "moody", "delete"): 6
    }


def test_everything_else_is_handed_through() -> None:
    seen = observed(Moody(), abstraction="queue", name="moody", metrics=Metrics())
    assert (seen.realm, seen._private(), seen.error) == ("r", 7, None)
    with pytest.raises(AttributeError):
        _ = seen.no_such_thing


def test_an_object_is_followed_to_its_end(tmp_path: Path) -> None:
    metrics = Metrics()
    staging: Staging = observed(
        LocalStaging(LocalStagingSection(root_dir=tmp_path)),
        abstraction="staging",
        name="local",
        metrics=metrics,
    )
    with staging.create("a.bin", media_type="") as upload:
        for _ in range(3):
            upload.write(b"x" * 1000)
        upload.commit()
    assert b"".join(staging.read("a.bin")) == b"x" * 3000
    with staging.create("b.bin", media_type="") as upload:
        late = upload
    with pytest.raises(BackendUnavailable):
        late.write(b"x")
    counts = {
        key[-1]: n for key, n in counted(metrics, "polytope_backend_call_seconds_count").items()
    }
    assert counts == {
        "create": 2,
        "begin": 2,
        "write": 4,
        "commit": 1,
        "read": 1,
        "read_chunk": 2,
    }
    assert counted(metrics, "polytope_backend_errors_total") == {
        ("staging", "local", "write", "away"): 1
    }


def test_it_adds_some_microseconds_to_a_call() -> None:
    moody = Moody()
    seen = observed(moody, abstraction="queue", name="moody", metrics=Metrics())

    def seconds(calls: int = 2000) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            seen.delete("x")
        return (time.perf_counter() - begin) / calls

    assert min(seconds() for _ in range(20)) < 20e-6
