"""All processes of a server on one machine, with the embedded back-ends."""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from polytope_server.asgi_server import listen_patiently
from polytope_server.config.loading import load
from polytope_server.errors import BackendUnavailable, ConfigurationError
from polytope_server.lifecycle import PARENT_VARIABLE, Stop
from polytope_server.observability.health import ask

logger = logging.getLogger(__name__)

PROCESSES: Final = ("frontend", "broker", "worker", "garbage-collector")
REALM: Final = "local"
USER: Final = "polytope"
PASSWORD: Final = "password"  # noqa: S105 -- the name of the file

_READY_S: Final = 60.0
_DRAIN_S: Final = 90.0
_RESTART_S: Final = 1.0


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """``~/.local/share/polytope-server``, or where XDG says that data belong."""
    base = environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())
    return Path(base) / "polytope-server"


def configuration(data_dir: Path, *, port: int, password: str | None) -> dict[str, Any]:
    """What `standalone` adds to the operator's files, which go before it where they say otherwise.

    With a *password*: one user, and collections that need no data.
    """
    slots = max(2, os.cpu_count() or 1)
    tree: dict[str, Any] = {
        "frontend": {"bind_to": "127.0.0.1", "port": port},
        # What is queued is in order already: a short queue is fairer to those who come later.
        "broker": {"interval": 1, "max_queued": 2 * slots},
        "worker": {"slots": slots, "poll_interval": 1},
        "garbage-collector": {"interval": "60s"},
        "usage": {"path": str(data_dir / "usage.jsonl")},
        "request_store": {"sqlite": {"path": str(data_dir / "requests.sqlite")}},
        "queue": {"sqlite": {"path": str(data_dir / "queue.sqlite")}},
        "staging": {"local": {"root_dir": str(data_dir / "staging")}},
        "caching": {"memory": {}},
    }
    if password is not None:
        tree |= {
            "authentication": {
                REALM: {
                    "authenticators": {
                        "local": {
                            "type": "plain",
                            "users": [{"uid": USER, "password": password.replace("$", "$$")}],
                        }
                    }
                }
            },
            "datasources": {"echo": {"type": "echo"}, "dummy": {"type": "dummy"}},
            "collections": {
                name: {"roles": {REALM: ["default"]}, "datasources": [name]}
                for name in ("echo", "dummy")
            },
        }
    return tree


def run(files: Sequence[Path], *, data_dir: Path | None, port: int, strict: bool) -> None:
    """Start everything, say how to use it, and keep it running until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: it cannot start.
    """
    stop = Stop()
    stop.on_signals()
    directory = (data_dir or default_data_dir(os.environ)).expanduser().absolute()
    password = None if _has_users(files) else password_of(directory)
    server = Server(
        configuration(directory, port=port, password=password),
        files,
        data_dir=directory,
        strict=strict,
    )
    server.start(stop)
    try:
        sys.stdout.write(f"polytope-server is ready at {server.url}\n")
        if password is not None:
            sys.stdout.write(
                f"user: {USER}\npassword: {password}\n"
                f"try: curl -u {USER}:{password} {server.url}/api/v1/collections\n"
            )
        sys.stdout.flush()
        server.supervise(stop)
    finally:
        server.stop()


