"""All processes of a server on one machine, with the embedded back-ends."""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from polytope_server.asgi_server import listen_patiently
from polytope_server.config.files import ConfigFiles
from polytope_server.config.loading import BASE_VARIABLE, Loaded, are_there, load
from polytope_server.config.realms import realms
from polytope_server.errors import BackendUnavailable, ConfigurationError
from polytope_server.lifecycle import PARENT_VARIABLE, Hangup, Stop
from polytope_server.observability.health import ask
from polytope_server.reloading import Snapshot

logger = logging.getLogger(__name__)

PROCESSES: Final = ("frontend", "broker", "worker", "garbage-collector")
PORT: Final = 5000
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


def run(files: Sequence[Path], *, data_dir: Path | None, port: int | None, strict: bool) -> None:
    """Start everything, say how to use it, and keep it running until SIGTERM or Ctrl-C.

    Args:
        port: whatever the files say; theirs, or `PORT`, if not given.

    Raises:
        ConfigurationError: it cannot start.
    """
    stop = Stop()
    stop.on_signals()
    directory = (data_dir or default_data_dir(os.environ)).expanduser().absolute()
    operators = _OperatorsFiles(files, Hangup(), directory)
    server = Server(operators.tree(), files, data_dir=directory, strict=strict, port=port)
    server.start(stop)
    try:
        sys.stdout.write(f"polytope-server is ready at {server.url}\n")
        operators.say(server.url)
        server.supervise(stop, each=lambda: operators.follow(server))
    finally:
        server.stop()


class _OperatorsFiles:
    """What the operator says, and what we say because of it: a user of ours, if there are no others."""

    def __init__(self, files: Sequence[Path], hangup: Hangup, data_dir: Path) -> None:
        self._named = files
        self._files, self._hangup = ConfigFiles(files, environ=os.environ), hangup
        self._data_dir = data_dir
        self._password: str | None = None
        self._said: str | None = None
        self._due = 0.0

    def tree(self) -> dict[str, Any]:
        """What goes before the files as they are now.

        Raises:
            ConfigurationError: they cannot be used.
        """
        has_users = are_there(self._named, environ=os.environ) and bool(
            realms(self._files.load().config)
        )
        self._password = None if has_users else password_of(self._data_dir)
        return configuration(self._data_dir, port=PORT, password=self._password)

    def say(self, url: str) -> None:
        """Tell of our user, if there is one and it was not told."""
        if self._password is not None and self._password != self._said:
            sys.stdout.write(
                f"user: {USER}\npassword: {self._password}\n"
                f"try: curl -u {USER}:{self._password} {url}/api/v1/collections\n"
            )
        self._said = self._password
        sys.stdout.flush()

    def follow(self, server: "Server") -> None:
        """Have the processes take up what has changed, if it has and is good."""
        if not self._hangup.came():
            if not server.reload_interval_s or time.monotonic() < self._due:
                return
            self._due = time.monotonic() + server.reload_interval_s
            if not self._files.have_changed():
                return
        try:
            server.reload(self.tree())
        except ConfigurationError as exc:
            for line in str(exc).splitlines():
                sys.stderr.write(
                    f"polytope-server standalone: configuration refused, the old one stays: {line}\n"
                )
            return
        self.say(server.url)


class Server:
    """The processes of one data directory, started and watched over.

    Args:
        tree: the configuration that we make, which the system file and *files* may override.
        data_dir: made if it is not there, closed to others; used by one server at a time.
        port: of the API, whatever tree and files say; theirs if not given.
        log: where the processes' log goes; standard error if not given.
        environ: of the processes; says which system file there is.
    """

    def __init__(
        self,
        tree: Mapping[str, Any],
        files: Sequence[Path],
        *,
        data_dir: Path,
        strict: bool,
        port: int | None = None,
        log: Path | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._files, self._log, self._strict = files, log, strict
        self._environ = environ
        self._arguments = ["--strict"] if strict else []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started: dict[str, float] = {}
        try:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._held = hold(data_dir)
            self._file = data_dir / "standalone.yaml"
            _write_private(self._file, json.dumps(tree, indent=2))  # JSON is YAML
            if port is not None:
                typed = data_dir / "arguments.yaml"
                _write_private(typed, json.dumps({"frontend": {"port": port}}))
                self._files = [*files, typed]
        except OSError as exc:
            raise ConfigurationError(
                f"--data-dir: {data_dir} cannot be used: {exc.strerror}"
            ) from exc
        loaded = self._loaded(self._file)
        self._config = loaded.config
        written = loaded.origins["frontend.port"]
        if port is not None:
            written = "--port"
        elif written.startswith(f"{self._file}:"):
            written = ""
        _must_be_free(self._config.frontend.bind_to, self._config.frontend.port, written=written)

    @property
    def url(self) -> str:
        settings = self._config.frontend
        return settings.public_url or f"http://{settings.bind_to}:{settings.port}"

    @property
    def reload_interval_s(self) -> float:
        """How often somebody should look whether the files have changed; 0 is never."""
        return self._config.reload.interval

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

    def reload(self, tree: Mapping[str, Any]) -> None:
        """Have all processes read the files again, after *tree* in place of the one that we were given.

        Raises:
            ConfigurationError: together they cannot be used; nothing has changed.
        """
        candidate = self._file.with_name("candidate.yaml")
        try:
            _write_private(candidate, json.dumps(tree, indent=2))
            found = self._loaded(candidate)
            Snapshot.of(found.config)
            candidate.replace(self._file)
        except OSError as exc:
            raise ConfigurationError(
                f"--data-dir: {candidate} cannot be written: {exc.strerror}"
            ) from exc
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGHUP)

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

    def _loaded(self, base: Path) -> Loaded:
        environ = {**self._environ, BASE_VARIABLE: str(base)}
        return load(self._files, strict=self._strict, environ=environ)

    def _start(self, name: str) -> None:
        files = [argument for file in self._files for argument in ("-f", str(file))]
        self._started[name] = time.monotonic()
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self._log.open("ab")) if self._log else None
            self._processes[name] = subprocess.Popen(  # noqa: S603 -- our own module, no shell
                [sys.executable, "-m", "polytope_server", name, *files, *self._arguments],
                env={
                    **self._environ,
                    BASE_VARIABLE: str(self._file),
                    PARENT_VARIABLE: str(os.getpid()),
                },
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


def _must_be_free(host: str, port: int, *, written: str) -> None:
    """Raises: ConfigurationError, which names where the port is *written*, if anybody wrote it."""
    try:
        listeners = listen_patiently(host, port)
    except ConfigurationError as exc:
        if isinstance(exc.__cause__, socket.gaierror):
            raise ConfigurationError(f"frontend.{exc}") from exc
        text = f"{written}: {exc}" if written else f"{exc}; --port chooses another"
        raise ConfigurationError(text) from exc
    for listener in listeners:
        listener.close()
