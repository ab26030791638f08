"""Datasources that crash, hang and leak, users who change their minds, disks that are full."""

import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from deployment import USERS, Deployment, until


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One slot only: whatever a request leaves behind is felt by the next one."""
    changes = {
        "frontend": {"long_poll": "1s"},
        "broker": {"max_queued": 2},
        "worker": {"slots": 1, "timeout": 4, "memory_limit": "200M"},
        "datasources": {"slow": {"type": "dummy", "bytes_per_second": 1_000_000}},
        "collections": {"slow": {"roles": {"test": ["default"]}, "datasources": ["slow"]}},
    }
    with Deployment(tmp_path_factory.mktemp("faulty"), changes=changes) as deployment:
        yield deployment


def the_slot_is_free(server: Deployment) -> None:
    assert server.result(server.submit("3", collection="bytes"), deadline_s=20) == b"xxx"


@pytest.mark.parametrize(
    ("collection", "said"),
    [
        ("failing", "the tape is broken"),
        ("crashing", "crashed (SIGSEGV)"),
        ("greedy", "more memory"),
        ("hanging", "did not deliver within 4 seconds"),
    ],
)
def test_a_faulty_datasource_fails_one_request_and_nothing_else(
    faulty: Deployment, collection: str, said: str
) -> None:
    response = faulty.finished(faulty.submit("x: 1", collection=collection))
    assert response.status_code == 400
    assert said in response.json()["message"]
    the_slot_is_free(faulty)


def test_revoking_a_running_request_frees_its_slot_within_two_seconds(faulty: Deployment) -> None:
    hanging = faulty.submit("x: 1", collection="hanging")
    next_one = faulty.submit("3", collection="bytes")
    until(lambda: faulty.poll(hanging).json()["status"] == "processing")
    begin = time.monotonic()
    assert faulty.call("DELETE", f"/requests/{hanging}").status_code == 200
    assert faulty.result(next_one) == b"xxx"
    assert time.monotonic() - begin < 2
    assert faulty.poll(hanging).status_code == 404


def test_a_revoked_transfer_leaves_nothing(faulty: Deployment) -> None:
    request_id = faulty.submit("100000000", collection="slow")
    until(lambda: "staged so far" in faulty.poll(request_id).text)
    staging = faulty.directory / "staging"
    assert any(staging.rglob("*"))
    faulty.call("DELETE", f"/requests/{request_id}")
    until(lambda: not [p for p in staging.rglob("*") if p.is_file() and p.stat().st_size > 10])


def test_progress_is_told(faulty: Deployment) -> None:
    request_id = faulty.submit("2500000", collection="slow")
    seen = set()

    def look() -> bool:
        response = faulty.poll(request_id)
        if response.status_code == 202:
            seen.add(response.json()["message"])
        return response.status_code == 303

    until(look)
    assert any("staged so far" in message for message in seen), seen


def test_a_held_poll_is_answered_as_soon_as_the_request_is_revoked(faulty: Deployment) -> None:
    request_id = faulty.submit("x: 1", collection="hanging")
    until(lambda: faulty.poll(request_id).json()["status"] == "processing")
    answers: list[tuple[float, int]] = []

    def hold() -> None:
        status = faulty.poll(request_id).status_code
        answers.append((time.monotonic(), status))

    thread = threading.Thread(target=hold)
    thread.start()
    time.sleep(0.2)
    begin = time.monotonic()
    faulty.call("DELETE", f"/requests/{request_id}")
    thread.join(timeout=30)
    ((at, status),) = answers
    assert status == 404
    assert at - begin < 1.5


def test_one_user_with_a_backlog_does_not_delay_another(faulty: Deployment) -> None:
    many = [faulty.submit("200000", collection="slow", user="joe") for _ in range(15)]
    one = faulty.submit("1", collection="slow", user="ann")
    faulty.result(one, user="ann")
    records = faulty.call("GET", "/requests/slow").json()["message"]
    statuses = {record["id"]: record["status"] for record in records}
    assert sum(statuses[i] == "queued" for i in many) >= 8
    faulty.call("DELETE", "/requests/all")


def test_limits_of_a_collection_hold(server: Deployment) -> None:
    ids = [server.submit("x: 1", collection="limited", user="joe") for _ in range(2)]
    others = [server.submit("x: 1", collection="limited", user="eve") for _ in range(2)]
    try:
        until(lambda: server.poll(ids[0]).json()["status"] == "processing")
        until(lambda: server.poll(others[0], user="eve").json()["status"] == "processing")
        waiting = server.poll(ids[1]).json()
        assert waiting["status"] == "queued"
        assert "number 1 in line" in waiting["message"]
        assert server.poll(others[1], user="eve").json()["status"] == "queued"
    finally:
        server.call("DELETE", "/requests/all", user="joe")
        server.call("DELETE", "/requests/all", user="eve")


def test_a_store_that_is_locked_for_a_while_only_makes_users_wait(tmp_path: Path) -> None:
    with Deployment(tmp_path / "d") as server:
        request_id = server.submit("5", collection="bytes")
        server.result(request_id)
        database = sqlite3.connect(tmp_path / "d" / "requests.sqlite", isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
        waiting: list[str] = []
        thread = threading.Thread(
            target=lambda: waiting.append(server.submit("7", collection="bytes"))
        )
        thread.start()
        assert server.poll(request_id).status_code == 303, "reading does not wait for a writer"
        time.sleep(2)
        assert not waiting
        database.execute("ROLLBACK")
        thread.join(timeout=60)
        assert server.result(waiting[0]) == b"x" * 7


def test_a_frontend_finishes_a_download_before_it_ends(tmp_path: Path) -> None:
    size = 30_000_000
    with Deployment(tmp_path / "d") as server:
        response = server.finished(server.submit(str(size), collection="bytes"))
        with requests.get(response.headers["Location"], stream=True, timeout=60) as download:
            received = len(next(download.iter_content(100_000)))
            server.kill("frontend", signal.SIGTERM)
            time.sleep(0.5)
            for chunk in download.iter_content(1 << 20):
                received += len(chunk)
        assert received == size
        assert server.processes["frontend"].wait(timeout=20) == 0


def test_results_survive_a_restart_of_everything(tmp_path: Path) -> None:
    server = Deployment(tmp_path / "d")
    with server:
        request_id = server.submit("1000", collection="bytes")
        link = server.finished(request_id).headers["Location"]
    with server:
        assert server.call("GET", link, user=None).content == b"x" * 1000
        assert server.result(request_id) == b"x" * 1000


@pytest.mark.parametrize("name", ["frontend", "broker", "worker", "garbage-collector"])
def test_a_process_that_cannot_start_says_why_in_one_line(tmp_path: Path, name: str) -> None:
    server = Deployment(tmp_path / "d", changes={"request_store": None})
    process = server.start(name)
    assert process.wait(timeout=30) != 0
    lines = [line for line in server.log(name).splitlines() if not line.startswith("{")]
    assert len(lines) == 1
    assert "request_store" in lines[0]
    assert "sqlite" in lines[0]


def test_passwords_are_not_in_process_titles(server: Deployment) -> None:
    for process in server.processes.values():
        title = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
        assert not any(password in title for password in USERS.values())
