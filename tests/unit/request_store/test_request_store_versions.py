"""Processes of the version before and of this one side by side on one file, and the way back."""

import json
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import version_2

from polytope_server.config.embedded import SqliteStoreSection
from polytope_server.errors import StepLost
from polytope_server.request import Lease, Status, Step
from polytope_server.request_store.sqlite import SCHEMA, SqliteRequestStore
from polytope_server.testing.request_store import finish, new_key, new_request, start
from polytope_server.user import User

ROUNDS = 25


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.sqlite"


def open_store(path: Path) -> SqliteRequestStore:
    return SqliteRequestStore(SqliteStoreSection(path=path))


def test_the_version_before_was_what_we_take_it_for(path: Path) -> None:
    with closing(version_2.open_file(path)) as db:
        made = db.execute("SELECT name, sql FROM sqlite_schema").fetchall()
        other = sqlite3.connect(":memory:")
        other.executescript("".join(SCHEMA[:2]))
    with closing(other):
        ours = other.execute("SELECT name, sql FROM sqlite_schema").fetchall()
    assert [tuple(row) for row in made] == ours


def test_a_process_of_the_version_before_goes_on_while_the_file_is_brought_up_to_date(
    path: Path,
) -> None:
    with closing(version_2.open_file(path)) as old:
        version_2.add(old, "begun")
        assert version_2.apply(old, "begun", "waiting", "queued")
        new = open_store(path)
        assert version_2.apply(old, "begun", "queued", "processing")
        assert new.get("begun").holder == "old worker"
        assert version_2.apply(old, "begun", "processing", "processed")
        (usage,) = new.usage()
        assert (usage.id, usage.user.username, usage.size_bytes) == ("begun", "old", 7)
        assert usage.finished_at == new.get("begun").modified_at
        assert version_2.remove(old, "begun")
        assert new.usage() == [usage]
        # the other way round
        request = new.add(new_request())
        assert version_2.apply(old, request.id, "waiting", "queued")
        lease = Lease(holder="new worker", attempt=1)
        running = new.apply(
            Step(
                id=request.id,
                source=Status.QUEUED,
                target=Status.PROCESSING,
                lease=lease,
                lease_s=30,
            )
        )
        assert not version_2.apply(old, request.id, "processing", "processed")
        finish(new, running)
        assert [each.id for each in new.usage()] == ["begun", request.id]


def test_a_process_of_the_version_before_may_start_again(path: Path) -> None:
    done = open_store(path)
    left = start(done, done.add(new_request()))
    with closing(version_2.open_file(path)) as old:
        version_2.add(old, "after the way back")
        assert old.execute("SELECT count(*) FROM requests").fetchone()[0] == 2
    new = open_store(path)
    assert new.get("after the way back").status is Status.WAITING
    finish(new, left)
    with closing(version_2.open_file(path)) as old:
        assert version_2.remove(old, left.id)


def test_keys_outlive_a_process_of_the_version_before(path: Path) -> None:
    key = open_store(path).add_key(new_key(), lifetime_s=60, max_keys=1)
    with closing(version_2.open_file(path)) as old:
        version_2.add(old, "meanwhile")
    assert open_store(path).key(key.digest) == key


def test_old_and_new_processes_share_the_work_and_each_request_is_finished_and_recorded_once(
    path: Path,
) -> None:
    program = [sys.executable, version_2.__file__, str(path)]
    processes = [
        subprocess.Popen(
            [*program, f"old{n}", str(ROUNDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
    open_store(path)
    done: Counter[str] = Counter()
    lock = threading.Lock()

    def work(number: int) -> None:
        store = open_store(path)
        user = User(username=f"new{number}", realm="r")
        for n in range(ROUNDS):
            store.add(new_request(user=user, request_id=f"new{number}-{n}"))
            for finished in _finish_what_is_there(store, f"new{number}"):
                with lock:
                    done[finished] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        with lock:
            done.update(json.loads(text))
    for thread in threads:
        thread.join(timeout=120)
    store = open_store(path)
    while left := _finish_what_is_there(store, "the last"):
        done.update(left)
    assert len(done) == 4 * ROUNDS
    assert set(done.values()) == {1}, "a request was finished twice"
    assert sorted(usage.id for usage in store.usage()) == sorted(done)
    assert {usage.status for usage in store.usage()} == {Status.PROCESSED}


def _finish_what_is_there(store: SqliteRequestStore, holder: str) -> list[str]:
    for waiting in store.next_waiting("c1", leaving_out=(), limit=3):
        store.apply_each([Step(id=waiting.id, source=Status.WAITING, target=Status.QUEUED)])
    done = []
    for request_id, attempt in store.queued_since(store.now(), limit=3):
        step = Step(
            id=request_id,
            source=Status.QUEUED,
            target=Status.PROCESSING,
            lease=Lease(holder=holder, attempt=attempt),
            lease_s=60,
        )
        try:
            done.append(finish(store, store.apply(step)).id)
        except StepLost:
            continue
    return done
