"""An object store as a process of its own."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

TOKEN = "token-of-the-store-for-tests"
"""Nothing is kept secret by it."""


class RunningStore:
    """Start it, kill it, start it again on the same port and directory."""

    def __init__(self, directory: Path, **options: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self.root = directory / "objects-root"
        self.url = f"http://127.0.0.1:{self.port}"
        self.options: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "root_dir": str(self.root),
            "token": TOKEN,
            **options,
        }
        self._file = directory / "config.yaml"
        self._file.write_text(json.dumps({"staging": {"polytope": self.options}}))
        self._log = directory / "log"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "polytope_server.object_store", "-f", str(self._file)],
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/healthz", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    def _children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(child) for child in path.read_text().split()]

    @contextmanager
    def limited(self, size_bytes: int) -> Iterator[None]:
        """Meanwhile no file of it can grow beyond that."""
        limits = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in self._children()}
        for pid, (_, hard) in limits.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))
        yield
        for pid, before in limits.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    def kill(self) -> None:
        """As a crash would: the whole of it, at once."""
        children = self._children()
        self.process.kill()
        for child in children:
            os.kill(child, signal.SIGKILL)
        self.process.wait()
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{child}").exists() for child in children):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStore]:
    """One for all tests of a module, which find it empty and leave it running."""
    running = RunningStore(tmp_path_factory.mktemp("store"), graceful_timeout=5)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def empty_store(store: RunningStore) -> RunningStore:
    for path in store.files():
        path.unlink()
    return store
