"""A backup is consistent, whatever the server does meanwhile, and whole or not there."""

import os
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from data_directory import Data, at_the_end_of_the_store, objects_in, requests_in, silent

from polytope_server.data import manifest
from polytope_server.data.manifest import Manifest
from polytope_server.data.restore import check
from polytope_server.errors import ConfigurationError, StorageFull
from polytope_server.request import Status
from polytope_server.request_store.snapshot import Copy
from polytope_server.testing.request_store import finish, new_request, start
from polytope_server.usage.lines import line


def is_whole(backup: Path) -> Manifest:
    return check(backup, contents=True, progress=silent)


@pytest.mark.parametrize("may_link", [True, False])
def test_a_backup_holds_everything_and_is_closed_to_others(
    tmp_path: Path, data: Data, may_link: bool
) -> None:
    done, archiving, running = data.finished(b"GRIB" * 300_000), data.to_archive(), data.running()
    waiting = data.store.add(new_request())
    report = data.back_up(tmp_path / "b", may_link=may_link)
    assert requests_in(tmp_path / "b" / manifest.DATABASE) == {
        done.id: "processed",
        archiving.id: "waiting",
        running.id: "processing",
        waiting.id: "waiting",
    }
    assert objects_in(tmp_path / "b") == objects_in(data.directory)
    assert len(objects_in(tmp_path / "b")) == 2
    assert (tmp_path / "b" / "password").read_text() == "hush"
    assert report.manifest == is_whole(tmp_path / "b")
    assert report.manifest.objects == 2
    assert (report.linked, list(report.damaged)) == (2 if may_link else 0, [])
    modes = {
        (path.is_dir(), stat.S_IMODE(path.stat().st_mode))
        for path in (tmp_path / "b", *(tmp_path / "b").rglob("*"))
    }
    assert modes == {(True, 0o700), (False, 0o600)}
    (name,) = [name for name in objects_in(tmp_path / "b") if name.startswith(done.id)]
    original, kept = (
        next((root / "staging").rglob(name)).stat() for root in (data.directory, tmp_path / "b")
    )
    assert kept.st_mtime == pytest.approx(original.st_mtime, abs=0.001)
    assert (kept.st_ino == original.st_ino) is may_link


def test_nothing_but_what_requests_need_is_in_it(tmp_path: Path, data: Data) -> None:
    archived = finish(data.store, start(data.store, data.to_archive()))
    data.put("somebody-elses.grib", b"x")
    data.put(f"{archived.id}-3.grib", b"left by a worker that died")
    assert data.back_up(tmp_path / "b").manifest.objects == 0
    assert objects_in(tmp_path / "b") == {}


def test_the_input_of_a_failed_request_is_in_it_as_long_as_it_may_start_over(
    tmp_path: Path, data: Data
) -> None:
    failed = finish(data.store, start(data.store, data.to_archive()), target=Status.FAILED)
    assert failed.input is not None
    assert data.back_up(tmp_path / "b1").manifest.objects == 1
    given = failed.input

    def collect() -> None:
        data.store.forget_input(failed.id, given)
        data.staging.delete(given.name)

    report = data.back_up(tmp_path / "b2", progress=at_the_end_of_the_store(collect))
    assert (report.manifest.objects, list(report.damaged)) == (0, [])
    assert requests_in(tmp_path / "b2" / manifest.DATABASE) == {failed.id: "failed"}
    is_whole(tmp_path / "b2")


def test_a_request_that_is_removed_meanwhile_is_not_in_it(tmp_path: Path, data: Data) -> None:
    gone, stays = data.finished(), data.finished()

    def revoke() -> None:
        data.store.remove(gone.id)
        data.staging.delete(f"{gone.id}-1.grib")

    report = data.back_up(tmp_path / "b", progress=at_the_end_of_the_store(revoke))
    assert set(requests_in(tmp_path / "b" / manifest.DATABASE)) == {stays.id}
    assert list(report.damaged) == []
    assert is_whole(tmp_path / "b").objects == 1


