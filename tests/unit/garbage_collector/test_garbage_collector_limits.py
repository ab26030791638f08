"""The collector with much to do, with a back-end away, asked to stop, and killed again and again."""

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polytope_server.config.embedded import SqliteQueueSection, SqliteStoreSection
from polytope_server.config.model import GarbageCollectorSection
from polytope_server.config.staging import LocalStagingSection
from polytope_server.errors import BackendUnavailable
from polytope_server.garbage_collector.loop import Collector
from polytope_server.lifecycle import Stop
from polytope_server.observability.metrics import Metrics
from polytope_server.queue import Topic
from polytope_server.queue.sqlite import SqliteQueue
from polytope_server.reloading import Current
from polytope_server.request import (
    BINARY,
    GRIB,
    DataObject,
    Request,
    Status,
    Step,
    Verb,
    input_name,
    result_name,
)
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.staging.local import LocalStaging
from polytope_server.testing.request_store import JOE, an_object, finish, new_request, start

LONG_AGO_S = 7200.0


class TellingStaging(LocalStaging):
    """A staging that tells before it removes an object; what it tells may raise."""

    def __init__(self, config: LocalStagingSection, tell: Callable[[str], None]) -> None:
        super().__init__(config)
        self._tell = tell

    def delete(self, name: str) -> None:
        self._tell(name)
        super().delete(name)


