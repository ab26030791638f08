"""The embedded request store: the contract, its files, and races between real processes."""

import multiprocessing
import sqlite3
import stat
from collections import Counter
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from polytope_server.config.embedded import SqliteStoreSection
from polytope_server.errors import BackendUnavailable, ConfigurationError, StepLost
from polytope_server.request import Lease, Status, Step
from polytope_server.request_store import FORGOTTEN_AFTER_S, Mark, RequestStore
from polytope_server.request_store.sqlite import SCHEMA, SqliteRequestStore
from polytope_server.sqlite import Database
from polytope_server.testing.request_store import (
    JOE,
    RequestStoreContract,
    an_entry,
    enqueue,
    finish,
    new_request,
    start,
)
from polytope_server.user import User


def open_store(path: Path) -> SqliteRequestStore:
    return SqliteRequestStore(SqliteStoreSection(path=path))


class TestSqlite(RequestStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> RequestStore:
        return open_store(tmp_path / "data" / "requests.sqlite")

    @pytest.fixture
    def again(self, tmp_path: Path) -> RequestStore:
        return open_store(tmp_path / "data" / "requests.sqlite")


def test_its_files_are_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "data" / "requests.sqlite"
    open_store(path).add(new_request())
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_requests_survive_closing_and_opening(tmp_path: Path) -> None:
    added = open_store(tmp_path / "r.sqlite").add(new_request())
    assert open_store(tmp_path / "r.sqlite").get(added.id) == added


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"not a database at all" * 100, "cannot be used"), (None, "something else")],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "r.sqlite"
    if content is None:
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE other (a)")
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said):
        open_store(path)


def test_a_much_newer_schema_is_refused_and_the_next_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    open_store(path)
    newest = schema_version(path)
    for version, refused in ((newest + 1, False), (newest + 2, True)):
        with sqlite3.connect(path) as db:
            db.execute(f"PRAGMA user_version={version}")
        if refused:
            with pytest.raises(ConfigurationError, match=f"schema version {version}"):
                open_store(path)
        else:
            open_store(path).ping()


@pytest.mark.parametrize("version", range(1, len(SCHEMA)))
def test_a_file_of_an_older_version_is_brought_up_to_date_with_all_its_requests(
    tmp_path: Path, version: int
) -> None:
    path, new = tmp_path / "r.sqlite", tmp_path / "new.sqlite"
    request = open_store(new).add(new_request())
    Database(path, schema=SCHEMA[:version])
    assert schema_version(path) == version
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("ATTACH ? AS new", (str(new),))
        columns = ", ".join(row[1] for row in db.execute("PRAGMA main.table_info(requests)"))
        db.execute(f"INSERT INTO main.requests ({columns}) SELECT {columns} FROM new.requests")
    assert open_store(path).get(request.id) == request
    assert schema_version(path) == schema_version(new) == len(SCHEMA)
    assert everything_in(path) == everything_in(new)


def schema_version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def everything_in(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()


def test_a_request_that_is_put_back_to_work_and_ends_again_leaves_another_record_of_use(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path / "r.sqlite")
    failed = finish(store, start(store, store.add(new_request())), target=Status.FAILED)
    with closing(sqlite3.connect(tmp_path / "r.sqlite")) as db, db:
        db.execute("UPDATE requests SET status = 'waiting' WHERE id = ?", (failed.id,))
    done = finish(store, start(store, failed))
    assert [(usage.id, usage.status) for usage in store.usage()] == [
        (failed.id, Status.FAILED),
        (failed.id, Status.PROCESSED),
    ]
    assert [usage.finished_at for usage in store.usage()] == [failed.modified_at, done.modified_at]


def test_a_file_that_is_taken_away_is_unavailable_until_it_is_back(tmp_path: Path) -> None:
    path, aside = tmp_path / "r.sqlite", tmp_path / "aside.sqlite"
    store = open_store(path)
    request = store.add(new_request())
    path.rename(aside)
    for _ in range(2):
        with pytest.raises(BackendUnavailable):
            store.ping()
        with pytest.raises(BackendUnavailable):
            store.add(new_request())
        assert not path.exists(), "nobody made another one in its place"
    aside.rename(path)
    assert store.get(request.id) == request
    path.unlink()
    open_store(path)
    with pytest.raises(BackendUnavailable, match="another file"):
        store.add(new_request())


def test_a_directory_in_its_place_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be used") as caught:
        open_store(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_table_that_vanished_is_unavailable_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    store = open_store(path)
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE requests")
    with pytest.raises(BackendUnavailable):
        store.get("x")


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        ("SELECT * FROM requests WHERE status = 'processing' AND lease_expires_at < 1"
         " ORDER BY lease_expires_at LIMIT 5", "leased"),
        ("SELECT collection, user_id, count(*) FROM requests"
         " WHERE status IN ('queued', 'processing') GROUP BY collection, user_id", "active"),
        ("SELECT id FROM requests WHERE status = 'queued' AND modified_at <= 1"
         " ORDER BY modified_at LIMIT 5", "queued"),
        ("SELECT id FROM requests WHERE status = 'waiting' AND collection = 'c' AND user_id = 'u'"
         " ORDER BY turn, seq LIMIT 5", "waiting"),
        ("SELECT * FROM requests WHERE user_id = 'u' AND (created_at, id) > (0, '')"
         " ORDER BY created_at, id LIMIT 5", "by_user"),
        ("SELECT id FROM requests WHERE status IN ('processed', 'failed')"
         " AND (modified_at, id) > (0, '') AND result IS NOT NULL ORDER BY modified_at, id LIMIT 5",
         "finished"),
        ("SELECT * FROM requests WHERE seq > 0 AND status = 'failed' AND collection = 'c'"
         " AND (created_at, id) < (1, '') AND created_at > 0 ORDER BY created_at DESC, id DESC LIMIT 5",
         "by_place"),
        ("SELECT collection, status, count(*) FROM requests WHERE seq > 0 AND status = 'failed'"
         " AND collection = 'c' GROUP BY collection, status", "by_place"),
        ("SELECT * FROM requests WHERE user_id = 'u' AND +status IN ('failed')"
         " AND (created_at, id) > (1, '') AND created_at < 2 ORDER BY created_at, id LIMIT 5",
         "by_user"),
        ("SELECT record FROM audit WHERE target = 't' ORDER BY seq DESC LIMIT 5", "by_target"),
        ("SELECT finished_at, id, record FROM usage WHERE (finished_at, id) > (0, '')"
         " ORDER BY finished_at, id LIMIT 5", "sqlite_autoindex_usage_1"),
    ],
)  # fmt: skip
def test_no_question_of_the_processes_scans_the_table(
    tmp_path: Path, statement: str, index: str
) -> None:
    open_store(tmp_path / "r.sqlite")
    with sqlite3.connect(tmp_path / "r.sqlite") as db:
        plan = " ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}"))
    assert f"INDEX {index} " in f"{plan} "
    assert "TEMP B-TREE" not in plan


