"""A restored backup is what was backed up, and does no harm: nothing of the past goes on by itself."""

import json
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from data_directory import Data, objects_in, requests_in, silent

from polytope_server.data import manifest
from polytope_server.data.place import place_of
from polytope_server.data.restore import Report, check, restore
from polytope_server.errors import ConfigurationError
from polytope_server.queue import Topic
from polytope_server.queue.hints import HintDirectory
from polytope_server.request import Status
from polytope_server.request_store.sqlite import SCHEMA
from polytope_server.sqlite import Database
from polytope_server.standalone import hold
from polytope_server.testing.request_store import enqueue, finish, new_key, new_request, start
from polytope_server.usage.lines import line


def restored(target: Data, source: Path, *, objects: bool = True, contents: bool = True) -> Report:
    return restore(target.place, source, objects=objects, contents=contents, progress=silent)


@pytest.fixture
def target(tmp_path: Path) -> Data:
    return Data(tmp_path / "target")


def test_everything_comes_back(tmp_path: Path, data: Data, target: Data) -> None:
    done, archiving = data.finished(b"GRIB" * 300_000), data.to_archive()
    key = data.store.shared_secret("signing-key", "a")
    usage = line(data.store.usage()[0])
    (data.directory / "usage.jsonl").write_bytes(usage)
    data.back_up(tmp_path / "b")
    shutil.rmtree(data.directory)  # what was linked is in the backup still
    report = restored(target, tmp_path / "b")
    assert (report.again, report.without, report.kept) == (0, 0, [])
    assert target.store.get(done.id) == done
    assert target.store.get(archiving.id) == archiving
    assert target.store.shared_secret("signing-key", "b") == key
    assert objects_in(target.directory) == objects_in(tmp_path / "b")
    assert b"".join(target.staging.read(f"{done.id}-1.grib")) == b"GRIB" * 300_000
    assert (target.directory / "usage.jsonl").read_bytes() == usage
    assert (target.directory / "password").read_text() == "hush"
    files = [path for path in target.directory.iterdir() if path.is_file() and path.name != "lock"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert not list(target.directory.glob("*.restoring*"))
    before = (tmp_path / "b" / "staging" / "objects" / done.id[:2] / f"{done.id}-1.grib").stat()
    after = target.staging.path(f"{done.id}-1.grib").stat()
    assert (after.st_mtime, after.st_ino != before.st_ino) == (before.st_mtime, True)


def test_nothing_of_the_past_goes_on(tmp_path: Path, data: Data, target: Data) -> None:
    store = data.store
    running, queued = data.running(), enqueue(store, store.add(new_request()))
    waiting = store.add(new_request())
    store.put_positions("c1", [waiting.id])
    assert store.take_post("broker", "of the past", duration_s=3600)
    data.back_up(tmp_path / "b")
    assert restored(target, tmp_path / "b").again == 1
    again = target.store.get(running.id)
    assert (again.status, again.attempt, again.holder) == (Status.WAITING, 1, None)
    assert "restored" in again.message
    assert running.lease is not None
    assert not target.store.renew([(running.id, running.lease)], duration_s=10)
    assert target.store.positions("c1") == []
    assert target.store.take_post("broker", "of today", duration_s=1)
    assert target.store.active_counts() == {("c1", queued.user.id): 1}
    in_line = target.store.next_waiting("c1", leaving_out=(), limit=9)
    assert [each.id for each in in_line] == [running.id, waiting.id]
    finish(target.store, start(target.store, again))
    assert [usage.id for usage in target.store.usage()] == [running.id]


def test_api_keys_come_back(tmp_path: Path, data: Data, target: Data) -> None:
    key = data.store.add_key(new_key(), lifetime_s=3600, max_keys=1)
    data.back_up(tmp_path / "b")
    restored(target, tmp_path / "b")
    assert target.store.key(key.digest) == key


def test_a_backup_of_the_version_before_is_restored_as_it_is_and_brought_up_to_date_later(
    tmp_path: Path, target: Data
) -> None:
    old = Data(tmp_path / "old")
    Database(old.database, schema=SCHEMA[:1])
    with closing(sqlite3.connect(old.database)) as db, db:
        db.execute("INSERT INTO secrets VALUES ('signing-key', 'a')")
    assert old.back_up(tmp_path / "b").manifest.schema == 1
    restored(target, tmp_path / "b")
    with closing(sqlite3.connect(target.database)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
    assert target.store.shared_secret("signing-key", "b") == "a"
    with closing(sqlite3.connect(target.database)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(SCHEMA),)


# --- refused


def _cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


def _another_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, _cut_off, _another_byte])
@pytest.mark.parametrize("which", ["manifest.json", "requests.sqlite", "usage.jsonl", "*.grib"])
def test_a_damaged_backup_is_refused_before_anything_is_written(
    tmp_path: Path, data: Data, target: Data, which: str, damage: Callable[[Path], None]
) -> None:
    data.finished()
    (data.directory / "usage.jsonl").write_bytes(line(data.store.usage()[0]))
    data.back_up(tmp_path / "b", may_link=False)
    (path,) = (tmp_path / "b").rglob(which)
    damage(path)
    with pytest.raises(ConfigurationError) as caught:
        restored(target, tmp_path / "b")
    assert str(tmp_path / "b") in str(caught.value)
    assert not target.database.exists()
    assert objects_in(target.directory) == {}