class Place:
    """A store, a queue and a staging in one directory, and what is needed to fill them quickly."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = SqliteRequestStore(SqliteStoreSection(path=directory / "r.sqlite"))
        self.queue = SqliteQueue(SqliteQueueSection(path=directory / "q.sqlite"))
        self.section = LocalStagingSection(root_dir=directory / "staging")
        self.staging = LocalStaging(self.section)
        self.said: list[str] = []

    def collector(
        self, *, before_delete: Callable[[str], None] | None = None, **settings: float
    ) -> Collector:
        staging = TellingStaging(self.section, before_delete) if before_delete else self.staging
        return Collector(
            store=self.store,
            staging=staging,
            queue=self.queue,
            settings=Current(GarbageCollectorSection.model_validate(settings)),
            metrics=Metrics(),
            say=self.said.append,
        )

    def put(self, name: str, *, age_s: float = LONG_AGO_S, size_bytes: int = 10) -> str:
        """An object as if it had been staged so long ago."""
        path = self.staging.path(name)
        path.parent.mkdir(exist_ok=True, mode=0o700)
        path.write_bytes(b"x" * size_bytes)
        os.utime(path, (time.time() - age_s,) * 2)
        return name

    def new(self, *, verb: Verb = Verb.RETRIEVE) -> Request:
        status = Status.WAITING if verb is Verb.RETRIEVE else Status.UPLOADING
        return self.store.add(new_request(request_id=str(uuid.uuid4()), status=status, verb=verb))

    def finished(self) -> Request:
        request = self.new()
        name = self.put(result_name("", request.id, 1, GRIB))
        return finish(self.store, start(self.store, request), result=an_object(name))

    def archived(self) -> Request:
        """A finished archive whose input is still in staging."""
        request = self.new(verb=Verb.ARCHIVE)
        name = self.put(input_name("", request.id, uuid.uuid4().hex))
        data = DataObject(name=name, media_type=BINARY, size_bytes=10, sha256="0", md5="m")
        self.store.apply(
            Step(id=request.id, source=Status.UPLOADING, target=Status.WAITING, input=data)
        )
        return finish(self.store, start(self.store, request))

    def finished_many(self, number: int) -> None:
        """So many finished requests with results, all as old as can be, in one transaction."""
        model = self.finished()
        at = time.time() - LONG_AGO_S
        ids = [str(uuid.uuid4()) for _ in range(number - 1)]
        rows = [
            (key, json.dumps(an_object(self.put(result_name("", key, 1, GRIB))).as_json()))
            for key in ids
        ]
        with sqlite3.connect(self.directory / "r.sqlite") as db:
            columns = [row[1] for row in db.execute("PRAGMA table_info(requests)")]
            others = ", ".join(c for c in columns if c not in ("seq", "id", "result"))
            db.executemany(
                f"INSERT INTO requests (id, result, {others})"
                f" SELECT ?, ?, {others} FROM requests WHERE id = '{model.id}'",
                rows,
            )
            db.execute("UPDATE requests SET created_at = ?, modified_at = ?", (at, at))
        db.close()

    def names(self) -> Iterator[str]:
        after = ""
        while page := self.staging.list("", after=after, limit=1000):
            after = page[-1].name
            yield from (stored.name for stored in page)

    def count_objects(self) -> int:
        return sum(1 for _ in self.names())

    def announced_but_gone(self) -> list[str]:
        """Results that a record names and staging does not hold."""
        there = set(self.names())
        with sqlite3.connect(self.directory / "r.sqlite") as db:
            rows = db.execute("SELECT result FROM requests WHERE result IS NOT NULL").fetchall()
        db.close()
        return [name for (text,) in rows if (name := json.loads(text)["name"]) not in there]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def until(condition: Callable[[], bool], *, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.005)


def test_twenty_thousand_objects_are_collected_in_bounded_memory(place: Place) -> None:
    kept, removed = 500, 10_000
    place.finished_many(removed)
    for _ in range(removed - kept):
        place.put(result_name("", str(uuid.uuid4()), 1, GRIB))
    for _ in range(kept):
        place.put(result_name("", str(uuid.uuid4()), 1, GRIB), age_s=0)
    collector = place.collector(age=3600)
    tracemalloc.start()
    begin = time.monotonic()
    report = collector.collect()
    seconds = time.monotonic() - begin
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (report.old, report.dangling) == (removed, removed - kept)
    assert place.count_objects() == kept
    assert place.store.count(JOE.id) == 0
    assert peak_bytes < 8 << 20
    assert seconds < 60


def test_long_requests_are_not_held_all_at_once(place: Place) -> None:
    length = 1 << 20
    place.finished_many(200)
    with sqlite3.connect(place.directory / "r.sqlite") as db:
        db.execute("UPDATE requests SET user_request = ?", ("x" * length,))
    db.close()
    collector = place.collector(age=86400)
    for dry_run in (False, True):
        tracemalloc.start()
        collector.collect(dry_run=dry_run)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 80 * length
    assert place.store.count(JOE.id) == 200


def test_a_dry_run_counts_what_a_real_one_then_removes(place: Place) -> None:
    place.finished_many(3)
    archived = place.archived()
    with sqlite3.connect(place.directory / "r.sqlite") as db:
        db.execute(
            "UPDATE requests SET modified_at = modified_at - 9000 WHERE id = ?", (archived.id,)
        )
    db.close()
    young = place.archived()
    for _ in range(4):
        place.finished()
    place.put(result_name("", str(uuid.uuid4()), 2, GRIB))
    place.put("somebody-elses.grib")
    collector = place.collector(age=3600, threshold=25)
    before = sorted(place.names())
    promised = collector.collect(dry_run=True)
    assert sorted(place.names()) == before
    assert place.store.count(JOE.id) == 9
    things = [line.split()[3] for line in place.said]
    assert len(things) == len(set(things)) == 4 + 2 + 1 + 1
    done = collector.collect()
    assert promised == done
    assert (done.old, done.surplus, done.inputs, done.dangling) == (4, 2, 1, 1)
    known = place.store.get(young.id).input
    assert known is not None
    assert known.name == ""
    assert collector.collect() == type(done)()


def test_an_input_is_forgotten_before_it_is_removed(place: Place) -> None:
    request = place.archived()
    seen: list[str] = []

    def fail(_name: str) -> None:
        known = place.store.get(request.id).input
        assert known is not None
        seen.append(known.name)
        raise BackendUnavailable("staging is away")

    with pytest.raises(BackendUnavailable):
        place.collector(before_delete=fail).collect()
    assert seen == [""]
    assert place.collector().collect().dangling == 1
    assert place.count_objects() == 0


def test_a_held_poll_hears_that_an_upload_is_given_up(place: Place) -> None:
    request = place.new(verb=Verb.ARCHIVE)
    later = place.new(verb=Verb.ARCHIVE)
    with sqlite3.connect(place.directory / "r.sqlite") as db:
        db.execute("UPDATE requests SET created_at = created_at - 9000 WHERE id = ?", (request.id,))
    db.close()
    with place.queue.listen(Topic.CHANGED) as hints:
        assert place.collector(upload_age=3600).collect().stale_uploads == 1
        heard = hints.wait(10.0)
    assert [(hint.topic, hint.text) for hint in heard] == [(Topic.CHANGED, request.id)]
    assert place.store.get(request.id).status is Status.FAILED
    assert place.store.get(later.id).status is Status.UPLOADING


def test_a_back_end_that_comes_back_is_collected_again(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.put(result_name("", str(uuid.uuid4()), 1, GRIB))
    objects = place.directory / "staging" / "objects"
    away = place.directory / "away"
    objects.rename(away)
    stop = Stop()
    thread = threading.Thread(target=place.collector(interval=0.05).run, args=(stop,))
    with caplog.at_level(logging.WARNING):
        thread.start()
        try:
            until(lambda: "a back-end is away" in caplog.text)
            away.rename(objects)
            until(lambda: place.count_objects() == 0)
        finally:
            stop.request()
            thread.join(timeout=30)
    assert not thread.is_alive()


def test_a_pass_that_is_asked_to_end_finishes_its_page_and_no_more(place: Place) -> None:
    number = 1200
    place.finished_many(number)
    stop = Stop()

    def ask(_name: str) -> None:
        stop.request()

    report = place.collector(age=3600, before_delete=ask).collect(stop=stop)
    assert 0 < report.old < number
    assert place.store.count(JOE.id) == place.count_objects() == number - report.old


def test_a_record_goes_before_its_data(place: Place) -> None:
    place.finished_many(30)
    known: list[int] = []

    def look(name: str) -> None:
        known.append(len(place.store.get_many([name.removesuffix("-1.grib")])))

    place.collector(age=3600, before_delete=look).collect()
    assert known == [0] * 30


def test_two_collectors_at_once_remove_everything_once(place: Place) -> None:
    place.finished_many(2000)
    counts: list[int] = []

    def work(collector: Collector) -> None:
        counts.append(collector.collect().old)

    threads = [threading.Thread(target=work, args=(place.collector(age=3600),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(counts) == 2
    assert sum(counts) == 2000
    assert place.count_objects() == 0


def kill_when_fewer(place: Place, process: subprocess.Popen[bytes], left: int) -> None:
    """Kill a collector as soon as there are fewer objects than that."""
    try:
        until(lambda: place.count_objects() < left or process.poll() is not None)
    finally:
        process.send_signal(signal.SIGKILL)
        status = process.wait(timeout=30)
    assert status == -signal.SIGKILL, (place.directory / "log").read_text()


def test_killed_at_any_moment_nothing_announced_is_missing_and_nothing_stays(place: Place) -> None:
    place.finished_many(4000)
    running = start(place.store, place.new())
    unannounced = place.put(result_name("", running.id, 1, GRIB))
    foreign = place.put("somebody-elses.grib")
    config = place.directory / "gc.yaml"
    config.write_text(
        f"request_store: {{sqlite: {{path: {place.directory / 'r.sqlite'}}}}}\n"
        f"queue: {{sqlite: {{path: {place.directory / 'q.sqlite'}}}}}\n"
        f"staging: {{local: {{root_dir: {place.directory / 'staging'}}}}}\n"
        "garbage-collector: {age: 1h, interval: 1h, dangling_age: 1h}\n"
    )
    command = [sys.executable, "-m", "polytope_server.garbage_collector", "-f", str(config)]
    for left in (3900, 3000, 2000):
        with (place.directory / "log").open("ab") as log:
            process = subprocess.Popen([*command, "--once"], stdout=log, stderr=log)
        kill_when_fewer(place, process, left)
        assert place.count_objects() > 2, "it was killed too late to prove anything"
        assert place.announced_but_gone() == []
    last = subprocess.run([*command, "--once"], capture_output=True, text=True, timeout=60)
    assert last.returncode == 0, last.stderr
    assert sorted(place.names()) == sorted([unannounced, foreign])
    assert place.store.get(running.id).status is Status.PROCESSING
    assert place.store.count(JOE.id) == 1
