"""``make demo``: a small real FDB, a server on it, and a walk through what users do."""

import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console

from polytope_server.config.loading import SYSTEM_VARIABLE
from polytope_server.demo.configuration import DEBUG, FORECASTS, demo_configuration
from polytope_server.demo.sample import make_fdb
from polytope_server.demo.walk import walk
from polytope_server.errors import ConfigurationError, PolytopeError
from polytope_server.lifecycle import Stop
from polytope_server.standalone import Server, configuration, password_of

USER: Final = "demo"


def run(*, once: bool, port: int) -> None:
    """Do the walk; then serve until Ctrl-C, or end if it is done only *once*.

    Raises:
        ConfigurationError: the server cannot start, or the walk found something wrong.
    """
    stop = Stop()
    stop.on_signals()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="polytope-demo-") as temporary:
        directory = Path(temporary)
        console.print("Writing a small FDB from eccodes' samples...")
        fdb_config = make_fdb(directory / "fdb")
        data_dir = directory / "server"
        password = password_of(data_dir)
        tree = configuration(data_dir, port=port, password=None)
        tree |= demo_configuration(fdb_config, username=USER, password=password)
        tree["logging"] = {"mode": "json", "level": "INFO"}
        log = directory / "server.log"
        environ = {**os.environ, SYSTEM_VARIABLE: ""}  # what others configured is not the demo's
        server = Server(tree, [], data_dir=data_dir, strict=True, log=log, environ=environ)
        try:
            console.print("Starting frontend, broker, worker and garbage collector...")
            server.start(stop)
            _walk(server.url, password, console, directory)
            if once:
                return
            _explain(server.url, password, console)
            server.supervise(stop)
        except BaseException:
            if not stop.requested and log.exists():
                sys.stderr.write(log.read_text(errors="replace")[-4000:])
            raise
        finally:
            server.stop()


def _walk(url: str, password: str, console: Console, directory: Path) -> None:
    files = directory / "user"
    files.mkdir()
    try:
        walk(url=url, username=USER, password=password, console=console, directory=files)
    except PolytopeError as exc:
        raise ConfigurationError(f"the walk failed: {exc}") from exc


def examples(url: str, *, username: str, password: str, collection: str) -> tuple[str, ...]:
    """Commands for a shell that do something with a server: with the client, then with curl.

    Args:
        collection: one that takes any text for a request.
    """
    host, _, port = url.removeprefix("http://").rpartition(":")
    who = (
        f"--address {host} --port {port} --insecure --username {username}"
        f" --password={shlex.quote(password)}"  # with = also where it begins with a hyphen
    )
    curl = f"curl --silent --show-error --fail --user {shlex.quote(f'{username}:{password}')}"
    body = json.dumps({"verb": "retrieve", "request": "hello"})
    return (
        f"polytope list collections {who}",
        f"polytope list requests {who}",
        f"{curl} {url}/api/v1/collections",
        f"{curl} --location $({curl} --output /dev/null --write-out '%header{{location}}'"
        f" --json '{body}' {url}/api/v1/requests/{collection})",
    )


def _explain(url: str, password: str, console: Console) -> None:
    lines = examples(url, username=USER, password=password, collection=DEBUG)
    client = "\n".join(f"  {line}" for line in lines if line.startswith("polytope"))
    curl = "\n".join(f"  {line}" for line in lines if line.startswith("curl"))
    console.print(
        f"""
The server goes on at {url}
  user: {USER}   password: {password}   collections: {FORECASTS}, {DEBUG}

With the client (in {Path(sys.executable).parent}):
{client}

With curl:
{curl}

Ctrl-C ends it and removes its data.""",
        markup=False,
        soft_wrap=True,
    )