def test_objects_are_compared_byte_by_byte_only_when_asked(
    tmp_path: Path, data: Data, target: Data
) -> None:
    data.finished()
    data.back_up(tmp_path / "b", may_link=False)
    (path,) = (tmp_path / "b").rglob("*.grib")
    _another_byte(path)
    check(tmp_path / "b", contents=False, progress=silent)
    with pytest.raises(ConfigurationError, match=path.name):
        check(tmp_path / "b", contents=True, progress=silent)
    restored(target, tmp_path / "b", contents=False)


@pytest.mark.parametrize(
    "change",
    [
        {"polytope-server-backup": 2},
        {"files": {"../../outside": {"size_bytes": 0, "sha256": ""}}},
        {"files": {}},
        {"files": None},
        {"another": 1},
        {"objects": 7},
    ],
)
def test_a_manifest_of_another_kind_is_refused(
    tmp_path: Path, data: Data, change: dict[str, object]
) -> None:
    data.back_up(tmp_path / "b")
    path = tmp_path / "b" / manifest.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigurationError):
        check(tmp_path / "b", contents=False, progress=silent)


@pytest.mark.parametrize("left", ["database", "journal", "objects"])
def test_what_is_there_is_never_written_over(
    tmp_path: Path, data: Data, target: Data, left: str
) -> None:
    data.finished()
    data.back_up(tmp_path / "b")
    if left == "objects":
        target.put("somebodys.grib", b"x")
    else:
        target.store.ping()
        if left == "journal":
            target.database.rename(tmp_path / "moved")
            target.database.with_name("requests.sqlite-wal").touch()
    before = {path: path.stat().st_mtime_ns for path in target.directory.rglob("*")}
    with pytest.raises(ConfigurationError, match=r"there are (data|objects) already"):
        restored(target, tmp_path / "b")
    after = {path: path.stat().st_mtime_ns for path in target.directory.rglob("*")}
    assert after.keys() - before.keys() <= {target.directory / "lock"}


def test_a_running_server_is_not_restored_into(
    tmp_path: Path, data: Data, target: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.back_up(tmp_path / "b")
    target.directory.mkdir()
    with (
        hold(target.directory),
        pytest.raises(ConfigurationError, match="in use by another server"),
    ):
        restored(target, tmp_path / "b")
    hints = HintDirectory(target.directory / "queue.sqlite.hints")
    with hints.listen(Topic.PUBLISHED):
        with pytest.raises(ConfigurationError, match="a server is running"):
            restored(target, tmp_path / "b")
        assert not target.database.exists()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        monkeypatch.chdir(target.directory / "queue.sqlite.hints")  # paths of sockets are short
        dead.bind("1-dead")
    restored(target, tmp_path / "b")


def test_records_of_use_that_are_there_stay(tmp_path: Path, data: Data, target: Data) -> None:
    data.back_up(tmp_path / "b")
    target.directory.mkdir()
    (target.directory / "usage.jsonl").write_text("more\n")
    report = restored(target, tmp_path / "b")
    assert report.kept == [target.directory / "usage.jsonl"]
    assert (target.directory / "usage.jsonl").read_text() == "more\n"


# --- without the staging's objects


def test_results_that_the_staging_still_has_are_restored_without_copies(
    tmp_path: Path, data: Data, target: Data
) -> None:
    stays, lost, archiving = data.finished(), data.finished(), data.to_archive()
    data.back_up(tmp_path / "b", objects=False)
    assert not (tmp_path / "b" / "staging").exists()
    with pytest.raises(ConfigurationError, match="--no-objects"):
        restored(target, tmp_path / "b")
    name = f"{stays.id}-1.grib"
    target.put(name, data.staging.path(name).read_bytes())
    assert restored(target, tmp_path / "b", objects=False).without == 2
    assert requests_in(target.database) == {stays.id: "processed", archiving.id: "waiting"}
    assert lost.id not in requests_in(target.database)
    given = target.store.get(archiving.id).input
    assert given is not None
    assert given.name == ""


def test_a_backup_with_objects_can_leave_the_staging_alone(
    tmp_path: Path, data: Data, target: Data
) -> None:
    done = data.finished()
    data.back_up(tmp_path / "b")
    shutil.copytree(data.directory / "staging", target.directory / "staging")
    target.put("somebodys.grib", b"x")
    assert restored(target, tmp_path / "b", objects=False).without == 0
    assert requests_in(target.database) == {done.id: "processed"}


# --- cut off


def test_a_killed_restore_can_be_begun_again(tmp_path: Path, data: Data, target: Data) -> None:
    for _ in range(4):
        data.finished()
    data.running()
    data.back_up(tmp_path / "b")
    script = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[3])\n"
        "from data_directory import Data\n"
        "from polytope_server.data.restore import restore\n"
        "def die(what, done, total):\n"
        "    if (what, done) == ('objects', 2): os.kill(os.getpid(), 9)\n"
        "place = Data(Path(sys.argv[1])).place\n"
        "restore(place, Path(sys.argv[2]), objects=True, contents=False, progress=die)\n"
    )
    arguments = [str(target.directory), str(tmp_path / "b"), str(Path(__file__).parent)]
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert done.returncode == -9
    assert not target.database.exists(), "a server would start with half of the data"
    assert len(objects_in(target.directory)) == 2
    # SQLite's own, of the moment it was killed
    target.database.with_name("requests.sqlite.restoring-journal").write_bytes(b"\xd9\xd5" * 512)
    restored(target, tmp_path / "b")
    assert objects_in(target.directory) == objects_in(tmp_path / "b")
    assert sorted(requests_in(target.database).values()) == ["processed"] * 4 + ["waiting"]


