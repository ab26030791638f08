"""Bodies on their way to the disk: in pieces, and kept only if they are whole."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Protocol, TypeVar

from falcon.asgi import Request

from polytope_server.errors import BodyTooLarge, InvalidRequest
from polytope_server.staging import CHUNK_BYTES
from polytope_server.staging.local import LocalReader

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    """The one door from the event loop to the disk: a bounded pool of threads."""

    def __init__(self, *, threads: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="disk")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What *call* returns or raises."""
        work = functools.partial(call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Start nothing new; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Receiver(Protocol):
    """What takes a body: an upload, or a part of one. May be left while a write is going on."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def write(self, data: bytearray) -> None: ...

    def commit(self) -> None: ...


async def receive(
    req: Request,
    receiver: Receiver,
    disk: Disk,
    *,
    max_bytes: int,
    received: Callable[[int], None],
) -> int:
    """Write a body, holding one chunk of it, and commit it if all of it has come; how many bytes.

    Args:
        received: told of the bytes as they come.

    Raises:
        InvalidRequest: its length was not announced, or it was cut off.
        BodyTooLarge
    """
    announced = req.content_length
    if announced is None:
        raise InvalidRequest("The body's length must be announced in Content-Length.")
    if announced > max_bytes:
        raise BodyTooLarge(f"The body is larger than {max_bytes} bytes.")
    await disk.run(receiver.__enter__)
    try:
        got = 0
        async for piece in _pieces(req):
            got += len(piece)
            received(len(piece))
            await disk.run(receiver.write, piece)
        # a connection that broke ends the body as if it were whole
        if got != announced:
            raise InvalidRequest(f"The body was cut off: {got} of {announced} bytes arrived.")
        await disk.run(receiver.commit)
    finally:
        await disk.run(receiver.__exit__, None, None, None)
    return got


async def _pieces(req: Request) -> AsyncIterator[bytearray]:
    piece = bytearray()
    async for part in req.stream:
        piece += part
        if len(piece) >= CHUNK_BYTES:
            yield piece
            piece = bytearray()
    if piece:
        yield piece


class Chunks:
    """An object on its way out, one chunk at a time. Falcon closes it, however the answer ends.

    Args:
        sent: told of the bytes as they go.
    """

    def __init__(self, reader: LocalReader, disk: Disk, *, sent: Callable[[int], None]) -> None:
        self._reader, self._disk, self._sent = reader, disk, sent

    def __aiter__(self) -> "Chunks":
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._disk.run(next, self._reader, b"")
        if not chunk:
            raise StopAsyncIteration
        self._sent(len(chunk))
        return chunk

    async def close(self) -> None:
        """Free the file; a read that is going on is waited for by a thread, not by the loop."""
        await self._disk.run(self._reader.close)
