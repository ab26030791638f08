"""What a network does to the traffic between a client and a server, done on purpose and without root.

A proxy on a loopback port of its own. Clients of a test are configured with that port; the test says from
its own thread what is to happen to them, connections that are already there included.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Self, TypeVar

T = TypeVar("T")

_CHUNK: Final = 65_536
_LOOK_S: Final = 0.02
_START_S: Final = 10.0
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of no time: close sends RST instead of FIN


class Mode(Enum):
    """What happens to what is sent from now on."""

    PASS = "pass"
    REFUSE = "refuse"
    """Each new connection is reset at once; those that are there go on."""
    BLACKHOLE = "blackhole"
    """Nothing comes through in either direction until the mode changes; then all of it does."""
    LOSE_REPLIES = "lose replies"
    """Requests reach the server; what it answers is gone. A connection that has lost something is reset
    when the mode changes, for what comes later on it would be read as the answer to something else."""


@dataclass(frozen=True, slots=True)
class _Faults:
    mode: Mode = Mode.PASS
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    cut_after: int | None = None


class _Link:
    """One client's connection, and the one to the server that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._writers = (client, server)
        self.replied = 0
        self.has_lost = False

    def reset(self) -> None:
        for writer in self._writers:
            _reset(writer)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class ChaosProxy:
    """Forwards to *host*:*port* from `port` on loopback, in a thread of its own. A context manager.

    Every method and property may be used from any thread; what they say holds for what is sent afterwards.
    """

    host: Final = "127.0.0.1"

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._server = (host, port)
        self._faults = _Faults()
        self._links: set[_Link] = set()
        self._lost_bytes = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="chaos-proxy", daemon=True
        )
        self._listener: asyncio.Server | None = None
        self.port = 0
        """Where clients connect to; known once it is entered."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._listener = self._in_loop(asyncio.start_server(self._serve, self.host, 0))
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._in_loop(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=_START_S)
        self._loop.close()

    # --- what is to happen

    @property
    def mode(self) -> Mode:
        return self._faults.mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        def change() -> None:
            self._faults = replace(self._faults, mode=mode)
            if mode is not Mode.LOSE_REPLIES:
                for link in list(self._links):
                    if link.has_lost:
                        link.reset()

        self._called(change)

    def hamper(
        self,
        *,
        delay_s: float = 0.0,
        bytes_per_s: float | None = None,
        cut_after: int | None = None,
    ) -> None:
        """Make it slow or cut it off; without arguments, neither.

        Args:
            delay_s: that each piece is held back, in both directions.
            bytes_per_s: what a connection carries at most, in each direction.
            cut_after: how many bytes of replies a connection carries before it is reset.
        """

        def change() -> None:
            self._faults = replace(
                self._faults, delay_s=delay_s, bytes_per_s=bytes_per_s, cut_after=cut_after
            )

        self._called(change)

    def reset_all(self) -> None:
        """Reset every connection that is there."""

        def change() -> None:
            for link in list(self._links):
                link.reset()

        self._called(change)

    # --- what has happened

    @property
    def connections(self) -> int:
        """How many there are now."""
        return self._called(lambda: len(self._links))

    @property
    def lost_bytes(self) -> int:
        """Of replies, since the beginning."""
        return self._lost_bytes

    # --- within the loop

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=_START_S)

    def _called(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return self._in_loop(call())

    async def _end(self) -> None:
        if self._listener is not None:
            self._listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode is Mode.REFUSE:
            _reset(writer)
            return
        try:
            from_server, to_server = await asyncio.open_connection(*self._server)
        except OSError:
            _reset(writer)  # nobody is there; the nearest to a refusal that is left
            return
        link = _Link(writer, to_server)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._requests(reader, to_server))
                both.create_task(self._replies(link, from_server, writer))
        except* OSError:
            link.reset()
        finally:
            self._links.discard(link)
            link.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await self._read(reader):
            writer.write(piece)
            await writer.drain()
        _end_of(writer)

    async def _replies(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while piece := await self._read(reader):
            if self.mode is Mode.LOSE_REPLIES or link.has_lost:
                link.has_lost = True
                self._lost_bytes += len(piece)
                continue
            limit = self._faults.cut_after
            if limit is not None and link.replied + len(piece) > limit:
                writer.write(piece[: max(0, limit - link.replied)])
                await writer.drain()
                raise ConnectionResetError
            link.replied += len(piece)
            writer.write(piece)
            await writer.drain()
        if not link.has_lost:
            _end_of(writer)  # an end that follows lost bytes is lost as well

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """The next piece, when it may go on; nothing at the end."""
        rate = self._faults.bytes_per_s
        piece = await reader.read(_CHUNK if rate is None else max(1, min(_CHUNK, int(rate / 10))))
        if rate is not None:
            await asyncio.sleep(len(piece) / rate)
        if self._faults.delay_s:
            await asyncio.sleep(self._faults.delay_s)
        while self.mode is Mode.BLACKHOLE:
            await asyncio.sleep(_LOOK_S)
        return piece


def _end_of(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.transport.is_closing():
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
