"""The operators' commands where the requests are on MongoDB, as processes."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from services.base import free_port
from services.mongodb import MongoDb

from polytope_server.config.mongodb import MongoStoreSection
from polytope_server.request import Status
from polytope_server.request_store.mongodb import MongoRequestStore
from polytope_server.testing.request_store import ANN, finish, new_request, start

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def database(mongodb: MongoDb) -> Iterator[str]:
    name = mongodb.database()
    yield name
    with mongodb.client() as client:
        client.drop_database(name)


@pytest.fixture
def store(mongodb: MongoDb, database: str) -> Iterator[MongoRequestStore]:
    store = MongoRequestStore(MongoStoreSection(uri=mongodb.uri, database=database))
    yield store
    store.close()


def command_line(file: Path) -> Run:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "polytope_server", *arguments, "-f", str(file)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def written(directory: Path, uri: str, database: str) -> Path:
    file = directory / "config.yaml"
    tree = {
        "request_store": {"mongodb": {"uri": uri, "database": database, "timeout": 1}},
        "queue": {"sqlite": {"path": str(directory / "q.sqlite")}},
        "staging": {"local": {"root_dir": str(directory / "staging")}},
        "datasources": {"echo": {"type": "echo"}},
        "collections": {"c1": {"datasources": ["echo"], "roles": ["default"]}},
    }
    file.write_text(json.dumps(tree))
    return file


@pytest.fixture
def run(mongodb: MongoDb, database: str, tmp_path: Path) -> Run:
    return command_line(written(tmp_path, mongodb.uri, database))


def test_operators_look_and_step_in(store: MongoRequestStore, run: Run) -> None:
    failed = finish(store, start(store, store.add(new_request())), target=Status.FAILED)
    waiting = store.add(new_request(user=ANN))
    listed = run("admin", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert [json.loads(line)["id"] for line in listed.stdout.splitlines()] == [
        waiting.id,
        failed.id,
    ]
    assert run("admin", "requeue", failed.id, "--reason", "tapes").returncode == 0
    assert store.get(failed.id).status is Status.WAITING
    assert run("admin", "revoke", waiting.id, "--reason", "asked").returncode == 0
    assert store.get_many([waiting.id]) == {}
    assert {entry.command for entry in store.noted()} == {"requeue", "revoke"}


def test_use_is_printed(store: MongoRequestStore, run: Run) -> None:
    done = finish(store, start(store, store.add(new_request())))
    store.remove(done.id)
    printed = run("usage")
    assert printed.returncode == 0, printed.stderr
    assert [json.loads(line)["id"] for line in printed.stdout.splitlines()] == [done.id]


def test_backups_are_left_to_the_tools_of_mongodb(run: Run, tmp_path: Path) -> None:
    for command in (["backup", str(tmp_path / "b")], ["status"]):
        refused = run("data", *command)
        assert refused.returncode != 0
        assert "use mongodump" in refused.stderr, refused.stderr
    assert not (tmp_path / "b").exists()


def test_a_command_says_that_the_server_is_away(tmp_path: Path) -> None:
    run = command_line(written(tmp_path, f"mongodb://127.0.0.1:{free_port()}", "d"))
    away = run("admin", "list")
    assert away.returncode != 0
    assert "does not answer" in away.stderr
    assert "Traceback" not in away.stderr