def test_a_restore_that_was_killed_when_all_was_done_is_done(
    tmp_path: Path, data: Data, target: Data
) -> None:
    data.back_up(tmp_path / "b")
    restored(target, tmp_path / "b")
    marker = target.database.with_name("requests.sqlite.restoring")
    os.link(target.database, marker)
    with pytest.raises(ConfigurationError, match="there are data already"):
        restored(target, tmp_path / "b")
    assert not marker.exists()
    assert target.store.count("x") == 0


def test_a_server_that_is_started_too_early_keeps_its_data(
    tmp_path: Path, data: Data, target: Data
) -> None:
    data.finished()
    data.back_up(tmp_path / "b")
    added = []

    def start_early(what: str, done: int, total: int) -> None:
        if what == "objects":
            added.append(target.store.add(new_request()))

    with pytest.raises(ConfigurationError, match="a server was started meanwhile"):
        restore(target.place, tmp_path / "b", objects=True, contents=False, progress=start_early)
    assert set(requests_in(target.database)) == {added[0].id}


# --- whose data


def test_files_say_where_the_data_are_and_the_directory_where_they_do_not(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(f"staging: {{local: {{root_dir: {tmp_path / 'disk'}}}}}\nusage: {{keep: 1d}}\n")
    place = place_of([file], tmp_path / "d", strict=True, environ={})
    assert place.database == tmp_path / "d" / "requests.sqlite"
    assert place.staging.options == {"root_dir": str(tmp_path / "disk")}
    assert place.usage.path == tmp_path / "d" / "usage.jsonl"
    assert place.password == tmp_path / "d" / "password"
    file.write_text(
        f"request_store: {{sqlite: {{path: {tmp_path / 'r'}}}}}\n"
        f"queue: {{sqlite: {{path: {tmp_path / 'q'}}}}}\n"
        f"staging: {{local: {{root_dir: {tmp_path / 'disk'}}}}}\n"
    )
    place = place_of([file], None, strict=True, environ={})
    assert (place.database, place.usage.path, place.password) == (tmp_path / "r", None, None)


def test_the_systems_file_is_among_them(tmp_path: Path) -> None:
    system = tmp_path / "system.yaml"
    environ = {"POLYTOPE_SYSTEM_CONFIG": str(system)}
    with pytest.raises(ConfigurationError, match="whose data"):
        place_of([], None, strict=True, environ=environ)
    system.write_text(f"staging: {{local: {{root_dir: {tmp_path / 'disk'}}}}}\n")
    place = place_of([], tmp_path / "d", strict=True, environ=environ)
    assert place.staging.options == {"root_dir": str(tmp_path / "disk")}
    assert place.database == tmp_path / "d" / "requests.sqlite"


def test_a_request_store_that_is_not_embedded_has_tools_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("request_store: {mongodb: {uri: 'mongodb://db'}}\n")
    place = place_of([file], tmp_path / "d", strict=False, environ={})
    with pytest.raises(ConfigurationError, match="not an embedded one; use mongodump"):
        _ = place.database