def test_an_archive_that_finishes_meanwhile_is_finished_in_it(tmp_path: Path, data: Data) -> None:
    archiving = data.to_archive()
    assert archiving.input is not None
    name = archiving.input.name

    def archive() -> None:
        finish(data.store, start(data.store, archiving))
        data.staging.delete(name)  # the store still says that it is there

    data.back_up(tmp_path / "b", progress=at_the_end_of_the_store(archive))
    assert requests_in(tmp_path / "b" / manifest.DATABASE) == {archiving.id: "processed"}
    assert is_whole(tmp_path / "b").objects == 0


def test_a_request_may_finish_and_go_while_it_is_followed(tmp_path: Path, data: Data) -> None:
    archiving = data.to_archive()
    assert archiving.input is not None
    name = archiving.input.name

    def go_on() -> None:
        finish(
            data.store,
            start(data.store, archiving),
            result=data.put(f"{archiving.id}-1.grib", b"a result, too"),
        )
        data.staging.delete(name)

    data.back_up(tmp_path / "b", progress=at_the_end_of_the_store(go_on))
    assert objects_in(tmp_path / "b") == {f"{archiving.id}-1.grib": b"a result, too"}
    assert is_whole(tmp_path / "b").requests == {"processed": 1}


def test_what_begins_meanwhile_is_not_in_it(tmp_path: Path, data: Data) -> None:
    running = data.running()
    action = at_the_end_of_the_store(lambda: (data.finish(running), data.finished(), None)[-1])
    data.back_up(tmp_path / "b", progress=action)
    assert requests_in(tmp_path / "b" / manifest.DATABASE) == {running.id: "processing"}
    assert is_whole(tmp_path / "b").objects == 0


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_what_was_lost_before_is_left_out_and_said(tmp_path: Path, data: Data, damage: str) -> None:
    lost, stays, archiving = data.finished(), data.finished(), data.to_archive()
    assert archiving.input is not None
    for name in (f"{lost.id}-1.grib", archiving.input.name):
        path = data.staging.path(name)
        if damage == "missing":
            path.unlink()
        else:
            os.truncate(path, 3)
    report = data.back_up(tmp_path / "b")
    assert set(report.damaged) == {lost.id, archiving.id}
    assert all(any(each in text for text in report.lines()) for each in report.damaged)
    assert is_whole(tmp_path / "b").objects == 1
    with Copy(tmp_path / "b" / manifest.DATABASE) as copy:
        assert copy.row(lost.id) is None
        assert copy.row(stays.id) is not None
        row = copy.row(archiving.id)
        assert row is not None
        assert (row["status"], row["input_name"]) == ("waiting", None)


def test_records_of_use_are_in_it_each_in_one_place_at_least(tmp_path: Path, data: Data) -> None:
    for _ in range(3):
        data.finished()
    usages = data.store.usage()
    path = data.directory / "usage.jsonl"
    path.write_bytes(line(usages[0]))
    data.store.forget_usage([usages[0].key])

    def write() -> None:
        with path.open("ab") as out:
            out.write(line(usages[1]) + line(usages[2])[:20])
        data.store.forget_usage([usages[1].key])

    data.back_up(tmp_path / "b", progress=at_the_end_of_the_store(write))
    assert (tmp_path / "b" / manifest.USAGE).read_bytes() == line(usages[0]) + line(usages[1])
    with Copy(tmp_path / "b" / manifest.DATABASE) as copy:
        assert copy.summary().usage == 2
    is_whole(tmp_path / "b")


def test_the_store_may_be_written_to_all_the_while(tmp_path: Path, data: Data) -> None:
    for _ in range(50):
        data.finished()
    stop = threading.Event()

    def work() -> None:
        store = data.store
        while not stop.is_set():
            one = data.finished()
            store.remove(one.id)
            data.staging.delete(f"{one.id}-1.grib")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            report = data.back_up(tmp_path / f"b{number}")
            assert list(report.damaged) == []
            assert is_whole(tmp_path / f"b{number}").requests["processed"] >= 50
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=30)


