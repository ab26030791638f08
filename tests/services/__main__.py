"""``make services``: the servers for development, and the configuration to use them.

They run until Ctrl-C. What is not installed is told, and has the embedded back-end in its place.
"""

import argparse
import json
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from services.base import StartFailed
from services.stack import USES, Stack

_LOOK_S: Final = 1.0
REALM: Final = "local"
USERS: Final = ("joe", "ann")
GROUP: Final = "staff"
"""Of the directory; the first user is in it."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="services", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(USES)}; all if none"
    )
    parser.add_argument("--directory", type=Path, help="keep everything there; else it is removed")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(USES)):
        parser.error(f"no such server: {', '.join(unknown)}; there are {', '.join(USES)}")
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with tempfile.TemporaryDirectory(prefix="polytope-services-") as temporary:
        directory = (options.directory or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with Stack(options.names or list(USES), directory=directory, lenient=True) as stack:
                _run(stack, directory, over)
        except StartFailed as exc:
            sys.exit(f"services: {exc}")


def _run(stack: Stack, directory: Path, over: threading.Event) -> None:
    file = directory / "services.yaml"
    file.touch(mode=0o600)
    file.write_text(text := "\n".join(configuration(stack, directory)) + "\n")
    print(text)
    for reason in stack.missing.values():
        print(f"Left out: {reason}")
    started = f"Started: {', '.join(stack.servers)}" if stack.servers else "Nothing was started"
    print(f"{started}. It ends with Ctrl-C. The configuration is in {file}")
    print(f"  .venv/bin/polytope-server standalone -f {file}", flush=True)
    while not over.wait(_LOOK_S):
        for name, server in list(stack.servers.items()):
            if not server.is_running():
                print(f"{name} has ended; its last words:\n{server.log()[-2000:]}", flush=True)
                del stack.servers[name]
    print("\nStopping")


def configuration(stack: Stack, directory: Path) -> Iterator[str]:
    """Lines of YAML: a whole configuration, with a comment on where each back-end comes from."""
    embedded: Mapping[str, Any] = {
        "request_store": {"sqlite": {"path": str(directory / "requests.sqlite")}},
        "queue": {"sqlite": {"path": str(directory / "queue.sqlite")}},
        "staging": {"local": {"root_dir": str(directory / "staging")}},
        "caching": {"memory": {}},
    }
    yield "# !replace: a section holds one back-end, and `standalone` brings others."
    for section, otherwise in embedded.items():
        chosen = stack.section(section)
        yield from _comments(stack, section, chosen)
        yield from _block(f"{section}: !replace", chosen or otherwise)
    yield ""
    yield "# Somebody to try it with, and collections that need no data."
    yield from _comments(stack, "authorizers", stack.section("authorizers"))
    yield from _block("authentication:", {REALM: _realm(stack)})
    yield from _block("api-keys:", {"enabled": True})
    names = ("echo", "dummy")
    yield from _block("datasources:", {name: {"type": name} for name in names})
    collections = {name: ("default", name) for name in names}
    if "slapd" in stack.servers:
        collections["staff"] = (GROUP, "echo")
    yield from _block(
        "collections:",
        {
            name: {"roles": {REALM: [role]}, "datasources": [datasource]}
            for name, (role, datasource) in collections.items()
        },
    )


def _comments(stack: Stack, section: str, chosen: Mapping[str, Any] | None) -> Iterator[str]:
    for name, use in USES.items():
        if use.section == section and name in stack.missing:
            yield f"# {stack.missing[name]}"
        elif use.section == section and name in stack.servers:
            yield f"# {name} runs in {stack.servers[name].directory}"
            if stack.options(name) != chosen:
                yield f"# and may stand here instead: {json.dumps(stack.options(name))}"


def _realm(stack: Stack) -> Mapping[str, Any]:
    users = [{"uid": name, "password": secrets.token_urlsafe(9)} for name in USERS]
    realm: dict[str, Any] = {"authenticators": {"local": {"type": "plain", "users": users}}}
    authorizer = stack.section("authorizers")
    if authorizer is not None:
        slapd: Any = stack.servers["slapd"]
        slapd.add_group(GROUP, [slapd.add_person(name) for name in USERS][:1])
        realm["authorizers"] = {"directory": authorizer}
    return realm


def _block(head: str, value: object) -> Iterator[str]:
    yield head
    for line in yaml.safe_dump(value, sort_keys=False).splitlines():
        yield f"  {line}"


if __name__ == "__main__":
    main()
