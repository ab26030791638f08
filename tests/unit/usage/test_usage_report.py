"""Records of use as they are asked for: from rotated files and the store, each once, chosen, added up."""

import gzip
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_usage_file import a_record

from polytope_server.config.embedded import SqliteStoreSection
from polytope_server.errors import ConfigurationError
from polytope_server.request_store import Usage
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.testing.request_store import ANN, finish, new_request, start
from polytope_server.usage.lines import as_json, line
from polytope_server.usage.report import Reading, Wanted, files_of, moment, totals


@pytest.fixture
def store(tmp_path: Path) -> SqliteRequestStore:
    return SqliteRequestStore(SqliteStoreSection(path=tmp_path / "r.sqlite"))


def write(path: Path, usages: Sequence[Usage], *, age: int) -> Path:
    data = b"".join(map(line, usages))
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    return path


def test_rotated_files_come_first_oldest_first(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    assert files_of(path) == []
    assert files_of(tmp_path / "nowhere" / "usage.jsonl") == []
    names = {
        "usage.jsonl-20260101.gz": 4,
        "usage.jsonl.2.gz": 3,
        "usage.jsonl.1": 2,
        "usage.jsonl": 1,
    }
    for name, age in names.items():
        write(tmp_path / name, [a_record(age)], age=age)
    for name in ("usage.jsonl.bak", "usage.jsonl.1.new", "other.jsonl.1", "usage.jsonl.restoring"):
        (tmp_path / name).write_text("not ours\n")
    found = files_of(path)
    assert [each.name for each in found] == list(names)
    reading = Reading(found, None)
    assert [record["bytes"] for record in reading] == [4, 3, 2, 1]
    assert reading.strange == 0


def test_each_record_comes_once_wherever_it_is(tmp_path: Path, store: SqliteRequestStore) -> None:
    ids = [finish(store, start(store, store.add(new_request()))).id for _ in range(4)]
    usages = store.usage()
    path = write(tmp_path / "u.jsonl", [*usages[:2], *usages[:3]], age=0)  # twice, after a crash
    assert [record["id"] for record in Reading([path], store)] == ids
    assert [record["id"] for record in Reading([], store)] == ids
    store.forget_usage([usage.key for usage in usages[:3]])
    assert [record["id"] for record in Reading([path], store)] == ids


def test_a_record_that_is_moved_to_the_file_meanwhile_is_not_missed(
    tmp_path: Path, store: SqliteRequestStore
) -> None:
    ids = [finish(store, start(store, store.add(new_request()))).id for _ in range(3)]
    first, *rest = store.usage()
    path = write(tmp_path / "u.jsonl", [first], age=0)
    store.forget_usage([first.key])
    reading = iter(Reading([path], store))
    found = [next(reading)["id"]]
    with path.open("ab") as out:
        out.write(b"".join(map(line, rest)))
    store.forget_usage([usage.key for usage in rest])
    path.rename(tmp_path / "u.jsonl.1")
    found += [record["id"] for record in reading]
    assert sorted(found) == sorted(ids)


def test_what_is_no_record_is_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    junk = [b"", b"\0" * 100, b"{}", b"[1]", b'{"id": 1}', b"[" * 100_000, b"x" * 3_000_000]
    path.write_bytes(
        line(a_record(1)) + b"\n".join(junk) + b"\n" + line(a_record(2)) + line(a_record(3))[:50]
    )
    reading = Reading([path], None)
    assert [record["bytes"] for record in reading] == [1, 2]
    assert reading.strange >= len(junk)


def test_a_file_that_is_not_there_or_damaged_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no\.jsonl: cannot be read"):
        list(Reading([tmp_path / "no.jsonl"], None))
    damaged = tmp_path / "u.jsonl.1.gz"
    damaged.write_bytes(gzip.compress(line(a_record(1)) * 100)[:60])
    with pytest.raises(ConfigurationError, match=r"u\.jsonl\.1\.gz: cannot be read"):
        list(Reading([damaged], None))


NOW = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-01-02", "2026-01-02T00:00:00.000000Z"),
        ("2026-01-02T03:04", "2026-01-02T03:04:00.000000Z"),
        ("2026-01-02T03:04:05.5+01:00", "2026-01-02T02:04:05.500000Z"),
        ("12h", "2026-01-31T00:00:00.000000Z"),
        ("1d12h", "2026-01-30T00:00:00.000000Z"),
    ],
)
def test_a_time_is_iso_or_so_long_ago(text: str, meant: str) -> None:
    assert moment(text, option="--since", now=NOW) == meant


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "-1d", "9999999999d"])
def test_any_other_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--since: must be a time such as"):
        moment(text, option="--since", now=NOW)


def test_records_are_chosen_by_time_user_and_collection() -> None:
    record = as_json(a_record(0))
    at, later = record["finished"], as_json(a_record(1))["finished"]
    for wanted in (
        Wanted(),
        Wanted(since=at, until=later),
        Wanted(user="joe", collection="c"),
    ):
        assert record in wanted
    for wanted in (
        Wanted(since=later),
        Wanted(until=at),
        Wanted(user="jo"),
        Wanted(collection="d"),
        Wanted(user="joe", collection="d"),
    ):
        assert record not in wanted


def test_totals_are_by_user_and_collection(store: SqliteRequestStore) -> None:
    for user, collection in ((ANN, "a"), (ANN, "a"), (ANN, "b")):
        finish(store, start(store, store.add(new_request(user=user, collection=collection))))
    found = totals([*map(as_json, store.usage()), as_json(a_record(7))])
    assert {key: total.requests for key, total in found.items()} == {
        ("joe", "r", "c"): 1,
        ("ann", "r", "a"): 2,
        ("ann", "r", "b"): 1,
    }
    total = found["joe", "r", "c"]
    assert (total.size_bytes, total.failed, total.seconds) == (7, 0, 10.25)
    assert next(iter(found)) == ("joe", "r", "c"), "not the largest first"
