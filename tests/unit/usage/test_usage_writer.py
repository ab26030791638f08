"""From the request store into the file: nothing lost, nothing twice, whoever dies when."""

import multiprocessing
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from polytope_server.config.embedded import SqliteStoreSection
from polytope_server.config.model import UsageSection
from polytope_server.errors import BackendUnavailable, ConfigurationError
from polytope_server.lifecycle import Stop
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.testing.request_store import finish, new_request, start
from polytope_server.usage.file import UsageFile
from polytope_server.usage.lines import key_of, parsed
from polytope_server.usage.writer import POST, Writer


@pytest.fixture
def store(tmp_path: Path) -> SqliteRequestStore:
    return SqliteRequestStore(SqliteStoreSection(path=tmp_path / "r.sqlite"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.jsonl"


def finish_some(store: SqliteRequestStore, number: int) -> list[str]:
    return [finish(store, start(store, store.add(new_request()))).id for _ in range(number)]


def ids_in(path: Path) -> list[str]:
    found = [parsed(text) for text in path.read_bytes().splitlines()]
    assert None not in found, "a line is not whole"
    return [key_of(record)[1] for record in found if record is not None]


def until(condition: Callable[[], bool], *, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


def test_records_go_into_the_file_and_out_of_the_store(
    store: SqliteRequestStore, path: Path
) -> None:
    ids = finish_some(store, 3)
    store.remove(ids[0])
    writer = Writer(store=store, settings=UsageSection(path=path))
    assert writer.turn(Stop()) == 3
    assert ids_in(path) == ids
    assert store.usage() == []
    assert writer.turn(Stop()) == 0
    ids += finish_some(store, 1)
    assert writer.turn(Stop()) == 1
    assert ids_in(path) == ids


def test_a_page_is_no_limit(tmp_path: Path, store: SqliteRequestStore, path: Path) -> None:
    finish_some(store, 1)
    with closing(sqlite3.connect(tmp_path / "r.sqlite")) as db, db:
        db.execute(
            "WITH RECURSIVE others (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM others WHERE n < 1202)"
            " INSERT INTO usage (finished_at, id, record) SELECT finished_at + n, n, record"
            " FROM usage, others"
        )
    assert Writer(store=store, settings=UsageSection(path=path)).turn(Stop()) == 1203
    assert ids_in(path)[1:] == [str(n) for n in range(1, 1203)]
    assert store.usage() == []


def test_one_writer_at_a_time(store: SqliteRequestStore, path: Path) -> None:
    ids = finish_some(store, 1)
    writer = Writer(store=store, settings=UsageSection(path=path))
    assert store.take_post(POST, "somebody", duration_s=60)
    assert writer.turn(Stop()) == 0
    store.leave_post(POST, "somebody")
    assert writer.turn(Stop()) == 1
    assert ids_in(path) == ids


def test_what_was_written_but_not_forgotten_is_not_written_again(
    store: SqliteRequestStore, path: Path
) -> None:
    ids = finish_some(store, 3)
    UsageFile(path).append(store.usage()[:2])  # and died
    assert Writer(store=store, settings=UsageSection(path=path)).turn(Stop()) == 3
    assert ids_in(path) == ids
    assert store.usage() == []


def test_what_cannot_be_written_stays_in_the_store_and_is_said(
    store: SqliteRequestStore, path: Path
) -> None:
    writer = Writer(store=store, settings=UsageSection(path=path, interval=0.01))
    writer.ping()
    ids = finish_some(store, 2)
    path.unlink()
    path.mkdir()
    stop = Stop()
    with writer.running(stop):
        until(lambda: _is_in_trouble(writer))
        assert [usage.id for usage in store.usage()] == ids
        path.rmdir()
        until(lambda: not _is_in_trouble(writer))
        until(lambda: store.usage() == [])
    assert ids_in(path) == ids
    assert store.take_post(POST, "the next one", duration_s=1), "the post was not given up"


def _is_in_trouble(writer: Writer) -> bool:
    try:
        writer.ping()
    except BackendUnavailable:
        return True
    return False


def test_a_file_that_cannot_be_is_told_at_the_start(
    store: SqliteRequestStore, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"usage\.path"):
        Writer(store=store, settings=UsageSection(path=tmp_path))


def test_without_a_file_records_stay_until_they_are_old(store: SqliteRequestStore) -> None:
    finish_some(store, 2)
    writer = Writer(store=store, settings=UsageSection())
    assert writer.turn(Stop()) == 0
    assert len(store.usage()) == 2
    old = store.usage()[-1].finished_at
    until(lambda: store.now() > old + 0.05)
    new = finish_some(store, 1)
    keep = store.now() - old - 0.01
    writer.leave()
    writer = Writer(store=store, settings=UsageSection(keep=keep))
    assert writer.turn(Stop()) == 2
    assert [usage.id for usage in store.usage()] == new


@pytest.mark.parametrize("most", [0, 3, 7])
def test_without_a_file_there_are_never_more_than_allowed(
    store: SqliteRequestStore, most: int
) -> None:
    ids = finish_some(store, 7)
    assert Writer(store=store, settings=UsageSection(max_kept=most)).turn(Stop()) == 7 - most
    assert [usage.id for usage in store.usage()] == ids[7 - most :]


def _write(database: str, path: str) -> None:
    store = SqliteRequestStore(SqliteStoreSection(path=Path(database)))
    Writer(store=store, settings=UsageSection(path=Path(path), interval=0.01)).run(Stop())


def test_writers_killed_again_and_again_lose_nothing_and_write_nothing_twice(
    tmp_path: Path, store: SqliteRequestStore, path: Path
) -> None:
    spawn = multiprocessing.get_context("spawn")
    finished = threading.Event()
    ids: list[str] = []

    def work() -> None:
        while not finished.is_set():
            ids.extend(finish_some(store, 1))

    working = threading.Thread(target=work)
    working.start()
    moments = random.Random(7)
    for _ in range(3):
        size = path.stat().st_size if path.exists() else 0
        process = spawn.Process(target=_write, args=(str(tmp_path / "r.sqlite"), str(path)))
        process.start()
        until(lambda size=size: path.exists() and path.stat().st_size > size)
        time.sleep(moments.random() * 0.05)
        process.kill()
        process.join(timeout=30)
    finished.set()
    working.join(timeout=30)
    until(lambda: store.take_post(POST, "the last", duration_s=0.01))
    until(lambda: _turned(store, path))
    assert ids_in(path) == ids
    assert store.usage() == []


def _turned(store: SqliteRequestStore, path: Path) -> bool:
    Writer(store=store, settings=UsageSection(path=path)).turn(Stop())
    return store.usage() == []
