"""All processes with one command: what the operator's files say counts over what it brings itself."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from deployment import free_port, until

from polytope_server.errors import ConfigurationError
from polytope_server.lifecycle import Stop
from polytope_server.standalone import USER, Server, configuration

READY = re.compile(r"is ready at (http://127\.0\.0\.1:\d+)\n")


class Standalone:
    """One that runs; ended when the test is over."""

    def __init__(self, directory: Path, *arguments: str, system: Mapping[str, Any] | None) -> None:
        self._out = directory / "out"
        system_file = directory / "system.yaml"
        if system is not None:
            system_file.write_text(json.dumps(system))
        command = [sys.executable, "-m", "polytope_server", "standalone"]
        command += ["--data-dir", str(directory / "data"), *arguments]
        with self._out.open("wb") as out, (directory / "err").open("wb") as err:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "POLYTOPE_SYSTEM_CONFIG": str(system_file)},
                stdout=out,
                stderr=err,
            )

    @property
    def said(self) -> str:
        return self._out.read_text()

    def url(self) -> str:
        """Where it says that it is, once it is there."""
        until(lambda: READY.search(self.said) or self.process.poll() is not None)
        match = READY.search(self.said)
        assert match, self._out.with_name("err").read_text()
        return match[1]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[Standalone] = []

    def begin(*arguments: str, system: Mapping[str, Any] | None = None) -> Standalone:
        started.append(Standalone(tmp_path, *arguments, system=system))
        return started[-1]

    yield begin
    for each in started:
        each.stop()


def file(path: Path, tree: Mapping[str, Any]) -> str:
    path.write_text(json.dumps(tree))
    return str(path)


def with_user(port: int) -> dict[str, Any]:
    """A realm, a collection and a port, as an operator's file says them."""
    users = [{"uid": "alice", "password": "alice-secret-44d"}]
    plain = {"type": "plain", "users": users}
    return {
        "frontend": {"port": port, "bind_to": "127.0.0.1"},
        "authentication": {"example": {"authenticators": {"local": plain}}},
        "datasources": {"echo": {"type": "echo"}},
        "collections": {"mine": {"roles": {"example": "default"}, "datasources": ["echo"]}},
    }


def test_the_systems_file_counts_over_its_own_and_named_files_over_that(
    start: Any, tmp_path: Path
) -> None:
    port = free_port()
    system = with_user(free_port())
    named = file(tmp_path / "named.yaml", {"frontend": {"port": port}})
    server = start("-f", named, system=system)
    url = server.url()
    assert url == f"http://127.0.0.1:{port}"
    assert "password" not in server.said, "it made a user although the operator has some"
    collections = requests.get(
        f"{url}/api/v1/collections", auth=("alice", "alice-secret-44d"), timeout=60
    )
    assert collections.json()["message"] == ["mine"]


def test_the_port_that_is_typed_counts_over_the_files(start: Any) -> None:
    port = free_port()
    server = start("--port", str(port), system=with_user(free_port()))
    assert server.url() == f"http://127.0.0.1:{port}"
    answer = requests.get(f"{server.url()}/api/v1/test", timeout=60)
    assert answer.status_code == 200


def test_what_is_in_use_is_named_as_it_was_written(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        own = configuration(tmp_path / "data", port=port, password=None)
        other = Path(file(tmp_path / "other.yaml", {"frontend": {"port": port}}))

        def refused(case: tuple[str, list[Path], int | None]) -> str:
            name, files, typed = case
            with pytest.raises(ConfigurationError) as caught:
                Server(own, files, data_dir=tmp_path / name, strict=True, port=typed)
            return str(caught.value)

        cases = [("typed", [other], port), ("written", [other], None), ("neither", [], None)]
        with ThreadPoolExecutor() as pool:  # each waits a while for the port
            typed, written, neither = pool.map(refused, cases)
    text = f"127.0.0.1:{port} cannot be listened on: Address already in use"
    assert typed == f"--port: {text}"
    assert written == f"{other}:1: {text}"
    assert neither == f"{text}; --port chooses another"


def test_a_server_that_is_told_of_no_system_file_reads_none(tmp_path: Path) -> None:
    """As the demo's, whose processes must not read it either."""
    tree = configuration(tmp_path / "data", port=free_port(), password="secret-of-ours-19a")
    log = tmp_path / "log"
    system = file(tmp_path / "system.yaml", {"no": "configuration"})
    with pytest.raises(ConfigurationError, match=r"system\.yaml:1: no: unknown key"):
        Server(
            tree,
            [],
            data_dir=tmp_path / "other",
            strict=True,
            environ={**os.environ, "POLYTOPE_SYSTEM_CONFIG": system},
        )
    environ = {**os.environ, "POLYTOPE_SYSTEM_CONFIG": ""}
    server = Server(tree, [], data_dir=tmp_path / "data", strict=True, log=log, environ=environ)
    try:
        server.start(Stop())
        answer = requests.get(
            f"{server.url}/api/v1/collections", auth=(USER, "secret-of-ours-19a"), timeout=60
        )
    finally:
        server.stop()
    assert answer.status_code == 200, log.read_text()
