"""A deployment for tests: the real processes with a configuration of their own, and ways to harm it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

REALM = "test"
APIKEY = "joes-key-of-an-archive-6fd"
USERS = {"joe": "pa:ss-joe-9c1", "ann": "ann-secret-77f", "eve": "eve-secret-31b"}
PROCESSES = ("frontend", "broker", "worker", "garbage-collector")
SIGNING_KEY = "signing-key-for-tests-5d2"
PEER_REALM, PEER_SECRET = "peer", "secret-of-a-peer-4be"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], *, deadline_s: float = 30.0, what: str = "") -> Any:
    """The first true value of *condition*; fails at the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"did not come true within {deadline_s} s: {what}"
        time.sleep(0.02)


def configuration(directory: Path, port: int) -> dict[str, Any]:
    """Embedded back-ends, three users, and a collection for each kind of datasource."""
    everybody = {REALM: ["default"]}
    datasources: dict[str, Any] = {
        "echo": {"type": "echo"},
        "dummy": {"type": "dummy"},
        "failing": {"type": "raise", "error_message": "the tape is broken"},
        "crashing": {"type": "raise", "mode": "crash"},
        "hanging": {"type": "raise", "mode": "hang"},
        "greedy": {"type": "raise", "mode": "memory"},
    }
    collections = {
        name: {"roles": dict(everybody), "datasources": [source]}
        for name, source in {
            "c1": "echo",
            "all": "echo",
            "bytes": "dummy",
            "failing": "failing",
            "crashing": "crashing",
            "hanging": "hanging",
            "greedy": "greedy",
        }.items()
    }
    collections["c1"]["roles"][PEER_REALM] = ["default"]
    collections["secret"] = {"roles": {REALM: ["staff"]}, "datasources": ["echo"]}
    collections["limited"] = {
        "roles": everybody,
        "limits": {"total": 2, "per-user": 1},
        "datasources": ["hanging"],
    }
    return {
        "logging": {"mode": "json", "level": "INFO"},
        "frontend": {
            "bind_to": "127.0.0.1",
            "port": port,
            "signing_key": SIGNING_KEY,
            "long_poll": "2s",
            "max_request": "256K",
            "max_upload": "64M",
        },
        "broker": {"interval": 1, "lease": 3, "republish_after": 2, "max_attempts": 3},
        "worker": {"slots": 2, "poll_interval": 1, "lease": 3, "timeout": 60, "drain_timeout": 3},
        "garbage-collector": {"interval": 2, "age": "1h"},
        "request_store": {"sqlite": {"path": str(directory / "requests.sqlite")}},
        "queue": {"sqlite": {"path": str(directory / "queue.sqlite")}},
        "staging": {"local": {"root_dir": str(directory / "staging")}},
        "authentication": {
            REALM: {
                "authenticators": {
                    "local": {
                        "type": "plain",
                        "users": [
                            {"uid": u, "password": p, "attributes": {"ecmwf-apikey": APIKEY}}
                            for u, p in USERS.items()
                        ],
                    }
                },
                "authorizers": {"local": {"type": "plain", "roles": {"staff": ["ann"]}}},
            }
        },
        "federation": {"peer": {"secret": PEER_SECRET, "allowed-realms": [PEER_REALM]}},
        "datasources": datasources,
        "collections": collections,
    }


class Deployment:
    """Real processes over one directory. Use it as a context manager: nothing is left running.

    Args:
        changes: merged into the configuration.
        replaced: whole sections in place of ours.
        python: whose environment the processes run in.
    """

    def __init__(
        self,
        directory: Path,
        *,
        changes: Mapping[str, Any] | None = None,
        replaced: Mapping[str, Any] | None = None,
        names: Sequence[str] = PROCESSES,
        python: str | Path = sys.executable,
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.api = f"{self.url}/api/v1"
        self.names, self.python = names, python
        self.tree = _merged(configuration(directory, self.port), changes or {}) | dict(
            replaced or {}
        )
        self.file = directory / "config.yaml"
        self.file.write_text(json.dumps(self.tree))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._killed_groups: list[int] = []

    def __enter__(self) -> "Deployment":
        for name in self.names:
            self.start(name)
        try:
            self.until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.kill_group(process)

    def start(self, name: str, *, label: str | None = None) -> subprocess.Popen[bytes]:
        """Start one process; its log is ``<label>.log``. A second broker needs a label of its own."""
        label = label or name
        with (self.directory / f"{label}.log").open("ab") as log:
            self.processes[label] = subprocess.Popen(
                [self.python, "-m", "polytope_server", name, "-f", str(self.file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.processes[label]

    def until_ready(self) -> None:
        """Wait until the processes running now answer: not what is left of a killed one."""

        def ready() -> bool:
            if any(_group_exists(group) for group in self._killed_groups):
                return False
            for label, process in self.processes.items():
                assert process.poll() is None, f"{label} ended: {self.log(label)[-3000:]}"
            try:
                return requests.get(f"{self.url}/readyz", timeout=5).status_code == 200
            except requests.ConnectionError:
                return False

        until(ready, deadline_s=60, what="the frontend is ready")

    def kill(self, label: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process (not to its children) and reap it if it ends by that."""
        process = self.processes[label]
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait(timeout=30)
            self._killed_groups.append(process.pid)

    @staticmethod
    def kill_group(process: subprocess.Popen[bytes]) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)

    def log(self, label: str) -> str:
        return (self.directory / f"{label}.log").read_text(errors="replace")

    def all_logs(self) -> str:
        return "".join(
            file.read_text(errors="replace") for file in sorted(self.directory.glob("*.log"))
        )

    # --- what a user does

    def call(
        self, method: str, path: str, *, user: str | None = "joe", **options: Any
    ) -> requests.Response:
        """One HTTP call below ``/api/v1`` (or of a whole URL), redirects not followed."""
        url = path if path.startswith("http") else f"{self.api}{path}"
        auth = (user, USERS[user]) if user else None
        return requests.request(
            method, url, auth=auth, allow_redirects=False, timeout=60, **options
        )

    def submit(
        self,
        request: object,
        *,
        collection: str = "c1",
        verb: str = "retrieve",
        user: str = "joe",
        **options: Any,
    ) -> str:
        """Submit and return the id."""
        response = self.call(
            "POST",
            f"/requests/{collection}",
            user=user,
            json={"verb": verb, "request": request},
            **options,
        )
        assert response.status_code == 202, response.text
        return response.headers["Location"].rpartition("/")[2]

    def poll(self, request_id: str, *, user: str = "joe") -> requests.Response:
        return self.call("GET", f"/requests/{request_id}", user=user)

    def finished(
        self, request_id: str, *, user: str = "joe", deadline_s: float = 60.0
    ) -> requests.Response:
        """The poll's answer once it is none of 202, 503 or a refused connection."""

        def look() -> list[requests.Response]:
            try:
                response = self.poll(request_id, user=user)
            except requests.ConnectionError:
                return []
            return [] if response.status_code in (202, 503) else [response]

        (found,) = until(look, deadline_s=deadline_s, what=f"{request_id} is finished")
        assert isinstance(found, requests.Response)
        return found

    def result(self, request_id: str, *, user: str = "joe", deadline_s: float = 60.0) -> bytes:
        """The data of a request that succeeds."""
        response = self.finished(request_id, user=user, deadline_s=deadline_s)
        assert response.status_code == 303, response.text
        return self.call("GET", response.headers["Location"], user=None).content


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(tree)
    for key, value in changes.items():
        known = merged.get(key)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(known, value)
        else:
            merged[key] = value
    return merged
