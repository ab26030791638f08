"""The one door from the event loop to blocking back-ends."""

import asyncio
import contextvars
import functools
from collections.abc import Callable
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
