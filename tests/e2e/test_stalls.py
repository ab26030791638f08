"""A worker that stands still for longer than its leases: it may get its own request once more."""

import json
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from deployment import Deployment, until

from polytope_server.config.embedded import SqliteStoreSection
from polytope_server.request_store.sqlite import SqliteRequestStore

SLOW = {"datasources": {"dummy": {"bytes_per_second": 200_000}}}
ENDS = (
    "stopped: the request was revoked or is somebody else's by now",
    "the request was revoked or taken over before it was finished",
    "finished",
)


def running(server: Deployment, request_id: str) -> int:
    """How many runs of a request the worker says it has begun and not ended."""
    lines = [line for line in server.log("worker").splitlines() if f'"{request_id}"' in line]
    messages = [json.loads(line)["message"] for line in lines]
    return messages.count("started") - sum(messages.count(end) for end in ENDS)


def test_a_worker_that_stood_still_runs_nothing_twice_and_fails_nothing(tmp_path: Path) -> None:
    """By a store that is locked, and by SIGSTOP, for longer than a lease."""
    directory = tmp_path / "d"
    changes = SLOW | {"worker": {"slots": 3, "lease": 2}}
    with Deployment(directory, changes=changes) as server:
        store = SqliteRequestStore(SqliteStoreSection(path=directory / "requests.sqlite"))
        request_id = server.submit("1000000", collection="bytes")

        def runs_once() -> bool:
            request = store.get(request_id)
            is_ours = (request.lease_expires_at or 0.0) > store.now() + 0.5
            return is_ours and running(server, request_id) == 1

        until(runs_once)
        with closing(sqlite3.connect(directory / "requests.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            time.sleep(2.5)
            other.execute("ROLLBACK")
        until(runs_once, deadline_s=3)
        attempt = store.get(request_id).attempt
        server.kill("worker", signal.SIGSTOP)
        until(lambda: store.get(request_id).attempt > attempt)
        server.kill("worker", signal.SIGCONT)
        until(runs_once, deadline_s=3)
        assert server.result(request_id) == b"x" * 1_000_000
        assert running(server, request_id) == 0
