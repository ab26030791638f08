"""The file of records of use: whole lines, each once, whatever happens to it meanwhile."""

import fcntl
import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polytope_server.errors import BackendUnavailable, ConfigurationError, StorageFull
from polytope_server.request import Status, Verb
from polytope_server.request_store import Usage
from polytope_server.usage.file import UsageFile
from polytope_server.usage.lines import line
from polytope_server.user import User


def a_record(number: int, *, username: str = "joe") -> Usage:
    return Usage(
        id=f"id-{number:06}",
        user=User(username=username, realm="r", roles=frozenset({"b", "a"})),
        verb=Verb.RETRIEVE,
        collection="c",
        datasource="d",
        status=Status.PROCESSED,
        attempt=2,
        size_bytes=number,
        submitted_at=1_700_000_000.0 + number,
        started_at=1_700_000_001.5 + number,
        finished_at=1_700_000_011.75 + number,
    )


def records(*numbers: int) -> list[Usage]:
    return [a_record(number) for number in numbers]


def numbers_in(path: Path) -> list[int]:
    """The numbers of all records of a file, in which there is nothing else."""
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(each)["bytes"] for each in text.splitlines()]


def test_a_line_says_who_what_how_much_and_when() -> None:
    assert json.loads(line(a_record(0))) == {
        "id": "id-000000",
        "user": "joe",
        "realm": "r",
        "roles": ["a", "b"],
        "verb": "retrieve",
        "collection": "c",
        "datasource": "d",
        "status": "processed",
        "attempt": 2,
        "bytes": 0,
        "submitted": "2023-11-14T22:13:20.000000Z",
        "started": "2023-11-14T22:13:21.500000Z",
        "finished": "2023-11-14T22:13:31.750000Z",
        "seconds_queued": 1.5,
        "seconds_processing": 10.25,
    }


def test_a_name_cannot_make_a_line_of_its_own() -> None:
    name = 'x\n{"id": "forged"}\r\x85\u2028\0\ud800'
    text = line(a_record(1, username=name))
    assert text.isascii()
    assert text.count(b"\n") == 1
    assert json.loads(text)["user"] == name


def test_a_new_file_is_closed_to_others_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "new" / "usage.jsonl"
    file = UsageFile(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert file.append(records(1, 2)) == 2
    assert file.append(records(3)) == 1
    assert file.append([]) == 0
    assert numbers_in(path) == [1, 2, 3]


def test_what_is_there_is_not_written_again_by_nobody(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    file = UsageFile(path)
    file.append(records(*range(700)))
    assert file.append(records(698, 699, 700, 700)) == 1
    # one that has died before it could have the store forget them
    assert UsageFile(path).append(records(699, 700, 701)) == 1
    # and the first, which was only slow, and knows nothing of the other's
    assert file.append(records(701, 702)) == 1
    assert numbers_in(path) == list(range(703))


@pytest.mark.parametrize("cut", [1, 2, 5, 6, 7, 40, 200, "whole line"])
def test_a_line_that_was_cut_off_is_written_anew(tmp_path: Path, cut: int | str) -> None:
    path = tmp_path / "usage.jsonl"
    last = line(a_record(2))
    torn = last[:-1] if cut == "whole line" else last[: int(cut)]
    path.write_bytes(line(a_record(1)) + torn)
    UsageFile(path).append(records(2, 3))
    assert numbers_in(path) == [1, 2, 3]


def test_a_whole_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_bytes(line(a_record(1)) + line(a_record(2))[:-1])
    UsageFile(path).append(records(3))
    assert numbers_in(path) == [1, 2, 3]


def test_zeros_of_a_power_cut_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_bytes(line(a_record(1)) + bytes(5000))
    UsageFile(path).append(records(2))
    assert numbers_in(path) == [1, 2]


def test_somebody_elses_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are notes\nof somebody")
    with pytest.raises(BackendUnavailable, match=r"notes\.txt ends in the middle"):
        UsageFile(path).append(records(1))
    assert path.read_text() == "these are notes\nof somebody"


@pytest.mark.parametrize("how", ["renamed", "renamed and made", "removed", "truncated"])
def test_a_file_that_is_rotated_is_followed(tmp_path: Path, how: str) -> None:
    path, old = tmp_path / "usage.jsonl", tmp_path / "usage.jsonl.1"
    file = UsageFile(path)
    file.append(records(1, 2))
    match how:
        case "renamed":
            path.rename(old)
        case "renamed and made":
            path.rename(old)
            path.touch(0o640)
        case "removed":
            path.unlink()
        case "truncated":
            old.write_bytes(path.read_bytes())
            os.truncate(path, 0)
    file.append(records(3))
    file.append(records(4))
    assert numbers_in(path) == [3, 4]
    if old.exists():
        assert numbers_in(old) == [1, 2]


@contextmanager
def no_file_larger_than(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_room_nothing_is_left_and_later_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    file = UsageFile(path)
    file.append(records(1))
    with no_file_larger_than(path.stat().st_size + 1000):
        for _ in range(2):
            with pytest.raises(StorageFull):
                file.append(records(*range(2, 20)))
            assert numbers_in(path) == [1]
    file.append(records(*range(2, 20)))
    assert numbers_in(path) == list(range(1, 20))


def test_a_file_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    file = UsageFile(path)
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BackendUnavailable, match="locked"):
            file.append(records(1))
    file.append(records(1))
    assert numbers_in(path) == [1]


@pytest.mark.parametrize("what", ["a directory", "below a file", "a pipe"])
def test_what_cannot_be_the_file_is_told_at_once(tmp_path: Path, what: str) -> None:
    path = tmp_path / "usage.jsonl"
    match what:
        case "a directory":
            path.mkdir()
        case "below a file":
            path.touch()
            path = path / "usage.jsonl"
        case "a pipe":
            os.mkfifo(path)
    with pytest.raises(ConfigurationError, match=r"usage\.path: .*usage\.jsonl"):
        UsageFile(path)


def test_a_directory_in_the_place_of_the_file_later_on_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    file = UsageFile(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(BackendUnavailable):
        file.append(records(1))
    path.rmdir()
    file.append(records(1))
    assert numbers_in(path) == [1]
