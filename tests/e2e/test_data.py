"""A backup of a server at work, restored elsewhere; and records of use that outlive everything."""

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from deployment import Deployment, until

WITHOUT_A_KEY = {"bind_to": "127.0.0.1", "long_poll": "2s"}


def command(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "polytope_server", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def deployment(directory: Path) -> Deployment:
    """One whose links are signed with the key that its store keeps."""
    made = Deployment(directory)
    frontend = WITHOUT_A_KEY | {"port": made.port}
    usage = {"path": str(directory / "usage.jsonl"), "interval": 0.1}
    made.file.write_text(json.dumps(made.tree | {"frontend": frontend, "usage": usage}))
    return made


def usage_of(server: Deployment) -> dict[str, dict[str, object]]:
    records = [json.loads(text) for text in command("usage", "-f", server.file).splitlines()]
    by_id = {str(record["id"]): record for record in records}
    assert len(by_id) == len(records), "a record comes twice"
    return by_id


def test_a_backup_of_a_server_at_work_is_restored_elsewhere(tmp_path: Path) -> None:
    sizes = (0, 1, 65_537, 3_000_001)
    with deployment(tmp_path / "one") as one:
        hanging = one.submit("x: 1", collection="hanging")
        done = {one.submit(str(size), collection="bytes"): size for size in sizes}
        links = {}
        for request_id in done:
            links[request_id] = urlsplit(one.finished(request_id).headers["Location"])
        waiting = [one.submit("7", collection="bytes") for _ in range(20)]
        command("data", "backup", tmp_path / "backup", "-f", one.file)
        assert "in use: by a running server" in command("data", "status", "-f", one.file)
    assert "is whole" in command("data", "check", tmp_path / "backup", "--sha256")
    two = deployment(tmp_path / "two")
    command("data", "restore", tmp_path / "backup", "-f", two.file)
    with two:
        for request_id, link in links.items():
            # a link that was given out before
            answer = two.call("GET", f"{two.url}{link.path}?{link.query}".rstrip("?"), user=None)
            assert answer.status_code == 200, answer.text
            assert answer.content == b"x" * done[request_id]
            assert len(two.result(request_id)) == done[request_id]
        for request_id in waiting:
            assert two.result(request_id) == b"x" * 7
        until(lambda: two.poll(hanging).json().get("status") == "processing")
        until(lambda: len(usage_of(two)) == len(done) + len(waiting))


def test_records_of_use_outlive_requests_and_their_collector(tmp_path: Path) -> None:
    with deployment(tmp_path / "d") as server:
        file = tmp_path / "d" / "usage.jsonl"
        ids = []
        for number in range(6):
            request_id = server.submit(str(number), collection="bytes")
            assert len(server.result(request_id)) == number
            assert server.call("DELETE", f"/requests/{request_id}").status_code == 200
            ids.append(request_id)
            if number == 1:
                until(lambda: file.exists() and len(file.read_text().splitlines()) == 2)
                file.rename(f"{file}.1")
            if number == 3:
                server.kill("garbage-collector")
        failed = server.submit("x: 1", collection="failing")
        server.finished(failed)
        assert set(usage_of(server)) == {*ids, failed}
        server.start("garbage-collector")
        until(lambda: file.exists() and len(file.read_text().splitlines()) == 5)
        records = usage_of(server)
    assert set(records) == {*ids, failed}
    assert [records[each]["bytes"] for each in ids] == [0, 1, 2, 3, 4, 5]
    assert {records[each]["status"] for each in ids} == {"processed"}
    assert (records[failed]["status"], records[failed]["user"]) == ("failed", "joe")
    assert "the tape is broken" not in file.read_text()
