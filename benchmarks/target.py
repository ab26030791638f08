"""What is measured: a server of our own with the embedded back-ends, or any deployment."""

import contextlib
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployed import basic, deployed

from benchmarks.options import Options
from polytope_server.config.loading import load
from polytope_server.config.model import Config
from polytope_server.errors import ConfigurationError
from polytope_server.lifecycle import Stop
from polytope_server.standalone import Server, configuration

USERNAME = "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A running server and a user of it. `pids` are known of our own only."""

    url: str
    authorization: str = field(repr=False)
    """The value of the header."""
    collections: Mapping[str, str]
    """From a type of datasource to a collection whose first one it is."""
    config: Config
    pids: Mapping[str, int] = field(default_factory=dict)

    def collection(self, kind: str) -> str:
        try:
            return self.collections[kind]
        except KeyError:
            raise ConfigurationError(
                f"collections: none of them begins with a datasource of the type {kind!r}"
            ) from None


@contextlib.contextmanager
def target(
    options: Options,
    *,
    changes: Mapping[str, Any] | None = None,
    directory: Path | None = None,
) -> Iterator[Target]:
    """The deployment that the options aim at, or a server that is started for the purpose.

    Args:
        changes: sections that our own server gets besides.
        directory: where our own server's data go; one that is removed afterwards if not given.
    """
    if options.config:
        found = deployed(options.config)
        yield Target(
            url=found.url,
            authorization=found.users[0].authorization,
            collections={
                kind: each.name
                for kind in ("echo", "dummy")
                for each in list(found.of_type(kind))[:1]
            },
            config=found.config,
        )
        return
    with contextlib.ExitStack() as stack:
        data_dir = directory or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="polytope-bench-"))
        )
        port, password = free_port(), secrets.token_hex(8)
        tree = _merged(embedded(data_dir, port=port, password=password), changes or {})
        stop = Stop()
        files = options.back_ends
        log = data_dir / "server.log"
        server = Server(tree, files, data_dir=data_dir, strict=True, port=port, log=log)
        try:
            server.start(stop)
            time.sleep(1.0)  # slots start their processes beforehand
            made = data_dir / "standalone.yaml"
            config = load([made, *files], strict=True, environ=os.environ).config
            yield Target(
                url=server.url,
                authorization=basic(USERNAME, password).authorization,
                collections={"echo": "echo", "dummy": "dummy", "fdb": "fdb"},
                config=config,
                pids=server.pids,
            )
        finally:
            server.stop()


def embedded(data_dir: Path, *, port: int, password: str) -> dict[str, Any]:
    """The configuration of a standalone server with one user and the datasources that need no data."""
    tree = configuration(data_dir, port=port, password=None)
    tree |= {
        "authentication": {
            "local": {
                "authenticators": {
                    "local": {"type": "plain", "users": [{"uid": USERNAME, "password": password}]}
                }
            }
        },
        "datasources": {"echo": {"type": "echo"}, "dummy": {"type": "dummy"}},
        "collections": {
            name: {"roles": {"local": ["default"]}, "datasources": [name]}
            for name in ("echo", "dummy")
        },
    }
    return tree


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of all that it has started and that still runs."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = 0.0
    for each in (pid, *descendants(pid)):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def resident_bytes(pid: int) -> int:
    """Memory that is really in use; 0 if the process is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(tree)
    for key, value in changes.items():
        known = merged.get(key)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(known, value) if both else value  # type: ignore[arg-type]
    return merged
