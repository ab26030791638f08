"""The commands as an operator types them."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from data_directory import Data, requests_in
from typer.testing import CliRunner, Result

from polytope_server.cli import EXIT_CONFIGURATION, app
from polytope_server.request import Status
from polytope_server.request_store.sqlite import SCHEMA
from polytope_server.sqlite import Database
from polytope_server.testing.request_store import ANN, finish, new_request, start


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_back_up_look_lose_and_restore(tmp_path: Path, data: Data) -> None:
    done, running = data.finished(b"GRIB"), data.running()
    where = ("--data-dir", data.directory)
    result = run("data", "backup", tmp_path / "b", *where)
    assert result.exit_code == 0, result.output
    assert "requests: 2 (1 processed, 1 processing)" in result.output
    assert "objects: 1, 4 bytes" in result.output
    assert "The backup is whole." in run("data", "check", tmp_path / "b", "--sha256").output
    refused = run("data", "restore", tmp_path / "b", *where)
    assert refused.exit_code == EXIT_CONFIGURATION
    assert refused.stderr.count("\n") == 1
    assert "there are data already" in refused.stderr
    data.directory.rename(tmp_path / "lost")
    result = run("data", "restore", tmp_path / "b", *where)
    assert result.exit_code == 0, result.output
    assert "1 requests were running and will be run again" in result.output
    assert requests_in(data.database) == {done.id: "processed", running.id: "waiting"}


def test_status_changes_nothing(tmp_path: Path) -> None:
    old = Data(tmp_path / "server")
    Database(old.database, schema=SCHEMA[:1])
    result = run("data", "status", "--data-dir", old.directory)
    assert result.exit_code == 0, result.output
    assert f"schema: version 1; this server's is {len(SCHEMA)}" in result.output
    assert "in use: by no server" in result.output
    assert [path.name for path in old.directory.iterdir()] == ["requests.sqlite"]
    assert run("data", "status", "--data-dir", tmp_path / "no").exit_code == EXIT_CONFIGURATION
    assert not (tmp_path / "no").exists()


def test_upgrade_is_after_a_backup(tmp_path: Path) -> None:
    old = Data(tmp_path / "server")
    Database(old.database, schema=SCHEMA[:1])
    where = ("--data-dir", old.directory)
    assert run("data", "upgrade", *where).exit_code == EXIT_CONFIGURATION
    assert (
        run("data", "upgrade", *where, "--no-backup", "--backup", tmp_path / "b").exit_code
        == EXIT_CONFIGURATION
    )
    assert _version(old.database) == 1
    result = run("data", "upgrade", *where, "--backup", tmp_path / "b")
    assert f"was of version 1 and is of version {len(SCHEMA)} now" in result.output
    assert _version(old.database) == len(SCHEMA)
    assert "schema version 1" in run("data", "check", tmp_path / "b").output
    assert "nothing to do" in run("data", "upgrade", *where, "--no-backup").output


def _version(database: Path) -> int:
    with closing(sqlite3.connect(database)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def test_nobodys_data_are_refused() -> None:
    result = run("data", "status")
    assert result.exit_code == EXIT_CONFIGURATION
    assert "--data-dir DIR" in result.stderr


@pytest.fixture
def used(data: Data) -> Data:
    for user, collection in ((ANN, "a"), (ANN, "a"), (ANN, "b")):
        store = data.store
        finish(store, start(store, store.add(new_request(user=user, collection=collection))))
    data.finished(b"x" * 1234)
    return data


def lines(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(text) for text in result.stdout.splitlines()]


def test_use_is_printed_and_chosen(tmp_path: Path, used: Data) -> None:
    where = ("--data-dir", used.directory)
    everything = lines(run("usage", *where))
    assert len(everything) == 4
    assert {each["status"] for each in everything} == {Status.PROCESSED}
    assert len(lines(run("usage", *where, "--user", "ann"))) == 3
    assert len(lines(run("usage", *where, "--user", "ann", "--collection", "b"))) == 1
    assert len(lines(run("usage", *where, "--since", "1h"))) == 4
    assert lines(run("usage", *where, "--until", "2020-01-01")) == []
    last = str(everything[-1]["finished"])
    assert len(lines(run("usage", *where, "--until", last))) == 3
    assert len(lines(run("usage", *where, "--since", last))) == 1
    refused = run("usage", *where, "--since", "yesterday")
    assert refused.exit_code == EXIT_CONFIGURATION
    assert "--since: must be" in refused.stderr
    assert run("usage", "--data-dir", tmp_path / "no").exit_code == EXIT_CONFIGURATION


def test_files_of_another_place_can_be_read(tmp_path: Path, used: Data) -> None:
    file = tmp_path / "old.jsonl"
    file.write_text(run("usage", "--data-dir", used.directory).stdout + "junk\n")
    result = run("usage", "--file", file)
    assert len(lines(result)) == 4
    assert "1 lines are no records of use" in result.stderr


def test_a_summary_is_a_table(used: Data) -> None:
    result = run("usage", "--data-dir", used.directory, "--summary")
    rows = [text.split() for text in result.stdout.splitlines() if "│" in text]
    cells = [[cell for cell in row if cell != "│"] for row in rows]
    assert [row[:6] for row in cells] == [
        ["joe", "r", "c1", "1", "0", "1,234"],
        ["ann", "r", "a", "2", "0", "0"],
        ["ann", "r", "b", "1", "0", "0"],
        ["all", "4", "0", "1,234", cells[3][4]],
    ]
