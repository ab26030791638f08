"""The one thread of a process in which everything about RabbitMQ happens: an event loop."""

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, TypeVar

from polytope_server.errors import BackendUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

_END_S: Final = 5.0
_CLOSED: Final = "The queue has been closed."


class LoopThread:
    """Begun at first use, so that a process may fork before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @property
    def is_running(self) -> bool:
        return self._loop is not None

    def call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What the coroutine gives, which bounds its time itself. From any other thread.

        Raises:
            BackendUnavailable: it has been closed.
        """
        loop = self._running()
        if loop is None:
            raise BackendUnavailable(_CLOSED)
        coroutine = make()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        except RuntimeError as exc:
            coroutine.close()
            raise BackendUnavailable(_CLOSED) from exc
        try:
            return future.result()
        except concurrent.futures.CancelledError as exc:
            raise BackendUnavailable(_CLOSED) from exc

    def soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Have it called there, in the order in which this was asked for; at the end, maybe never.

        It logs nothing about the request that the current thread works on.
        """
        loop = self._running()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                loop.call_soon_threadsafe(callback, *args, context=Context())

    def close(self, farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """End it, with a last thing to do; waits no longer than that takes, and some seconds at most."""
        with self._lock:
            loop, self._loop, self._is_closed = self._loop, None, True
        if loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(_ending(farewell), loop)
        self._thread.join(timeout=_END_S)

    def _running(self) -> asyncio.AbstractEventLoop | None:
        if self._loop is None:
            with self._lock:
                if self._loop is None and not self._is_closed:
                    loop = _Loop()
                    self._thread = threading.Thread(
                        target=_run, args=(loop,), name="rabbitmq", daemon=True
                    )
                    self._thread.start()
                    self._loop = loop
        return self._loop


class _Loop(asyncio.SelectorEventLoop):
    """One that can still connect when the process ends, for a hint that was given just before."""

    async def getaddrinfo(self, host: Any, port: Any, **kwargs: Any) -> Any:
        try:
            return await super().getaddrinfo(host, port, **kwargs)
        except RuntimeError:  # by now nobody is given a thread
            return socket.getaddrinfo(host, port, **kwargs)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _ending(farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        async with asyncio.timeout(_END_S / 2):
            await farewell()
    except TimeoutError:
        logger.debug("RabbitMQ did not let us say goodbye")
    finally:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        asyncio.get_running_loop().stop()
