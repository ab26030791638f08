"""Every process is killed with SIGKILL in the middle of work: nothing is lost, nothing is half."""

import signal
import threading
import time
from pathlib import Path

import pytest
import requests
from deployment import Deployment, until

from polytope_server.config.embedded import SqliteStoreSection
from polytope_server.request_store.sqlite import SqliteRequestStore

REQUESTS = 200
SIZES = (0, 1, 65_537, 3_000_001)


def check_all(server: Deployment, ids: dict[str, int]) -> None:
    """Each of the requests ends in its result, whole."""
    for request_id, size in ids.items():
        response = server.finished(request_id, deadline_s=120)
        assert response.status_code == 303, f"{request_id}: {response.text}"
        data = server.call("GET", response.headers["Location"], user=None)
        assert data.status_code == 200
        assert len(data.content) == size == int(data.headers["Content-Length"])
        assert not data.content.strip(b"x")


@pytest.mark.parametrize("victim", ["frontend", "broker", "worker", "garbage-collector"])
def test_killed_in_the_middle_of_200_requests_none_is_lost(tmp_path: Path, victim: str) -> None:
    with Deployment(tmp_path / "d") as server:
        ids: dict[str, int] = {}
        doubtful = 0

        def submit_all() -> None:
            nonlocal doubtful
            for number in range(REQUESTS):
                size = SIZES[number % len(SIZES)]
                key = f"key-{number}"
                while True:
                    try:
                        request_id = server.submit(
                            str(size), collection="bytes", headers={"Idempotency-Key": key}
                        )
                    except requests.ConnectionError:
                        doubtful += 1
                        time.sleep(0.05)
                        continue
                    ids[request_id] = size
                    break

        submitting = threading.Thread(target=submit_all)
        submitting.start()
        for at in (40, 100, 160):
            until(lambda at=at: len(ids) >= at, deadline_s=120)
            process = server.processes[victim]
            server.kill(victim)
            assert process.returncode == -signal.SIGKILL
            server.start(victim)
        submitting.join(timeout=300)
        assert len(ids) == REQUESTS
        server.until_ready()
        check_all(server, ids)
        # no request twice, although its submission was repeated
        listed = server.call("GET", "/requests").json()["message"]
        assert len(listed) == REQUESTS, f"{doubtful} submissions were repeated"


def test_a_worker_killed_while_it_runs_a_request_has_it_run_again(tmp_path: Path) -> None:
    changes = {"datasources": {"dummy": {"bytes_per_second": 400_000}}}
    with Deployment(tmp_path / "d", changes=changes) as server:
        request_id = server.submit("1000000", collection="bytes")
        until(lambda: "staged so far" in server.poll(request_id).text)
        server.kill("worker")
        staged = tmp_path / "d" / "staging"
        assert not list(staged.rglob(f"{request_id}*")), "something unfinished can be seen"
        server.start("worker")
        assert server.result(request_id) == b"x" * 1_000_000
        assert [p.name for p in staged.rglob(f"{request_id}*")] == [f"{request_id}-2.grib"]


def test_a_request_whose_worker_dies_again_and_again_fails_with_the_reason(tmp_path: Path) -> None:
    with Deployment(tmp_path / "d", changes={"broker": {"max_attempts": 2}}) as server:
        request_id = server.submit("x: 1", collection="hanging")
        for _ in range(2):
            until(lambda: server.poll(request_id).json()["status"] == "processing")
            server.kill("worker")
            until(lambda: server.poll(request_id).json().get("status") != "processing")
            server.start("worker")
        response = server.finished(request_id)
        assert response.status_code == 400
        assert "2 times" in response.json()["message"]


def test_slots_do_not_outlive_a_killed_worker(tmp_path: Path) -> None:
    with Deployment(tmp_path / "d") as server:
        request_id = server.submit("x: 1", collection="hanging")
        until(lambda: server.poll(request_id).json()["status"] == "processing")
        worker = server.processes["worker"].pid
        children = _children(worker)
        assert len(children) >= 2
        server.kill("worker")
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), deadline_s=5)


def test_a_standby_broker_takes_over(tmp_path: Path) -> None:
    with Deployment(tmp_path / "d") as server:
        server.start("broker", label="broker-2")
        assert server.result(server.submit("1", collection="bytes")) == b"x"
        server.kill("broker")
        assert server.result(server.submit("2", collection="bytes")) == b"xx"
        assert "is active now" in server.log("broker-2")


def test_a_stopped_worker_does_not_harm_the_one_that_took_over(tmp_path: Path) -> None:
    """SIGSTOP beyond the lease: the sleeper wakes up, finds that it has lost, and leaves no trace."""
    changes = {"datasources": {"dummy": {"bytes_per_second": 300_000}}, "worker": {"slots": 1}}
    with Deployment(tmp_path / "d", changes=changes) as server:
        request_id = server.submit("1500000", collection="bytes")
        until(lambda: server.poll(request_id).json()["status"] == "processing")
        server.kill("worker", signal.SIGSTOP)
        server.start("worker", label="worker-2")
        until(lambda: "attempt 2" in server.log("broker") or _attempt(server, request_id) == 2)
        server.kill("worker", signal.SIGCONT)
        assert server.result(request_id) == b"x" * 1_500_000
        names = [p.name for p in (tmp_path / "d" / "staging").rglob(f"{request_id}*")]
        assert names == [f"{request_id}-2.grib"]


def test_a_draining_worker_hands_its_request_back(tmp_path: Path) -> None:
    changes = {
        "datasources": {"dummy": {"bytes_per_second": 200_000}},
        "worker": {"drain_timeout": 0.5},
    }
    with Deployment(tmp_path / "d", changes=changes) as server:
        request_id = server.submit("1000000", collection="bytes")
        until(lambda: server.poll(request_id).json()["status"] == "processing")
        server.kill("worker", signal.SIGTERM)
        assert server.processes["worker"].wait(timeout=20) == 0
        assert server.poll(request_id).json()["status"] == "queued"
        server.start("worker")
        assert server.result(request_id) == b"x" * 1_000_000
        names = [p.name for p in (tmp_path / "d" / "staging").rglob(f"{request_id}*")]
        assert names == [f"{request_id}-1.grib"], "handing back counts as no attempt"


def test_a_lost_queue_loses_no_request(tmp_path: Path) -> None:
    with Deployment(tmp_path / "d") as server:
        server.kill("worker")
        ids = {server.submit("5", collection="bytes"): 5 for _ in range(20)}
        until(lambda: "queued" in server.log("broker"))
        for file in (tmp_path / "d").glob("queue.sqlite*"):
            if file.is_file():
                file.unlink()
        server.start("worker")
        check_all(server, ids)


def test_processes_start_in_any_order(tmp_path: Path) -> None:
    server = Deployment(tmp_path / "d")
    with_frontend = ("worker", "garbage-collector", "broker", "frontend")
    try:
        for name in with_frontend:
            server.start(name)
        server.until_ready()
        assert server.result(server.submit("3", collection="bytes")) == b"xxx"
    finally:
        server.__exit__()


def _children(pid: int) -> list[int]:
    text = ""
    for task in Path(f"/proc/{pid}/task").iterdir():
        text += (task / "children").read_text()
    return [int(child) for child in text.split()]


def _attempt(server: Deployment, request_id: str) -> int:
    store = SqliteRequestStore(SqliteStoreSection(path=server.directory / "requests.sqlite"))
    return store.get(request_id).attempt
