"""The collector over the real store and staging: what it removes, what it leaves, what a kill leaves."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytope_server.config.embedded import SqliteQueueSection, SqliteStoreSection
from polytope_server.config.model import GarbageCollectorSection
from polytope_server.config.staging import LocalStagingSection
from polytope_server.errors import ObjectNotFound, RequestNotFound
from polytope_server.garbage_collector.loop import Collector, Report
from polytope_server.garbage_collector.policies import ours, surplus
from polytope_server.observability.metrics import Metrics
from polytope_server.queue.sqlite import SqliteQueue
from polytope_server.reloading import Current
from polytope_server.request import BINARY, DataObject, Request, Status, Step, Verb
from polytope_server.request import input_name as name_of_input
from polytope_server.request_store import Staged
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.staging import Staging, StoredObject
from polytope_server.staging.local import LocalStaging
from polytope_server.testing.request_store import (
    an_object,
    enqueue,
    finish,
    new_request,
    start,
    start_over,
)

Collect = Callable[..., Report]


@pytest.fixture
def store(tmp_path: Path) -> SqliteRequestStore:
    return SqliteRequestStore(SqliteStoreSection(path=tmp_path / "r.sqlite"))


@pytest.fixture
def staging(tmp_path: Path) -> LocalStaging:
    return LocalStaging(LocalStagingSection(root_dir=tmp_path / "staging"))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def collect(
    tmp_path: Path, store: SqliteRequestStore, staging: LocalStaging, said: list[str]
) -> Collect:
    def collect(*, dry_run: bool = False, **ages: float) -> Report:
        given = {"age": 3600, "dangling_age": 3600, "upload_age": 3600, **ages}
        section = GarbageCollectorSection().model_copy(  # not checked: ages below a second
            update={"interval": 1.0, "threshold": 10**12, **given}
        )
        return Collector(
            store=store,
            staging=staging,
            queue=SqliteQueue(SqliteQueueSection(path=tmp_path / "q.sqlite")),
            settings=Current(section),
            metrics=Metrics(),
            say=said.append,
        ).collect(dry_run=dry_run)

    return collect


def put(staging: Staging, name: str, size: int = 10) -> str:
    with staging.create(name, media_type=BINARY) as upload:
        upload.write(b"x" * size)
        upload.commit()
    return name


def a_finished_request(store: SqliteRequestStore, staging: Staging, *, size: int = 10) -> Request:
    request = store.add(new_request(request_id=str(uuid.uuid4())))
    name = put(staging, f"{request.id}-1.grib", size)
    return finish(store, start(store, request), result=an_object(name, size_bytes=size))


def is_there(staging: Staging, name: str) -> bool:
    try:
        staging.stat(name)
    except ObjectNotFound:
        return False
    return True


def is_known(store: SqliteRequestStore, request: Request) -> bool:
    try:
        store.get(request.id)
    except RequestNotFound:
        return False
    return True


def test_old_finished_requests_go_with_their_data(
    store: SqliteRequestStore, staging: LocalStaging, collect: Collect
) -> None:
    request = a_finished_request(store, staging)
    waiting = store.add(new_request())
    assert collect() == Report()
    time.sleep(0.02)
    report = collect(age=0.01)
    assert (report.old, report.size_bytes) == (1, 10)
    assert not is_known(store, request)
    assert not is_there(staging, f"{request.id}-1.grib")
    assert is_known(store, waiting)


def test_over_the_threshold_the_oldest_results_go_and_no_more(
    store: SqliteRequestStore, staging: LocalStaging, collect: Collect
) -> None:
    requests = [a_finished_request(store, staging, size=100) for _ in range(5)]
    report = collect(threshold=250)
    assert report.surplus == 3
    assert [is_known(store, request) for request in requests] == [False] * 3 + [True] * 2
    assert len(staging.list("")) == 2
    assert collect(threshold=250).surplus == 0


def test_no_result_goes_for_what_would_stay_all_the_same(
    store: SqliteRequestStore, staging: LocalStaging, collect: Collect
) -> None:
    up = store.add(
        new_request(request_id=str(uuid.uuid4()), status=Status.UPLOADING, verb=Verb.ARCHIVE)
    )
    put(staging, name_of_input("", up.id, uuid.uuid4().hex), 10_000)
    put(staging, f"{uuid.uuid4()}-1.grib", 10_000)
    running = start(store, store.add(new_request(request_id=str(uuid.uuid4()))))
    put(staging, f"{running.id}-1.grib", 10_000)
    requests = [a_finished_request(store, staging, size=100) for _ in range(2)]
    for dry_run in (True, False):
        assert collect(threshold=1000, dry_run=dry_run) == Report()
        assert all(is_known(store, request) for request in requests)
    assert collect(threshold=150).surplus == 1


def test_what_is_being_written_and_inputs_of_waiting_requests_stay(
    store: SqliteRequestStore, staging: LocalStaging, collect: Collect
) -> None:
    running = start(store, store.add(new_request(request_id=str(uuid.uuid4()))))
    put(staging, f"{running.id}-1.grib", 100)
    up = store.add(
        new_request(request_id=str(uuid.uuid4()), status=Status.UPLOADING, verb=Verb.ARCHIVE)
    )
    name = put(staging, name_of_input("", up.id, uuid.uuid4().hex), 100)
    data = DataObject(name=name, media_type=BINARY, size_bytes=100, sha256="", md5="m")
    store.apply(Step(id=up.id, source=Status.UPLOADING, target=Status.WAITING, input=data))
    time.sleep(0.02)
    assert collect(threshold=1, dangling_age=0.01) == Report()
    assert len(staging.list("")) == 2


def test_inputs_of_finished_requests_go_and_their_checksum_stays(
    store: SqliteRequestStore, staging: LocalStaging, collect: Collect
) -> None:
    up = store.add(
        new_request(request_id=str(uuid.uuid4()), status=Status.UPLOADING, verb=Verb.ARCHIVE)
    )
    name = put(staging, name_of_input("", up.id, uuid.uuid4().hex))
    data = DataObject(name=name, media_type=BINARY, size_bytes=10, sha256="", md5="m")
    store.apply(Step(id=up.id, source=Status.UPLOADING, target=Status.WAITING, input=data))
    finish(store, start(store, up), target=Status.FAILED)
    time.sleep(0.02)
    assert collect(dangling_age=0.01).inputs == 1
    assert not is_there(staging, name)
    known = store.get(up.id).input
    assert known is not None
    assert (known.name, known.md5) == ("", "m")


class JustThen(SqliteRequestStore):
    """The real store, to which something happens right after the collector has read from it."""

    happens: Callable[[], object] = staticmethod(lambda: None)

    def get_many(self, ids: Collection[str]) -> Mapping[str, Request]:
        found = super().get_many(ids)
        self.happens()
        return found


def test_the_input_of_a_request_that_just_then_starts_over_stays(
    tmp_path: Path, staging: LocalStaging
) -> None:
    store = JustThen(SqliteStoreSection(path=tmp_path / "r.sqlite"))
    up = store.add(
        new_request(request_id=str(uuid.uuid4()), status=Status.UPLOADING, verb=Verb.ARCHIVE)
    )
    data = an_object(put(staging, name_of_input("", up.id, uuid.uuid4().hex)))
    store.apply(Step(id=up.id, source=Status.UPLOADING, target=Status.WAITING, input=data))
    failed = finish(store, start(store, up), target=Status.FAILED)
    store.happens = lambda: start_over(store, failed)
    collector = Collector(
        store=store,
        staging=staging,
        queue=SqliteQueue(SqliteQueueSection(path=tmp_path / "q.sqlite")),
        settings=Current(GarbageCollectorSection().model_copy(update={"dangling_age": 0.0})),
        metrics=Metrics(),
        say=print,
    )
    assert collector.collect() == Report()
    assert is_there(staging, data.name)
    assert store.get(up.id).input == data
    store.happens = lambda: None
    finish(store, start(store, store.get(up.id)))
    assert collector.collect().inputs == 1
    assert not is_there(staging, data.name)


def test_objects_of_no_request_go_when_they_are_old_and_ours(
    store: SqliteRequestStore, staging: LocalStaging, collect: Collect
) -> None:
    dangling = put(staging, f"{uuid.uuid4()}-3.covjson")
    foreign = [put(staging, name) for name in ("somebody-elses.grib", f"{uuid.uuid4()}.grib")]
    lost = a_finished_request(store, staging)
    earlier = put(staging, f"{lost.id}-7.grib")
    assert collect() == Report()
    time.sleep(0.02)
    report = collect(dangling_age=0.01)
    assert report.dangling == 2
    assert not is_there(staging, dangling)
    assert not is_there(staging, earlier)
    assert all(is_there(staging, name) for name in foreign)
    assert is_there(staging, f"{lost.id}-1.grib")


def test_requests_whose_data_never_came_fail(store: SqliteRequestStore, collect: Collect) -> None:
    up = store.add(new_request(status=Status.UPLOADING, verb=Verb.ARCHIVE))
    time.sleep(0.02)
    assert collect(upload_age=0.01).stale_uploads == 1
    failed = store.get(up.id)
    assert failed.status is Status.FAILED
    assert "did not arrive" in failed.message


def test_a_dry_run_says_all_and_does_nothing(
    store: SqliteRequestStore, staging: LocalStaging, collect: Collect, said: list[str]
) -> None:
    old = a_finished_request(store, staging)
    dangling = put(staging, f"{uuid.uuid4()}-3.grib")
    up = store.add(new_request(status=Status.UPLOADING, verb=Verb.ARCHIVE))
    time.sleep(0.02)
    report = collect(dry_run=True, age=0.01, dangling_age=0.01, upload_age=0.01)
    assert (report.old, report.dangling, report.stale_uploads) == (1, 1, 1)
    for name in (old.id, dangling, up.id):
        assert any(name in line for line in said)
    assert is_known(store, old)
    assert is_there(staging, dangling)
    assert store.get(up.id).status is Status.UPLOADING


def test_a_page_is_no_limit(
    store: SqliteRequestStore, staging: LocalStaging, collect: Collect
) -> None:
    for _ in range(1203):
        put(staging, f"{uuid.uuid4()}-1.bin", 1)
    time.sleep(0.02)
    assert collect(dangling_age=0.01).dangling == 1203


def test_a_collector_killed_in_the_middle_leaves_nothing_for_ever(
    tmp_path: Path, store: SqliteRequestStore, staging: LocalStaging, collect: Collect
) -> None:
    kept = store.add(new_request())
    for _ in range(150):
        a_finished_request(store, staging)
    time.sleep(1.1)
    config = tmp_path / "gc.yaml"
    config.write_text(
        f"request_store: {{sqlite: {{path: {tmp_path / 'r.sqlite'}}}}}\n"
        f"queue: {{sqlite: {{path: {tmp_path / 'q.sqlite'}}}}}\n"
        f"staging: {{local: {{root_dir: {tmp_path / 'staging'}}}}}\n"
        "garbage-collector: {age: 1s, interval: 1s, dangling_age: 1s}\n"
    )
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "polytope_server.garbage_collector", "-f", str(config)],
            stdout=log,
            stderr=log,
        )
    deadline = time.monotonic() + 60
    while len(staging.list("")) > 140:
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        assert process.poll() is None, (tmp_path / "log").read_text()
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    for request in store.requests_of(kept.user.id):
        if request.result is not None:
            assert is_there(staging, request.result.name), "announced, but not there"
    collect(age=0.01, dangling_age=0.01)
    assert staging.list("") == []
    assert store.count(kept.user.id) == 1


SIZES = st.lists(st.integers(0, 100), max_size=20)


@given(SIZES, st.integers(1, 500), st.integers(0, 200))
@settings(deadline=None)
def test_just_enough_goes(sizes: list[int], limit: int, other: int) -> None:
    staged = [
        Staged(id=str(n), name=str(n), size_bytes=size, modified_at=float(n))
        for n, size in enumerate(sizes)
    ]
    total = sum(sizes) + other
    gone = list(surplus(staged, total_bytes=total, limit_bytes=limit))
    assert gone == staged[: len(gone)]
    left = total - sum(each.size_bytes for each in gone)
    assert left < limit or len(gone) == len(staged)
    if gone:
        assert left + gone[-1].size_bytes >= limit


@given(st.text(max_size=60))
@settings(deadline=None)
def test_no_name_but_ours_is_touched(name: str) -> None:
    stored = StoredObject(name=name, size_bytes=1, modified_at=0)
    assert list(ours([stored])) == []


def test_a_waiting_request_is_never_collected(
    store: SqliteRequestStore, staging: LocalStaging, collect: Collect
) -> None:
    requests = [store.add(new_request()), enqueue(store, store.add(new_request()))]
    time.sleep(0.02)
    assert collect(age=0.01, upload_age=0.01) == Report()
    assert all(is_known(store, request) for request in requests)