def test_a_backup_needs_a_new_name(tmp_path: Path, data: Data) -> None:
    data.back_up(tmp_path / "b")
    before = sorted((tmp_path / "b").rglob("*"))
    for taken in (tmp_path / "b", data.directory, data.database):
        with pytest.raises(ConfigurationError, match="is there already"):
            data.back_up(taken)
    with pytest.raises(ConfigurationError, match="No such file"):
        data.back_up(tmp_path / "not" / "there")
    assert sorted((tmp_path / "b").rglob("*")) == before
    assert {path.name for path in tmp_path.iterdir()} == {"server", "b"}


def test_without_room_for_copies_nothing_is_begun(tmp_path: Path, data: Data) -> None:
    running = data.running()
    result = data.put(f"{running.id}-1.grib", b"x")
    size = data.staging.free_bytes() + (1 << 34)
    os.truncate(data.staging.path(result.name), size)  # a hole
    finish(data.store, running, result=replace(result, size_bytes=size))
    with pytest.raises(StorageFull, match="no room"):
        data.back_up(tmp_path / "b", may_link=False)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]
    assert data.back_up(tmp_path / "b").linked == 1


def test_a_backup_that_fails_leaves_nothing(tmp_path: Path, data: Data) -> None:
    data.finished()

    def fail(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.back_up(tmp_path / "b", progress=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


def test_a_killed_backup_is_none_and_the_next_one_clears_it_away(
    tmp_path: Path, data: Data
) -> None:
    for _ in range(3):
        data.finished(b"x" * 3_000_000)
    script = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[3])\n"
        "from data_directory import Data\n"
        "def slowly(what, done, total):\n"
        "    if (what, done) == ('objects', 2): print('now', flush=True); time.sleep(60)\n"
        "Data(Path(sys.argv[1])).back_up(Path(sys.argv[2]), progress=slowly)\n"
    )
    arguments = [str(data.directory), str(tmp_path / "b"), str(Path(__file__).parent)]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    with pytest.raises(ConfigurationError, match="another backup is being written"):
        data.back_up(tmp_path / "b")
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    assert not (tmp_path / "b").exists()
    for left in (tmp_path / "b.partial", tmp_path / "b"):
        with pytest.raises(ConfigurationError, match="no backup, or not a whole one"):
            is_whole(left)
    data.back_up(tmp_path / "b")
    assert is_whole(tmp_path / "b").objects == 3
    assert not (tmp_path / "b.partial").exists()


def test_what_is_no_store_of_ours_is_refused(tmp_path: Path, data: Data) -> None:
    with pytest.raises(ConfigurationError, match="no such database"):
        Data(tmp_path / "nowhere").back_up(tmp_path / "b")
    data.database.unlink()
    data.database.write_bytes(b"not a database" * 1000)
    with pytest.raises(ConfigurationError, match="no database, or a damaged one"):
        data.back_up(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


def test_a_damaged_store_is_not_backed_up(tmp_path: Path, data: Data) -> None:
    for _ in range(30):
        data.finished()
    data.store.ping()
    with data.database.open("r+b") as file:
        pages = data.database.stat().st_size // 4096
        for page in range(2, pages):
            file.seek(page * 4096)
            file.write(b"\xff" * 200)
    with pytest.raises(ConfigurationError, match="damaged"):
        data.back_up(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_large_object_needs_little_memory(tmp_path: Path, data: Data) -> None:
    running = data.running()
    result = data.put(f"{running.id}-1.grib", b"x")
    os.truncate(data.staging.path(result.name), 200 << 20)
    finish(data.store, running, result=replace(result, size_bytes=200 << 20))
    script = (
        "import resource, sys; from pathlib import Path; sys.path.insert(0, sys.argv[3])\n"
        "from data_directory import Data\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "Data(Path(sys.argv[1])).back_up(Path(sys.argv[2]), may_link=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    arguments = [str(data.directory), str(tmp_path / "b"), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 40 * 1024