def test_a_change_whose_entry_cannot_be_kept_does_not_happen(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    store = open_store(path)
    request = store.add(new_request())
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE audit")
    entry = an_entry(request.id)
    step = Step(id=request.id, source=Status.WAITING, target=Status.FAILED, audit=entry)
    for change in (
        lambda: store.apply(step),
        lambda: store.apply_each([step]),
        lambda: store.remove(request.id, audit=entry),
        lambda: store.mark(Mark.PAUSED, "c1", audit=entry),
    ):
        with pytest.raises(BackendUnavailable):
            change()
    assert store.get(request.id) == request
    assert store.marked(Mark.PAUSED) == {}


def test_workers_that_vanished_are_forgotten_after_a_day(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    store = open_store(path)
    for worker in ("yesterday", "today"):
        store.attend(worker, slots=1, busy=0)
        store.mark(Mark.DRAINING, worker, audit=an_entry(worker))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(
            "UPDATE workers SET seen_at = seen_at - ? WHERE name = 'yesterday'",
            (FORGOTTEN_AFTER_S,),
        )
    store.attend("today", slots=1, busy=0)
    assert len(store.workers()) == 2
    store.attend("new", slots=1, busy=0)
    assert [worker.name for worker in store.workers()] == ["new", "today"]
    assert set(store.marked(Mark.DRAINING)) == {"today"}


# --- races between processes

ROUNDS = 25
WRITERS = 8


def _work(path: str, number: int, rounds: int) -> Counter[str]:
    """Add, take and finish requests together with the others, taking whatever is there."""
    store = open_store(Path(path))
    done: Counter[str] = Counter()
    user = User(username=f"user{number}", realm="r")
    for _ in range(rounds):
        store.add(new_request(user=user, request_id=f"{number}-{_}"))
        for waiting in store.next_waiting("c1", leaving_out=(), limit=3):
            try:
                store.apply(Step(id=waiting.id, source=Status.WAITING, target=Status.QUEUED))
            except StepLost:
                done["lost"] += 1
        for request_id, attempt in store.queued_since(store.now(), limit=3):
            lease = Lease(holder=f"w{number}", attempt=attempt)
            try:
                running = store.apply(
                    Step(
                        id=request_id,
                        source=Status.QUEUED,
                        target=Status.PROCESSING,
                        lease=lease,
                        lease_s=60,
                    )
                )
            except StepLost:
                done["lost"] += 1
                continue
            finish(store, running)
            done[request_id] += 1
    return done


def test_eight_writing_processes_lose_no_update(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    open_store(path)
    with multiprocessing.get_context("spawn").Pool(WRITERS) as pool:
        counts = pool.starmap(_work, [(str(path), number, ROUNDS) for number in range(WRITERS)])
    store = open_store(path)
    total = sum(counts, Counter())
    total.pop("lost", None)
    assert set(total.values()) == {1}, "a request was finished twice"
    everything = [
        request
        for number in range(WRITERS)
        for request in store.requests_of(User(username=f"user{number}", realm="r").id)
    ]
    assert len(everything) == WRITERS * ROUNDS
    finished = {request.id for request in everything if request.status is Status.PROCESSED}
    assert finished == set(total)
    counted = sum(store.active_counts().values())
    assert counted == sum(request.status is Status.QUEUED for request in everything)


def test_a_late_writer_does_not_bring_a_removed_request_back(tmp_path: Path) -> None:
    one, two = open_store(tmp_path / "r.sqlite"), open_store(tmp_path / "r.sqlite")
    running = start(one, one.add(new_request()))
    two.remove(running.id)
    assert running.lease is not None
    one.report(running.id, running.lease, bytes_staged=1)
    assert not one.renew([(running.id, running.lease)], duration_s=10)
    assert two.count(JOE.id) == 0
    assert enqueue(two, one.add(new_request())).status is Status.QUEUED


def _open_and_close_often(path: str, barrier: Barrier, rounds: int) -> None:
    for number in range(rounds):
        barrier.wait(timeout=60)
        open_store(Path(f"{path}-{number}")).ping()


def test_processes_that_open_a_new_file_at_the_same_moment_all_can(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(WRITERS)
    processes = [
        spawn.Process(target=_open_and_close_often, args=(str(tmp_path / "r"), barrier, ROUNDS))
        for _ in range(WRITERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * WRITERS
