"""The one door from the event loop to blocking back-ends."""

import asyncio
import contextvars
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from polytope_server.errors import BackendUnavailable

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A bounded pool of threads for one back-end, with a time-out for each call.

    A call whose time is up goes on in its thread: the back-ends' own time-outs are shorter and end it.
    """

    def __init__(self, name: str, *, size: int, timeout_s: float) -> None:
        self._name, self._timeout_s = name, timeout_s
        self._pool = ThreadPoolExecutor(max_workers=size, thread_name_prefix=name)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What *call* returns or raises; the log context goes with it.

        Raises:
            BackendUnavailable: it took too long.
        """
        context = contextvars.copy_context()
        work = functools.partial(context.run, call, *args, **kwargs)
        try:
            return await asyncio.wait_for(
                asyncio.get_running_loop().run_in_executor(self._pool, work), self._timeout_s
            )
        except TimeoutError as exc:
            raise BackendUnavailable(
                f"{self._name} did not answer within {self._timeout_s:g} seconds"
            ) from exc

    def close(self) -> None:
        """Start nothing new; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Turns:
    """Lets the calls of one object happen one after the other, in whatever threads.

    A call whose client has gone, or whose time is up, goes on in its thread, and the next one, which
    closes the object, must not come in between.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def taking(self, call: Callable[P, T]) -> Callable[P, T]:
        """The same call, which waits for its turn."""

        def in_turn(*args: P.args, **kwargs: P.kwargs) -> T:
            with self._lock:
                return call(*args, **kwargs)

        return in_turn


async def stream(chunks: Iterator[bytes], threads: Threads) -> AsyncGenerator[bytes, None]:
    """Chunks of a blocking iterator; closed when the client goes away.

    The next one is read while the client takes the one before: two are held.
    """
    turns = Turns()

    def read() -> asyncio.Task[bytes]:
        return asyncio.create_task(threads.run(turns.taking(next), chunks, b""))

    following = read()
    try:
        while (chunk := await following) != b"":
            following = read()
            yield chunk
    finally:
        await asyncio.gather(following, return_exceptions=True)  # nobody wants it any more
        close = getattr(chunks, "close", None)
        if close is not None:
            await threads.run(turns.taking(close))
