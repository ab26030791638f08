"""Is a process alive, can it do its work, and what does it wait for: asked and answered by HTTP."""

import functools
import http.client
import json
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Collection, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

from polytope_server.errors import BackendUnavailable, ConfigurationError

logger = logging.getLogger(__name__)

OK: Final = "ok"
AWAY: Final = "away"

Checks = Mapping[str, Callable[[], None]]
"""By name: returns if that back-end answers, else raises `BackendUnavailable`."""

_JSON: Final = "application/json"
_MAX_CONNECTIONS: Final = 16
_CONNECTION_S: Final = 10.0
_MAX_ANSWER_BYTES: Final = 64 * 1024


class Rendered(Protocol):
    """What ``/metrics`` answers with."""

    def render(self) -> tuple[bytes, str]:
        """The text, and its content type."""


class Report(NamedTuple):
    """Whether all that is needed is there, and what is and is not: names and states, open to everybody."""

    ready: bool
    states: Mapping[str, str]


class _StillOpening(BackendUnavailable):
    """Nothing is known yet."""


class LateChecks(dict[str, Callable[[], None]]):
    """Checks of back-ends that are opened only now: each is away until then."""

    def __init__(self, *names: str) -> None:
        super().__init__({name: functools.partial(self._look, name) for name in names})
        self._pings: dict[str, Callable[[], None]] = {}

    def opened(self, name: str, ping: Callable[[], None]) -> None:
        """From now on, *ping* says how it is."""
        self._pings[name] = ping

    def _look(self, name: str) -> None:
        ping = self._pings.get(name)
        if ping is None:
            raise _StillOpening(f"{name}: it is still being opened")
        ping()


class _Probe:
    """One check, run in a thread of its own, never twice at once: a hung one holds one thread only."""

    def __init__(self, name: str, check: Callable[[], None]) -> None:
        self._name = name
        self._check = check
        self._done = threading.Event()
        self._done.set()
        self._passed = False
        self._is_opening = False
        self._cause = ""
        self._state = OK

    def start(self) -> None:
        if self._done.is_set():
            self._done.clear()
            threading.Thread(target=self._run, name=f"check-{self._name}", daemon=True).start()

    def state(self, *, timeout_s: float) -> str:
        """The outcome of the run that was started; one that does not end in time is no answer."""
        has_answered = self._done.wait(max(0.0, timeout_s))
        new = OK if has_answered and self._passed else AWAY
        if new != self._state and not (has_answered and self._is_opening):
            self._state = new
            if new == AWAY:
                logger.warning(
                    "A back-end is away; waiting for it",
                    extra={
                        "backend": self._name,
                        "cause": self._cause if has_answered else "it has not answered in time",
                    },
                )
            else:
                logger.info("A back-end is there again", extra={"backend": self._name})
        return new

    def _run(self) -> None:
        passed = self._is_opening = False
        try:
            self._check()
            passed = True
        except _StillOpening:
            self._is_opening = True
        except BackendUnavailable as exc:
            self._cause = str(exc)
            logger.debug("A check failed", extra={"backend": self._name}, exc_info=exc)
        except Exception:
            self._cause = "the check itself is broken"
            logger.exception("A check broke", extra={"backend": self._name})
        finally:
            self._passed = passed
            self._done.set()


