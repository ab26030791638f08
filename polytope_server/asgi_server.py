"""A Falcon application on gunicorn's own ASGI worker, inside our process.

gunicorn parses, forks and restarts; what it leaves unbounded is bounded here. A connection may wait for a
request, send the headers of one, stop in the middle of a body, or take its answer only so long, and there
is a limit on how many there are. At the limit the one from which nothing has come for the longest time gives
way, so that connections that do nothing keep nobody out.
"""

import asyncio
import errno
import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import itemgetter
from types import FrameType
from typing import Any, Final

from falcon.asgi import App, Request, Response
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.asgi.lifespan import LifespanManager
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.glogging import Logger
from gunicorn.workers.gasgi import ASGIWorker

from polytope_server.errors import ConfigurationError, PolytopeError

# gunicorn has no types: what is made of its classes is Any to mypy.

logger = logging.getLogger(__name__)

Application = App[Request, Response]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SECURITY_HEADERS: Final = (
    ("Cache-Control", "no-cache, no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("X-XSS-Protection", "1; mode=block"),
)
"""On every answer, unless it says otherwise."""
_REFUSALS: Final[Mapping[int, str]] = {
    400: "This is not a well-formed HTTP request.",
    414: "The address of this request is too long.",
    431: "The headers of this request are too long, or too many.",
    500: "Internal error; the log of the server has the story.",
    501: "This server does not know the Transfer-Encoding of this request.",
}
"""What gunicorn refuses before the application sees it, by status."""
_HEADERS_S: Final = 20.0
"""From the first byte of a request to the end of its headers."""
_CHANCE_S: Final = 0.1
"""What a client needs at least to send a request once it is connected."""
_STALLED_S: Final = 5.0
"""So long a body may pause, even if others wait for the connection."""
_PROGRESS_BYTES: Final = 1024
"""Less than that is no progress of a body."""
_UNREAD_BYTES: Final = 64 << 20
_UNREAD_S: Final = 5.0
"""What is still taken of a body after its answer."""
_SWEEP_S: Final = 1.0
_HEARTBEAT_S: Final = 60
"""An event loop that stands still for so long is killed and replaced."""
_FORCED_S: Final = 5.0
"""From the end of the grace to SIGKILL."""
_IN_USE_S: Final = 5.0
"""How long a port that is in use may become free."""
_SPARE_FILES: Final = 256
_FILES_PER_CONNECTION: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """Of one worker process; in seconds."""

    max_connections: int
    idle_timeout_s: float
    graceful_timeout_s: float

    @property
    def headers_s(self) -> float:
        return min(_HEADERS_S, self.idle_timeout_s)


def serve(
    app_factory: Callable[[], Application],
    *,
    bind_to: str,
    port: int,
    processes: int = 1,
    max_connections: int,
    idle_timeout_s: float,
    graceful_timeout_s: float,
    on_ready: Callable[[str, int], None] | None,
    each_turn: Callable[[], bool] = lambda: False,
) -> None:
    """Serve until SIGTERM, then until all answers are finished or the grace is over. In the main thread.

    Args:
        app_factory: called in each worker process, after the fork; SIGTERM ends it too.
        port: 0 takes any that is free.
        max_connections: of each worker process.
        idle_timeout_s: for a connection without a request, and for a client that takes nothing.
        graceful_timeout_s: for answers that are under way at SIGTERM.
        on_ready: told the address and the port once clients can connect; the first answers may still have
            to wait for `app_factory`.
        each_turn: called in this process about once a second, and before a worker process is started;
            when it says so, all worker processes are sent SIGHUP, which must be held back from them.

    Raises:
        ConfigurationError: that cannot be listened on; or a worker process could not start, which has
            said why in the log.
    """
    limits = _Limits(
        max_connections=max_connections,
        idle_timeout_s=idle_timeout_s,
        graceful_timeout_s=graceful_timeout_s,
    )
    _allow_open_files(max_connections * _FILES_PER_CONNECTION + _SPARE_FILES)
    sockets = listen_patiently(bind_to, port)
    address: tuple[str, int] = sockets[0].getsockname()[:2]

    def ready(_arbiter: Any) -> None:
        logger.info("listening", extra={"address": address[0], "port": address[1]})
        if on_ready is not None:
            on_ready(*address)

    gunicorn = _Gunicorn(
        app_factory,
        limits,
        sockets=sockets,
        processes=processes,
        when_ready=ready,
    )
    parent = os.getpid()
    handlers = {number: signal.getsignal(number) for number in (*Arbiter.SIGNALS, signal.SIGCHLD)}
    try:
        _Arbiter(gunicorn, each_turn).run()
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
        if os.getpid() != parent:
            # A worker process ends here: what our callers would clean up is not its own.
            logging.shutdown()
            os._exit(status)
        if status != 0:
            raise ConfigurationError("the server could not start; the log says why") from exc
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def listen(bind_to: str, port: int) -> Sequence[socket.socket]:
    """Sockets that listen on all addresses of a host name, all on one port.

    Raises:
        ConfigurationError: on none of them.
    """
    sockets: list[socket.socket] = []
    refused: OSError | None = None
    try:
        found = socket.getaddrinfo(bind_to, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise ConfigurationError(f"bind_to: {bind_to} is no address here: {exc.strerror}") from exc
    for family, kind, protocol, _, address in dict.fromkeys(found):
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            chosen = port or (sockets[0].getsockname()[1] if sockets else 0)
            listener.bind((address[0], chosen, *address[2:]))
            listener.listen(socket.SOMAXCONN)
        except OSError as exc:
            # a host may have a name for an address family that it does not speak
            refused = exc
            listener.close()
        else:
            sockets.append(listener)
    if not sockets:
        raise ConfigurationError(
            f"{bind_to}:{port} cannot be listened on: {refused.strerror if refused else 'no address'}"
        ) from refused
    return sockets


def listen_patiently(bind_to: str, port: int) -> Sequence[socket.socket]:
    """`listen`, tried again for a while: a server that was just killed may still be there."""
    deadline = time.monotonic() + _IN_USE_S
    while True:
        try:
            return listen(bind_to, port)
        except ConfigurationError as exc:
            in_use = isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EADDRINUSE
            if not in_use or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _allow_open_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Log(Logger):  # type: ignore[misc]
    """gunicorn's words in our log, and only its warnings: what is worth more is said by us."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)


class _Gunicorn(BaseApplication):  # type: ignore[misc]
    """The configuration of gunicorn, and the door to our application."""

    def __init__(
        self,
        app_factory: Callable[[], Application],
        limits: _Limits,
        *,
        sockets: Sequence[socket.socket],
        processes: int,
        when_ready: Callable[[Any], None],
    ) -> None:
        self.limits = limits
        self._app_factory = app_factory
        # gunicorn takes the descriptors over
        self._bind = [f"fd://{listener.detach()}" for listener in sockets]
        self._processes, self._when_ready = processes, when_ready
        super().__init__()

    def load_config(self) -> None:
        settings = {
            "bind": self._bind,
            "workers": self._processes,
            "worker_class": _Worker,
            "worker_connections": self.limits.max_connections,
            "keepalive": max(1, int(self.limits.idle_timeout_s)),
            "timeout": _HEARTBEAT_S,
            "graceful_timeout": int(self.limits.graceful_timeout_s + _FORCED_S) + 1,
            "asgi_lifespan": "on",
            "asgi_loop": "asyncio",
            "http_parser": "fast",
            "control_socket_disable": True,
            "accesslog": None,
            "logger_class": _Log,
            "forwarded_allow_ips": "",  # whom to believe is the application's to decide
            "when_ready": self._when_ready,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Application:
        # asked of a subclass, as connections do, gunicorn notes the answer where it does not look
        ASGIProtocol._check_h1c_protocol_available()
        try:
            return self._app_factory()
        except PolytopeError as exc:
            logger.critical("cannot start", extra={"cause": str(exc)})
            sys.exit(Arbiter.WORKER_BOOT_ERROR)


class _Arbiter(Arbiter):  # type: ignore[misc]
    """gunicorn's parent process, with something else to do besides."""

    def __init__(self, app: _Gunicorn, each_turn: Callable[[], bool]) -> None:
        self._each_turn = each_turn
        super().__init__(app)

    def manage_workers(self) -> None:
        if self._each_turn():
            self.kill_workers(signal.SIGHUP)
        super().manage_workers()


def _at_once(scope: Message, receive: Receive) -> Receive:
    """Let the application look at a request before its body comes: it may refuse it unread.

    Falcon does nothing before the first event, and gunicorn sends none before there is some body.
    """
    names = {name for name, value in scope.get("headers", ()) if value != b"0"}
    if not names & {b"content-length", b"transfer-encoding"}:
        return receive
    first: list[Message] = [{"type": "http.request", "body": b"", "more_body": True}]

    async def receive_at_once() -> Message:
        return first.pop() if first else await receive()

    return receive_at_once


class _ClientGone(ConnectionError):
    """Ends an answer that nobody takes any more."""


class _Connection(ASGIProtocol):  # type: ignore[misc]
    """One connection, which tells the worker whether it waits for a request."""

    def __init__(self, worker: "_Worker") -> None:
        super().__init__(worker)
        self._connections = worker.connections
        self._asgi: Callable[[Message, Receive, Send], Awaitable[None]] = worker.asgi
        self.app = self._answer
        self.unsent_bytes = 0
        self.moved_at = 0.0
        self.progress_bytes = 0
        self._expects_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._connections.add(self)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        super().connection_lost(exc)
        # or its task waits for another request, or for the client to take what was written
        self._request_ready.set()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        self._connections.reads(self)
        super().data_received(data)

    def _feed_callback_parser(self, data: bytes) -> bool:
        try:
            goes_on: bool = super()._feed_callback_parser(data)
        except ValueError:  # more digits in a number than int() reads
            self._send_error_response(400, "")
            self._close_transport()
            return False
        return goes_on

    def _on_headers_complete(self) -> bool:
        self._expects_body = True
        self._connections.receives(self)
        skip_body: bool = super()._on_headers_complete()
        return skip_body

    def _on_body(self, chunk: bytes) -> None:
        self._connections.progresses(self, len(chunk))
        super()._on_body(chunk)

    def _on_message_complete(self) -> None:
        self._expects_body = False
        self._connections.works(self)
        super()._on_message_complete()

    def _pause_reading(self) -> None:
        # the application is slower than the client, who is not to blame for it
        if self._expects_body:
            self._connections.works(self)
        super()._pause_reading()

    def _resume_reading(self) -> None:
        super()._resume_reading()
        if self._expects_body:
            self._connections.receives(self)

    def _is_websocket_upgrade(self, _request: Any) -> bool:
        # no application of ours speaks it: it is answered as if it had not asked for another protocol
        return False

    def _arm_keepalive_timer(self) -> None:
        # called when an answer is finished; the timer is ours
        self._connections.waits(self)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        # gunicorn ignores what is sent to nobody, and would let us read a whole object for it
        async def send_to_somebody(message: Message) -> None:
            if self._closed:
                raise _ClientGone
            await send(message)

        with suppress(_ClientGone):
            await self._asgi(scope, _at_once(scope, receive), send_to_somebody)
            await self._take_the_rest(receive)

    async def _take_the_rest(self, receive: Receive) -> None:
        """Take what the client still sends after its answer, within bounds, so that it comes to read it.

        A connection that is closed on unread data is reset, and what was answered gets lost. With the
        body at its end the connection can be used again; else gunicorn closes it.
        """
        left = _UNREAD_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(_UNREAD_S):
                while self._expects_body and left > 0 and not self._closed:
                    left -= len((await receive()).get("body", b""))

    def cut_body(self) -> None:
        """Wait for the rest of the body no longer: the application is told that it is cut off."""
        self._expects_body = False
        receiver = self._body_receiver
        if receiver is not None:
            # as gunicorn does after a time-out of its own; it closes the connection after the answer
            receiver._body_wait_expired = True
            receiver._wake_waiter()

    def close(self) -> None:
        """Close it when what has been written is sent."""
        self._close_transport()

    def abort(self) -> None:
        """Close it now."""
        self.transport.abort()

    def _send_error_response(
        self,
        status: int,
        message: str,  # noqa: ARG002
        extra_headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        # what gunicorn itself refuses looks like what the application refuses; its own words are
        # fragments, and may hold a piece of the request
        text = _REFUSALS.get(status, f"{self._get_reason_phrase(status)}.")
        body = json.dumps({"message": text}).encode()
        headers = (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            *SECURITY_HEADERS,
            ("Connection", "close"),
            *extra_headers,
        )
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        phrase = self._get_reason_phrase(status)
        self._safe_write(f"HTTP/1.1 {status} {phrase}\r\n{lines}\r\n".encode("latin-1") + body)


class _Connections:
    """All connections of a process, and which of them wait: those that did so first come first."""

    def __init__(self, limits: _Limits, clock: Callable[[], float]) -> None:
        self._limits, self._clock = limits, clock
        self._all: set[_Connection] = set()
        self._waiting: dict[_Connection, float] = {}
        """Without a byte of a request, since when."""
        self._reading: dict[_Connection, float] = {}
        """With a part of the headers, since when."""
        self._receiving: dict[_Connection, float] = {}
        """With a part of the body, since when without progress."""
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def is_full(self) -> bool:
        return len(self._all) >= self._limits.max_connections

    def add(self, connection: _Connection) -> None:
        self._all.add(connection)
        connection.moved_at = self._waiting[connection] = self._clock()

    def remove(self, connection: _Connection) -> None:
        self._all.discard(connection)
        self.works(connection)
        self._changed.set()

    def reads(self, connection: _Connection) -> None:
        """A byte came; if it is the first of a request, the headers' time begins."""
        if self._waiting.pop(connection, None) is not None:
            self._reading[connection] = self._clock()

    def receives(self, connection: _Connection) -> None:
        """The headers are there, and the client can send a body."""
        self.works(connection)
        if connection in self._all:
            connection.progress_bytes = 0
            self._receiving[connection] = self._clock()

    def progresses(self, connection: _Connection, size_bytes: int) -> None:
        """So much of a body came."""
        connection.progress_bytes += size_bytes
        if connection.progress_bytes >= _PROGRESS_BYTES and connection in self._receiving:
            self.receives(connection)

    def works(self, connection: _Connection) -> None:
        """All of a request is there, or it is not the client that is waited for, or it has gone."""
        for line in (self._waiting, self._reading, self._receiving):
            line.pop(connection, None)

    def waits(self, connection: _Connection) -> None:
        """An answer is finished."""
        if connection in self._all:
            self._waiting[connection] = self._clock()
            self._changed.set()

    async def until_changed(self, at_most_s: float) -> None:
        """Wait until a connection is gone or waits."""
        self._changed.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), at_most_s)

    def make_room(self) -> bool:
        """Close the one that has been silent longest, if there is one that could have sent more."""
        now = self._clock()
        oldest = [
            found
            for line, chance_s in (
                (self._waiting, _CHANCE_S),
                (self._reading, _CHANCE_S),
                (self._receiving, _STALLED_S),
            )
            if (found := next((c for c in line.items() if self._is_idle(c, now - chance_s)), None))
        ]
        if not oldest:
            return False
        connection, _ = min(oldest, key=itemgetter(1))
        self.works(connection)
        connection.abort()
        return True

    @staticmethod
    def _is_idle(item: tuple[_Connection, float], latest: float) -> bool:
        connection, since = item
        return since <= latest and connection.transport.get_write_buffer_size() == 0

    def sweep(self) -> None:
        """Close those whose time is up."""
        now = self._clock()
        for line, allowed_s, end in (
            (self._waiting, self._limits.idle_timeout_s, _Connection.close),
            (self._reading, self._limits.headers_s, _Connection.close),
            (self._receiving, self._limits.idle_timeout_s, _Connection.cut_body),
        ):
            while line:
                connection, since = next(iter(line.items()))
                if now - since < allowed_s:
                    break
                self.works(connection)
                end(connection)
        for connection in self._all:
            unsent = connection.transport.get_write_buffer_size()
            if unsent == 0 or unsent != connection.unsent_bytes:
                connection.unsent_bytes, connection.moved_at = unsent, now
            elif now - connection.moved_at >= self._limits.idle_timeout_s:
                connection.abort()

    def close_waiting(self) -> None:
        """Close those that have begun no request, although they could have."""
        latest = self._clock() - _CHANCE_S
        for connection in [c for c, since in self._waiting.items() if since <= latest]:
            self.works(connection)
            connection.close()

    def abort_all(self) -> None:
        for connection in [*self._all]:
            connection.abort()


class _Worker(ASGIWorker):  # type: ignore[misc]
    """gunicorn's ASGI worker with our connections."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits: _Limits = self.app.limits
        self._woken = asyncio.Event()

    def load_wsgi(self) -> None:
        with self._starting():
            super().load_wsgi()

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Meanwhile SIGTERM ends us, gunicorn sees us alive, and we end if it does."""
        started = threading.Event()

        def beat() -> None:
            while not started.wait(_SWEEP_S):
                self.notify()
                if os.getppid() != self.ppid:
                    os.kill(os.getpid(), signal.SIGTERM)

        def end(_number: int, _frame: FrameType | None) -> None:
            sys.exit(0)

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        before = {number: signal.signal(number, end) for number in numbers}
        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield
        finally:
            started.set()
            heart.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit_signal(self) -> None:
        super().handle_exit_signal()
        self._woken.set()

    def handle_quit_signal(self) -> None:
        super().handle_quit_signal()
        self._woken.set()

    async def _serve(self) -> None:
        self.connections = _Connections(self.limits, self.loop.time)
        lifespan = LifespanManager(self.asgi, self.log, self.state)
        try:
            await lifespan.startup()
        except RuntimeError as exc:
            logger.critical("cannot start", extra={"cause": str(exc)})
            raise SystemExit(Arbiter.WORKER_BOOT_ERROR) from exc
        acceptors = [asyncio.create_task(self._accept(listener.sock)) for listener in self.sockets]
        while self.alive and self.ppid == os.getppid():
            self.notify()
            self.connections.sweep()
            await self._sleep(_SWEEP_S)
            for acceptor in acceptors:
                if acceptor.done():
                    acceptor.result()  # raises: a server that lets nobody in is replaced
        for acceptor in acceptors:
            acceptor.cancel()
        await asyncio.gather(*acceptors, return_exceptions=True)
        for listener in self.sockets:
            listener.close()
        await self._drain()
        if not self._quick_shutdown:
            await lifespan.shutdown()

    async def _accept(self, listener: socket.socket) -> None:
        """Let clients in, one after the other, while there is room."""
        while True:
            try:
                client, _ = await self.loop.sock_accept(listener)
            except OSError as exc:
                logger.warning("cannot accept connections", extra={"cause": str(exc)})
                await asyncio.sleep(_SWEEP_S)
                continue
            while self.connections.is_full:
                self.connections.make_room()
                await self.connections.until_changed(_CHANCE_S)
            with suppress(OSError):  # it has gone already
                await self.loop.connect_accepted_socket(lambda: _Connection(self), client)

    async def _drain(self) -> None:
        """Let what is being answered finish, if it can in time."""
        self.alive = False
        deadline = self.loop.time() + self.limits.graceful_timeout_s
        while len(self.connections) and not self._quick_shutdown:
            self.connections.close_waiting()
            if self.loop.time() >= deadline:
                logger.warning(
                    "cutting off what did not finish in time",
                    extra={"connections": len(self.connections)},
                )
                break
            self.notify()
            self.connections.sweep()
            self._woken.clear()
            await self._sleep(0.05)
        self.connections.abort_all()

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), seconds)
