"""Long lists of large requests: sent as they are read, and never half a list for a whole one."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from deployment import REALM, USERS, Deployment

from polytope_server.config.embedded import SqliteStoreSection
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.testing.request_store import new_request
from polytope_server.user import User

COUNT = 80
LARGE = {"number": list(range(40_000))}
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A frontend, and what Joe has sent before."""
    directory = tmp_path_factory.mktemp("listing")
    with Deployment(directory, names=("frontend",)) as deployment:
        store = SqliteRequestStore(SqliteStoreSection(path=directory / "requests.sqlite"))
        joe = User(username="joe", realm=REALM)
        for number in range(COUNT):
            request = new_request(user=joe, request_id=f"r{number:03}")
            store.add(replace(request, user_request=json.dumps(LARGE), coerced_request=LARGE))
        yield deployment


def most_memory_bytes(pid: int) -> int:
    """Of a process and those below it, at any time until now."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = " ".join((task / "children").read_text() for task in tasks).split()
    return max(int(line.split()[1]) << 10, *(most_memory_bytes(int(c)) for c in children), 0)


def test_a_long_list_takes_no_more_memory_than_a_short_one(server: Deployment) -> None:
    frontend = server.processes["frontend"].pid
    server.call("GET", "/requests", user="ann")
    before = most_memory_bytes(frontend)
    response = server.call("GET", "/requests")
    assert response.headers["Content-Type"] == "application/json"
    records = response.json()["message"]
    assert [record["id"] for record in records] == [f"r{number:03}" for number in range(COUNT)]
    assert len(response.content) > 15 * MIB
    assert server.call("GET", "/requests/c1").json()["message"] == records
    head = server.call("HEAD", "/requests")
    assert (head.status_code, head.content) == (200, b"")
    assert "Content-Length" not in head.headers, "nobody has counted"
    assert most_memory_bytes(frontend) - before < 25 * MIB


def test_a_short_list_has_its_length(server: Deployment) -> None:
    response = server.call("GET", "/requests", user="ann")
    assert response.json() == {"message": []}
    assert int(response.headers["Content-Length"]) == len(response.content)


def test_a_list_that_cannot_go_on_is_cut_off(server: Deployment) -> None:
    auth = ("joe", USERS["joe"])
    with (
        requests.get(f"{server.api}/requests", auth=auth, stream=True, timeout=20) as response,
        closing(sqlite3.connect(server.directory / "requests.sqlite")) as database,
    ):
        chunks = response.iter_content(1 << 16)
        assert next(chunks).startswith(b'{"message": [')
        database.execute("ALTER TABLE requests RENAME TO away")
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            for _ in chunks:
                pass
        assert server.call("GET", "/requests").status_code == 503
        database.execute("ALTER TABLE away RENAME TO requests")