class Readiness:
    """All checks of a process. Safe between threads; callers share one round of checks.

    Args:
        dispensable: names of those whose absence is told, but without whom the process does its work.
    """

    def __init__(
        self,
        checks: Checks,
        *,
        dispensable: Collection[str] = (),
        timeout_s: float = 2.0,
        remembered_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probes = {name: _Probe(name, check) for name, check in checks.items()}
        self._dispensable = dispensable
        self._timeout_s = timeout_s
        self._remembered_s = remembered_s
        self._clock = clock
        self._lock = threading.Lock()
        self._last: tuple[float, Report] | None = None

    def look(self) -> Report:
        """Ask all at once, or remember the last answer; takes at most about twice the time-out."""
        with self._lock:
            if self._last is not None and self._clock() < self._last[0] + self._remembered_s:
                return self._last[1]
            deadline = time.monotonic() + self._timeout_s
            for probe in self._probes.values():
                probe.start()
            states = {
                name: probe.state(timeout_s=deadline - time.monotonic())
                for name, probe in self._probes.items()
            }
            report = Report(
                ready=all(
                    state == OK for name, state in states.items() if name not in self._dispensable
                ),
                states=MappingProxyType(states),
            )
            self._last = (self._clock(), report)
            return report


class HealthListener:
    """Answers ``/healthz``, ``/readyz`` and ``/metrics`` from a thread, beside a process's work.

    Holds at most 16 connections, each at most about 10 s, whatever its peer does.
    """

    def __init__(
        self,
        bind_to: str,
        port: int,
        checks: Checks | Readiness,
        metrics: Rendered | None = None,
        *,
        listener: socket.socket | None = None,
    ) -> None:
        """Listen on a port, 0 for any free one; nothing is answered before `start`.

        Args:
            listener: a socket that listens there already, and is taken over.

        Raises:
            ConfigurationError: that cannot be listened on.
        """
        readiness = checks if isinstance(checks, Readiness) else Readiness(checks)
        try:
            self._server = _Server(bind_to, port, readiness, metrics, listener)
        except (OSError, OverflowError) as exc:
            raise ConfigurationError(f"health: cannot listen on {bind_to}:{port}: {exc}") from exc
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="health", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; answers that are on their way may still end."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()


def ask(host: str, port: int, *, timeout_s: float = 5.0) -> tuple[bool, Mapping[str, str]]:
    """Whether the process with its health listener there is ready, and the state of each back-end.

    Raises:
        BackendUnavailable: nobody answers there, or somebody who is not ours.
    """
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        status, body = response.status, response.read(_MAX_ANSWER_BYTES)
        states = json.loads(body)
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as exc:
        raise BackendUnavailable(
            f"Nobody answers the question for health at {host}:{port}: {type(exc).__name__}"
        ) from exc
    finally:
        connection.close()
    if status not in (200, 503) or not isinstance(states, dict):
        raise BackendUnavailable(f"What answers at {host}:{port} is no process of this server.")
    return status == 200, {str(name): str(state) for name, state in states.items()}


class _Server(ThreadingHTTPServer):
    """Bounded in connections and in the age of each."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = _MAX_CONNECTIONS

    def __init__(
        self,
        bind_to: str,
        port: int,
        readiness: Readiness,
        metrics: Rendered | None,
        listener: socket.socket | None,
    ) -> None:
        self.readiness = readiness
        self.metrics = metrics
        self._room = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._open_lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        if ":" in bind_to:
            self.address_family = socket.AF_INET6
        super().__init__((bind_to, port), _Handler, bind_and_activate=listener is None)
        if listener is not None:
            self.socket.close()
            self.socket, self.server_address = listener, listener.getsockname()

    def server_bind(self) -> None:
        # without the inherited one's question to a name server
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._open_lock:
            self._open[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._release(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release(request)

    def service_actions(self) -> None:
        """Called every 0.2 s: ends connections that somebody keeps open."""
        now = time.monotonic()
        with self._open_lock:
            old = [each for each, since in self._open.items() if now - since > _CONNECTION_S]
            for each in old:
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # closed in this moment

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        logger.debug("A connection of the health listener broke", exc_info=True)

    def _release(self, request: socket.socket) -> None:
        with self._open_lock:
            self._open.pop(request, None)
        self._room.release()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        metrics = self.server.metrics
        if path == "/healthz":
            self._answer(200, {"status": "alive"})
        elif path == "/readyz":
            report = self.server.readiness.look()
            self._answer(200 if report.ready else 503, dict(report.states))
        elif path == "/metrics" and metrics is not None:
            body, content_type = metrics.render()
            self._send(200, body, content_type)
        else:
            self._answer(404, {"message": "There are /healthz, /readyz and /metrics here."})

    def do_HEAD(self) -> None:
        self.do_GET()

    def version_string(self) -> str:
        return "polytope-server"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as inherited
        """Nothing: probes come every few seconds and are no events."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """The inherited answers to what is no proper request, without HTML."""
        self.close_connection = True
        self._answer(code, {"message": "This is not understood here."})

    def _answer(self, status: int, value: Mapping[str, str]) -> None:
        self._send(status, json.dumps(value).encode(), _JSON)

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
