"""An operator's command line against the real processes, and against itself when it is killed."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from deployment import REALM, Deployment, until

from polytope_server.config.embedded import SqliteStoreSection
from polytope_server.request import Status
from polytope_server.request_store import RequestStore, Wanted
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.testing.request_store import new_request
from polytope_server.user import User

MANY = 300
DROPPED_S = 2.0
"""So soon a worker drops what was taken from it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    changes = {"frontend": {"long_poll": 0}, "worker": {"lease": 10}}
    with Deployment(tmp_path_factory.mktemp("admin") / "d", changes=changes) as deployment:
        yield deployment


@pytest.fixture
def store(server: Deployment) -> RequestStore:
    return SqliteRequestStore(SqliteStoreSection(path=server.directory / "requests.sqlite"))


def command(server: Deployment, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "polytope_server", "admin"),
        *arguments,
        *("-f", str(server.file)),
    ]


def admin(server: Deployment, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        command(server, *arguments), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def the_worker(server: Deployment) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(admin(server, "workers", "--json"))
    return found


def running(server: Deployment, store: RequestStore) -> str:
    """The id of a request that will run until it is stopped."""
    request_id = server.submit("x: 1", collection="hanging")
    until(lambda: store.get(request_id).status is Status.PROCESSING)
    return request_id


def test_a_failed_request_stops_at_once_and_its_user_is_told(
    server: Deployment, store: RequestStore
) -> None:
    request_id = running(server, store)
    assert admin(server, "fail", request_id, "--reason", "tape 7 is broken") == (
        f"{request_id}: failed\n"
    )
    answer = server.poll(request_id)
    assert answer.status_code == 400
    assert "ended this request: tape 7 is broken" in answer.json()["message"]
    begin = time.time()
    until(lambda: store.workers()[0].busy == 0 and store.workers()[0].seen_at > begin)
    assert time.time() - begin < DROPPED_S + 1  # the worker says so once a second
    assert store.get(request_id).status is Status.FAILED
    assert not list((server.directory / "staging").rglob(f"{request_id}*"))


def test_a_requeued_request_is_dropped_by_its_slot_and_runs_again(
    server: Deployment, store: RequestStore
) -> None:
    request_id = running(server, store)
    admin(server, "requeue", request_id)
    begin = time.monotonic()
    until(lambda: store.get(request_id).attempt == 2)
    until(lambda: store.get(request_id).status is Status.PROCESSING)
    until(lambda: "stopped: the request was revoked" in log_of(server, request_id))
    assert time.monotonic() - begin < DROPPED_S + 1
    admin(server, "revoke", request_id, "--reason", "enough")
    assert server.poll(request_id).status_code == 404


def log_of(server: Deployment, request_id: str) -> str:
    return "".join(line for line in server.log("worker").splitlines() if request_id in line)


def test_a_failed_request_that_is_requeued_can_succeed_under_its_id(
    server: Deployment, store: RequestStore
) -> None:
    admin(server, "pause", "bytes")
    request_id = server.submit("1000", collection="bytes")
    admin(server, "fail", request_id, "--reason", "mistake")
    assert server.poll(request_id).status_code == 400
    admin(server, "requeue", request_id)
    assert server.poll(request_id).status_code == 202
    admin(server, "resume", "bytes")
    assert server.result(request_id) == b"x" * 1000
    admin(server, "requeue", request_id, status=1)
    assert server.result(request_id) == b"x" * 1000
    admin(server, "revoke", request_id)
    assert server.poll(request_id).status_code == 404
    assert not list((server.directory / "staging").rglob(f"{request_id}*"))


def test_a_paused_collection_accepts_and_waits_and_says_so(
    server: Deployment, store: RequestStore
) -> None:
    admin(server, "pause", "c1", "--reason", "maintenance")
    request_id = server.submit("x: 1")
    other = server.submit("1", collection="bytes")
    assert server.result(other) == b"x"
    until(lambda: "is paused by its operators" in server.poll(request_id).json()["message"])
    assert store.get(request_id).status is Status.WAITING
    admin(server, "resume", "c1")
    assert server.result(request_id, deadline_s=10) == b"x: 1"


def test_a_drained_worker_stays_and_takes_nothing_until_it_is_asked_to(
    server: Deployment, store: RequestStore
) -> None:
    name = the_worker(server)["name"]
    admin(server, "drain", name)
    assert the_worker(server)["state"] == "drained"
    time.sleep(1.0)
    request_id = server.submit("2", collection="bytes")
    until(lambda: store.get(request_id).status is Status.QUEUED)
    time.sleep(1.0)
    assert store.get(request_id).status is Status.QUEUED
    assert server.processes["worker"].poll() is None
    admin(server, "undrain", name)
    assert server.result(request_id, deadline_s=10) == b"xx"


def test_an_operator_killed_in_the_middle_leaves_no_change_without_its_entry(
    server: Deployment, store: RequestStore
) -> None:
    admin(server, "pause", "all")
    ann = User(username="ann", realm=REALM)
    ids = {
        store.add(replace(new_request(user=ann, collection="all"), datasource="echo")).id
        for _ in range(MANY)
    }
    waiting = Wanted(statuses={Status.WAITING}, collection="all")
    fail = ("fail", "--collection", "all", "--reason", "closed", "--yes")
    for _ in range(2):
        before = sum(store.counts(waiting).values())
        process = subprocess.Popen(
            command(server, *fail), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and sum(store.counts(waiting).values()) == before:
            pass  # as soon as it has begun
        process.kill()
        process.wait(timeout=30)
        failed = {i for i, r in store.get_many(ids).items() if r.status is Status.FAILED}
        noted = {e.target for e in store.noted(limit=10 * MANY) if e.reason == "closed"}
        assert noted == failed
    assert "failed" in admin(server, *fail)
    assert {r.status for r in store.get_many(ids).values()} == {Status.FAILED}
    noted_ids = [entry.target for entry in store.noted(limit=10 * MANY) if entry.reason == "closed"]
    assert sorted(noted_ids) == sorted(ids)
    assert admin(server, "requeue", "--collection", "all", "--yes") == f"{MANY} requeued\n"
    admin(server, "resume", "all")
    until(lambda: {r.status for r in store.get_many(ids).values()} == {Status.PROCESSED})
    assert server.result(ids.pop(), user="ann") == b"class: od"