class Server:
    """The processes of one data directory, started and watched over.

    Args:
        tree: the configuration that we make, which *files* may override.
        data_dir: made if it is not there, closed to others; used by one server at a time.
        log: where the processes' log goes; standard error if not given.
    """

    def __init__(
        self,
        tree: Mapping[str, Any],
        files: Sequence[Path],
        *,
        data_dir: Path,
        strict: bool,
        log: Path | None = None,
    ) -> None:
        self._files, self._log = files, log
        self._arguments = ["--strict"] if strict else []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started: dict[str, float] = {}
        try:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._held = hold(data_dir)
            self._file = data_dir / "standalone.yaml"
            _write_private(self._file, json.dumps(tree, indent=2))  # JSON is YAML
        except OSError as exc:
            raise ConfigurationError(
                f"--data-dir: {data_dir} cannot be used: {exc.strerror}"
            ) from exc
        self._config = load([self._file, *files], strict=strict, environ=os.environ).config
        _must_be_free(self._config.frontend.bind_to, self._config.frontend.port)

    @property
    def url(self) -> str:
        settings = self._config.frontend
        return settings.public_url or f"http://{settings.bind_to}:{settings.port}"

    @property
    def pids(self) -> Mapping[str, int]:
        """Process ids by name, of those that run at present."""
        return {name: process.pid for name, process in self._processes.items()}

    def start(self, stop: Stop) -> None:
        """Start all, and return when the API answers.

        Raises:
            ConfigurationError: one of them ended at once, and has said why.
        """
        for name in PROCESSES:
            self._start(name)
        deadline = time.monotonic() + _READY_S
        settings = self._config.frontend
        while not stop.requested:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    self.stop()
                    raise ConfigurationError(f"the {name} could not start; see its message above")
            if _is_ready(settings.bind_to, settings.port):
                return
            if time.monotonic() > deadline:
                self.stop()
                raise ConfigurationError(f"the server was not ready within {_READY_S:g} seconds")
            stop.wait(0.1)

    def supervise(self, stop: Stop, *, each: Callable[[], None] = lambda: None) -> None:
        """Start again what ends, until asked to stop."""
        while not stop.wait(0.2):
            each()
            for name, process in list(self._processes.items()):
                status = process.poll()
                if status is None:
                    continue
                if time.monotonic() - self._started[name] < _RESTART_S:
                    continue  # it ended at once: not more than one start a second
                sys.stderr.write(
                    f"polytope-server: the {name} ended ({status}); starting it again\n"
                )
                self._start(name)

    def stop(self) -> None:
        """Ask all to end, the frontend first, and wait until they have."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _DRAIN_S
        for process in self._processes.values():
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._held.close()

    def _start(self, name: str) -> None:
        files = [argument for file in (self._file, *self._files) for argument in ("-f", str(file))]
        self._started[name] = time.monotonic()
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self._log.open("ab")) if self._log else None
            self._processes[name] = subprocess.Popen(  # noqa: S603 -- our own module, no shell
                [sys.executable, "-m", "polytope_server", name, *files, *self._arguments],
                env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us to pass on
            )


def hold(data_dir: Path) -> IO[str]:
    """Keep other servers away from the directory, until this is closed or the process has ended.

    Raises:
        ConfigurationError: another server holds it.
    """
    held = (data_dir / "lock").open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        held.close()
        raise ConfigurationError(
            f"--data-dir: {data_dir} is in use by another server; stop that one or choose another directory"
        ) from exc
    return held


def password_of(data_dir: Path) -> str:
    """The user's password: made at the first start, the same at every later one."""
    file = data_dir / PASSWORD
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if file.exists():
            return file.read_text().strip()
        password = secrets.token_urlsafe(12)
        _write_private(file, password)
    except OSError as exc:
        raise ConfigurationError(f"--data-dir: {data_dir} cannot be used: {exc.strerror}") from exc
    return password


def _has_users(files: Sequence[Path]) -> bool:
    """Whether the operator's files say who may log in."""
    if not files:
        return False
    tree = load(list(files), strict=False, environ=os.environ)
    return bool(tree.config.authentication)


def _write_private(file: Path, text: str) -> None:
    partial = file.with_name(file.name + ".new")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    partial.replace(file)


def _is_ready(host: str, port: int) -> bool:
    try:
        return ask(host, port, timeout_s=2.0)[0]
    except BackendUnavailable:
        return False


def _must_be_free(host: str, port: int) -> None:
    try:
        listeners = listen_patiently(host, port)
    except ConfigurationError as exc:
        raise ConfigurationError(f"--port: {exc}") from exc
    for listener in listeners:
        listener.close()
