"""The configuration changes while real processes run, and nothing that was accepted gets lost over it."""

import copy
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
from deployment import PROCESSES, REALM, USERS, Deployment, free_port, until

from polytope_server.config.embedded import SqliteStoreSection
from polytope_server.request import Status
from polytope_server.request_store.sqlite import SqliteRequestStore

EVERYBODY = {REALM: ["default"]}
TAKEN = ('"configuration changed"', '"configuration read again')
REFUSED = "configuration refused"
PROCESSING = Status.PROCESSING


class Changing:
    """A deployment whose file is written anew; SIGHUP goes to whom a test names."""

    def __init__(self, server: Deployment) -> None:
        self.server = server
        self.tree = copy.deepcopy(server.tree)
        section = SqliteStoreSection(path=server.directory / "requests.sqlite")
        self._store = SqliteRequestStore(section)

    @property
    def users(self) -> list[dict[str, str]]:
        local = self.tree["authentication"][REALM]["authenticators"]["local"]
        found: list[dict[str, str]] = local["users"]
        return found

    def offer(self, name: str, *datasources: str, **more: Any) -> None:
        self.tree["collections"][name] = {
            "roles": EVERYBODY,
            "datasources": list(datasources),
            **more,
        }

    def write(self) -> None:
        """As an editor does: beside it, then renamed into place."""
        partial = self.server.file.with_suffix(".new")
        partial.write_text(json.dumps(self.tree))
        partial.replace(self.server.file)

    def reload(self, *labels: str) -> None:
        """Write, and return when all, or these processes have taken it up."""
        self.write()
        for label in labels or PROCESSES:
            before = self.count(label, *TAKEN)
            self.server.processes[label].send_signal(signal.SIGHUP)
            expected = before + (
                self.server.tree["frontend"]["processes"] if label == "frontend" else 1
            )
            until(
                lambda label=label, expected=expected: self.count(label, *TAKEN) >= expected,
                what=f"{label} has reloaded",
            )

    def count(self, label: str, *texts: str) -> int:
        return sum(self.server.log(label).count(text) for text in texts)

    def levels_about(self, request_id: str) -> set[str]:
        """At which levels the worker and its slots have spoken of a request."""
        lines = [line for line in self.server.log("worker").splitlines() if request_id in line]
        return {json.loads(line)["level"] for line in lines}

    def status(self, request_id: str) -> Status:
        """As it is stored: a poll would be held."""
        return self._store.get(request_id).status


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Nothing looks at the files or wakes up by itself: what happens, happens because of a SIGHUP."""
    changes = {
        "frontend": {"processes": 2, "long_poll": "3s"},
        "broker": {"interval": 60, "lease": 90},
        "worker": {"poll_interval": 60, "slots": 2},
        "garbage-collector": {"interval": 60},
        "reload": {"interval": 0, "grace": 1},
        "datasources": {"slow": {"type": "dummy", "bytes_per_second": 500_000}},
    }
    with Deployment(tmp_path_factory.mktemp("reload"), changes=changes) as deployment:
        yield deployment


@pytest.fixture
def changing(running: Deployment) -> Iterator[Changing]:
    changing = Changing(running)
    yield changing
    changing.tree = copy.deepcopy(running.tree)
    changing.reload()


def of_each_process(call: Callable[[], requests.Response]) -> set[int]:
    """The statuses of calls that surely went to both processes of the frontend."""
    return {call().status_code for _ in range(12)}


def test_a_removed_user_is_out_at_once_and_finds_everything_when_added_again(
    changing: Changing,
) -> None:
    server = changing.server
    for name in ("joe", "ann"):  # known to the caches of both processes
        assert of_each_process(lambda name=name: server.call("GET", "/user", user=name)) == {200}
    finished = server.submit("7", collection="bytes")
    link = server.finished(finished).headers["Location"]
    changing.offer("slow", "slow")
    changing.reload()
    goes_on = server.submit("500000", collection="slow")
    joe = changing.users.pop(0)
    assert joe["uid"] == "joe"
    changing.reload()
    assert of_each_process(lambda: server.call("GET", "/user")) == {401}
    assert server.call("GET", f"/requests/{finished}").status_code == 401
    assert of_each_process(lambda: server.call("GET", "/user", user="ann")) == {200}
    assert server.call("GET", link, user=None).content == b"x" * 7
    changing.users.append(joe)
    changing.reload()
    assert server.result(goes_on) == b"x" * 500_000
    listed = {each["id"] for each in server.call("GET", "/requests").json()["message"]}
    assert {finished, goes_on} <= listed


def test_a_changed_password_takes_the_place_of_the_old_one(changing: Changing) -> None:
    server = changing.server

    def ask(password: str) -> Callable[[], requests.Response]:
        return lambda: requests.get(f"{server.api}/user", auth=("eve", password), timeout=60)

    assert of_each_process(ask(USERS["eve"])) == {200}
    (eve,) = (user for user in changing.users if user["uid"] == "eve")
    eve["password"] = "another-secret-of-eve"
    changing.reload("frontend")
    assert of_each_process(ask("another-secret-of-eve")) == {200}
    assert of_each_process(ask(USERS["eve"])) == {401}
    assert "another-secret-of-eve" not in server.all_logs()


def test_a_role_that_is_taken_away_closes_the_collection_and_nothing_else(
    changing: Changing,
) -> None:
    server = changing.server
    body = {"verb": "retrieve", "request": "x: 1"}
    request_id = server.submit("x: 1", collection="secret", user="ann")
    authorizers = changing.tree["authentication"][REALM]["authorizers"]
    authorizers["local"]["roles"]["staff"] = ["eve"]
    changing.reload("frontend")
    for user, status in {"ann": 403, "eve": 202}.items():
        answer = server.call("POST", "/requests/secret", user=user, json=body)
        assert answer.status_code == status
    assert server.result(request_id, user="ann") == b"x: 1"


def test_a_removed_collection_fails_what_waits_and_lets_go_on_what_runs(
    changing: Changing,
) -> None:
    server = changing.server
    changing.offer("doomed", "slow", limits={"total": 2})
    changing.reload()
    finished = server.submit("3", collection="doomed")
    assert server.result(finished) == b"xxx"
    blocker = server.submit("x: 1", collection="hanging")
    runs = server.submit("1500000", collection="doomed")
    until(lambda: changing.status(blocker) is changing.status(runs) is PROCESSING)
    queued, waiting = (server.submit("3", collection="doomed") for _ in range(2))
    until(lambda: changing.status(queued) is Status.QUEUED)
    assert changing.status(waiting) is Status.WAITING
    time.sleep(1)  # older than the grace
    del changing.tree["collections"]["doomed"]
    changing.reload()
    body = {"verb": "retrieve", "request": "3"}
    assert server.call("POST", "/requests/doomed", json=body).status_code == 404
    assert "doomed" not in server.call("GET", "/collections").json()["message"]
    answer = server.finished(waiting)
    assert answer.status_code == 400
    assert "collection doomed is not offered any more" in answer.json()["message"]
    assert changing.status(queued) is Status.QUEUED
    server.call("DELETE", f"/requests/{blocker}")
    answer = server.finished(queued)
    assert answer.status_code == 400
    assert "not offered in collection doomed any more" in answer.json()["message"]
    assert server.result(runs) == b"x" * 1_500_000
    assert server.result(finished) == b"xxx"
    for path in ("/requests", "/requests/doomed"):
        listed = {r["id"]: r for r in server.call("GET", path).json()["message"]}
        assert {finished, runs, queued, waiting} <= listed.keys()
        assert requests.get(listed[finished]["url"], timeout=60).content == b"xxx"
    assert server.call("GET", "/requests/doomed", user="eve").status_code == 404


def test_a_datasource_that_leaves_its_collection_fails_what_is_queued(changing: Changing) -> None:
    server = changing.server
    changing.offer("mixed", "dummy")
    changing.reload()
    blockers = [server.submit("x: 1", collection="hanging") for _ in range(2)]
    until(lambda: all(changing.status(each) is PROCESSING for each in blockers))
    queued = server.submit("3", collection="mixed")
    time.sleep(1)  # older than the grace
    changing.offer("mixed", "echo")
    changing.reload()
    for each in blockers:
        server.call("DELETE", f"/requests/{each}")
    answer = server.finished(queued)
    assert answer.status_code == 400
    assert "not offered in collection mixed any more" in answer.json()["message"]
    assert server.result(server.submit("three", collection="mixed")) == b"three"


def test_raised_limits_start_what_waits_at_once_and_lowered_ones_stop_nothing(
    changing: Changing,
) -> None:
    server = changing.server
    changing.offer("narrow", "slow", limits={"total": 1})
    changing.reload()
    ids = [server.submit("800000", collection="narrow") for _ in range(2)]
    until(lambda: changing.status(ids[0]) is PROCESSING)
    changing.offer("narrow", "slow", limits={"total": 2})
    begin = time.monotonic()
    changing.reload("broker")
    until(lambda: changing.status(ids[1]) is PROCESSING)
    assert time.monotonic() - begin < 2
    changing.offer("narrow", "slow", limits={"total": 0})
    changing.reload("broker")
    late = server.submit("3", collection="narrow")
    assert [server.result(each) for each in ids] == [b"x" * 800_000] * 2
    assert changing.status(late) is Status.WAITING
    changing.offer("narrow", "slow")
    changing.reload("broker")
    assert server.result(late) == b"xxx"


def test_new_options_of_a_datasource_and_the_log_level_reach_the_next_request(
    changing: Changing,
) -> None:
    server = changing.server
    assert "the tape is broken" in server.finished(server.submit("x: 1", collection="failing")).text
    changing.tree["datasources"]["failing"]["error_message"] = "the tape is being mended"
    changing.tree["logging"]["level"] = "WARNING"
    changing.reload("worker")
    request_id = server.submit("x: 1", collection="failing")
    assert "the tape is being mended" in server.finished(request_id).text
    assert until(lambda: changing.levels_about(request_id)) == {"WARNING"}
    changing.tree["logging"]["level"] = "INFO"
    changing.write()
    server.processes["worker"].send_signal(signal.SIGHUP)

    def speaks_again() -> bool:
        request_id = server.submit("x: 1")
        return server.result(request_id) == b"x: 1" and bool(changing.levels_about(request_id))

    until(speaks_again)


def test_what_one_process_has_not_heard_of_yet_is_waited_for(changing: Changing) -> None:
    server = changing.server
    changing.offer("brandnew", "dummy")
    changing.reload("frontend")
    request_id = server.submit("3", collection="brandnew")
    assert changing.status(request_id) is Status.WAITING
    changing.reload("broker")
    until(lambda: "not known here" in server.log("worker"))
    changing.reload("worker")
    assert server.result(request_id) == b"xxx"


def test_a_bad_file_is_refused_with_a_line_for_each_fault_and_the_old_one_stays(
    changing: Changing,
) -> None:
    server = changing.server
    good = copy.deepcopy(changing.tree)
    before = {label: changing.count(label, REFUSED) for label in PROCESSES}
    changing.offer("good", "echo")
    changing.users[0]["password"] = "$argon2-no-hash-8d1"
    changing.tree["collections"]["c1"]["limits"] = {"total": "many-77c"}
    changing.write()
    for label in PROCESSES:
        server.processes[label].send_signal(signal.SIGHUP)
    for label in PROCESSES:
        until(lambda label=label: changing.count(label, REFUSED) == before[label] + 2)
        said = [line for line in server.log(label).splitlines() if REFUSED in line][-2:]
        assert "collections.c1.limits.total: must be a whole number" in said[0]
        assert "users[0].password: must be a whole Argon2 hash" in said[1]
        assert not [line for line in said if "8d1" in line or "77c" in line]
    assert requests.get(f"{server.url}/readyz", timeout=60).status_code == 200
    assert "good" not in server.call("GET", "/collections").json()["message"]
    assert server.result(server.submit("x: 1")) == b"x: 1"
    changing.tree = good
    changing.offer("good", "echo")
    changing.reload()
    assert "good" in server.call("GET", "/collections").json()["message"]


def test_what_cannot_change_now_is_named_once_and_kept(changing: Changing) -> None:
    server = changing.server
    changing.tree["frontend"]["port"] = free_port()
    changing.tree["worker"] |= {"slots": 3, "timeout": "1h"}
    changing.tree["queue"] = {"sqlite": {"path": str(server.directory / "elsewhere.sqlite")}}
    before = {label: changing.count(label, "needs a restart") for label in PROCESSES}
    changing.reload()
    expected = {
        "frontend": "frontend.port, queue",
        "broker": "queue",
        "worker": "queue, worker.slots, worker.timeout",
        "garbage-collector": "queue",
    }
    for label, keys in expected.items():
        lines = [line for line in server.log(label).splitlines() if "needs a restart" in line]
        assert len(lines) == before[label] + 1
        assert json.loads(lines[-1])["message"] == f"needs a restart: {keys}"
    assert server.result(server.submit("x: 1")) == b"x: 1"


def test_polls_uploads_and_downloads_are_not_disturbed(changing: Changing) -> None:
    server = changing.server
    pids = _workers_of(server.processes["frontend"])
    assert len(pids) == 2
    held = server.submit("x: 1", collection="hanging")
    until(lambda: changing.status(held) is PROCESSING)
    big = server.finished(server.submit("60000000", collection="bytes")).headers["Location"]
    data = os.urandom(3_000_000)
    archive = server.call(
        "POST", "/requests/c1", json={"verb": "archive", "request": {"class": "rd"}}
    ).headers["Location"]
    answers: dict[str, Any] = {}

    def poll() -> None:
        begin = time.monotonic()
        answers["poll"] = server.poll(held).status_code, time.monotonic() - begin

    def download() -> None:
        digest = hashlib.sha256()
        with requests.get(big, stream=True, timeout=60) as response:
            for chunk in response.iter_content(1 << 20):
                digest.update(chunk)
                time.sleep(0.03)
        answers["download"] = digest.hexdigest()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]
            time.sleep(0.03)

    def upload() -> None:
        headers = {"X-Checksum": hashlib.md5(data).hexdigest()}
        answers["upload"] = server.call("POST", archive, data=pieces(), headers=headers).status_code

    threads = [threading.Thread(target=each) for each in (poll, download, upload)]
    for thread in threads:
        thread.start()
    for number in range(3):
        changing.offer(f"added{number}", "echo")
        changing.reload()
    for thread in threads:
        thread.join(60)
    status, held_s = answers["poll"]
    assert status == 202
    assert held_s >= 2.5
    assert answers["download"] == hashlib.sha256(b"x" * 60_000_000).hexdigest()
    assert answers["upload"] == 202
    assert _workers_of(server.processes["frontend"]) == pids
    server.call("DELETE", f"/requests/{held}")


def test_a_process_that_takes_the_place_of_a_dead_one_keeps_the_last_good_configuration(
    changing: Changing,
) -> None:
    server = changing.server
    changing.users.pop(0)
    changing.reload("frontend")
    changing.tree["frontend"] = 5
    changing.write()
    old = _workers_of(server.processes["frontend"])
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(_workers_of(server.processes["frontend"]) - old) == 2)

    def answered() -> list[int]:
        try:
            return list(of_each_process(lambda: server.call("GET", "/user")))
        except requests.ConnectionError:
            return []

    assert until(answered) == [401]
    assert server.call("GET", "/user", user="ann").status_code == 200


def test_a_changed_file_is_found_without_a_signal_also_behind_links(tmp_path: Path) -> None:
    """As a cluster swaps a mounted configuration: by a link to a directory, all at once."""
    directory = tmp_path / "d"
    server = Deployment(directory, changes={"reload": {"interval": 0.1}})

    def mount(version: str, tree: Mapping[str, Any], password: str) -> None:
        (directory / version).mkdir()
        (directory / version / "config.yaml").write_text(
            json.dumps(tree).replace(f'"{USERS["joe"]}"', "!file joes-password")
        )
        (directory / version / "joes-password").write_text(password)
        (directory / "..data.new").symlink_to(version)
        (directory / "..data.new").replace(directory / "..data")

    mount("first", server.tree, USERS["joe"])
    server.file.unlink()
    server.file.symlink_to("..data/config.yaml")
    (directory / "joes-password").symlink_to("..data/joes-password")
    with server:
        changing = Changing(server)
        assert server.call("GET", "/user").status_code == 200
        changing.offer("found", "echo")
        mount("second", changing.tree, USERS["joe"])
        until(lambda: "found" in server.call("GET", "/collections").text)
        assert server.result(server.submit("x: 1", collection="found")) == b"x: 1"
        (directory / "second" / "joes-password").write_text("a new one of joe's\n")
        until(lambda: server.call("GET", "/user").status_code == 401)
        auth = ("joe", "a new one of joe's")
        assert requests.get(f"{server.api}/user", auth=auth, timeout=60).status_code == 200


def test_standalone_follows_the_operators_file_and_passes_sighup_on(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "my.yaml"
    base = {"reload": {"interval": 0.2}}
    file.write_text(json.dumps(base))
    command = ["standalone", "--data-dir", str(tmp_path / "data"), "--port", str(port)]
    with (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "polytope_server", *command, "-f", str(file)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        said = [process.stdout.readline() for _ in range(4)]
        ours = ("polytope", said[2].removeprefix("password: ").strip())
        alice = ("alice", "alices-secret-5b0")

        def look(auth: tuple[str, str]) -> requests.Response:
            url = f"http://127.0.0.1:{port}/api/v1/collections"
            return requests.get(url, auth=auth, timeout=60)

        def errors_with(text: str) -> list[str]:
            return [line for line in (tmp_path / "errors").read_text().splitlines() if text in line]

        assert look(ours).json()["message"] == ["dummy", "echo"]
        users = {"type": "plain", "users": [{"uid": alice[0], "password": alice[1]}]}
        tree: dict[str, Any] = {
            **base,
            "authentication": {"mine": {"authenticators": {"local": users}}},
            "datasources": {"e": {"type": "echo"}},
            "collections": {"own": {"roles": {"mine": ["default"]}, "datasources": ["e"]}},
        }
        file.write_text(json.dumps(tree))
        until(lambda: look(alice).status_code == 200)
        assert look(alice).json()["message"] == ["own"]
        assert look(ours).status_code == 401, "our user goes when there are others"
        file.write_text(json.dumps(tree | {"broker": 7}))
        until(lambda: errors_with(REFUSED))
        assert look(alice).json()["message"] == ["own"]
        tree["collections"]["second"] = tree["collections"]["own"]
        file.write_text(json.dumps(tree))
        process.send_signal(signal.SIGHUP)
        until(lambda: look(alice).json()["message"] == ["own", "second"])
        file.write_text(json.dumps(base))
        until(lambda: look(ours).status_code == 200, what="our user comes when there are none")
        assert look(ours).json()["message"] == ["dummy", "echo"]
        (refusal,) = errors_with(REFUSED)
        assert "my.yaml:1: broker: must be a mapping" in refusal
        assert not errors_with(alice[1])
        assert not errors_with("ended")
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def _workers_of(process: subprocess.Popen[bytes]) -> set[int]:
    """Process ids of the frontend's worker processes."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return {int(pid) for pid in children.split()}
