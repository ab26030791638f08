"""What is opened at first use, and again, with back-off and jitter, whenever it has been closed."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, Final, Generic, Protocol, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from polytope_server.errors import BackendUnavailable

logger = logging.getLogger(__name__)

_FIRST_S: Final = 0.1
_LONGEST_S: Final = 5.0
_SHORT_LIFE_S: Final = 1.0
"""What is closed sooner may be so for what we do with it: it is opened again less and less soon."""
_TOLD_S: Final = 60.0
"""After it, the same loss is told again."""


class Closable(Protocol):
    """A connection or a channel."""

    @property
    def closed(self) -> "asyncio.Future[BackendUnavailable]":
        """Done, with the reason, when it has been closed."""


T = TypeVar("T", bound=Closable)


class Kept(Generic[T]):
    """One of them, which lives in the running loop.

    Args:
        what: it is, for the log.
        open_: makes one. May wait for ever; it is not asked for meanwhile.
        below: what this is part of, and asked first by those who want this.
    """

    def __init__(
        self,
        what: str,
        open_: Callable[[], Awaitable[T]],
        *,
        below: "Kept[Any] | None" = None,
    ) -> None:
        self._what, self._open, self._below = what, open_, below
        self._task: asyncio.Task[None] | None = None
        self._current: T | None = None
        self._cause: BackendUnavailable | None = None
        self._moved = asyncio.Event()

    @property
    def current(self) -> T | None:
        """What is open now, if anything is."""
        current = self._current
        return None if current is None or current.closed.done() else current

    @property
    def is_wanted(self) -> bool:
        """Whether anybody has asked for it yet."""
        return self._task is not None

    def begin(self) -> None:
        """Have it opened, and kept so from now on."""
        if self._task is None:
            # It outlives the request for which it happens to be begun, and logs nothing about that.
            self._task = asyncio.create_task(self._keep(), context=Context())

    async def get(self) -> T:
        """What is open; an attempt that is being made is waited for.

        Raises:
            BackendUnavailable: the latest attempt has failed, and why.
        """
        self.begin()
        if (current := self.current) is not None:
            return current
        if self._below is not None:
            await self._below.get()
        return await self._next(raising=True)

    async def wait(self) -> T:
        """What is open, however long that takes."""
        self.begin()
        return await self._next(raising=False)

    async def _next(self, *, raising: bool) -> T:
        while (current := self.current) is None:
            if raising and self._cause is not None:
                raise BackendUnavailable(str(self._cause)) from self._cause
            await self._moved.wait()
        return current

    async def _keep(self) -> None:
        told: str | None = None

        def say(state: RetryCallState) -> None:
            nonlocal told
            error = state.outcome.exception() if state.outcome is not None else None
            if not isinstance(error, BackendUnavailable):
                # A mistake of ours, or of the driver: without this task nothing would ever connect again.
                logger.error("opening the %s broke", self._what, exc_info=error)
                error = BackendUnavailable(f"The {self._what} cannot be opened; see the log.")
            self._move(None, error)
            if str(error) != told:  # else every attempt of a long night
                told = str(error)
                logger.error("no %s; trying again", self._what, extra={"cause": told})

        pause_s = _FIRST_S
        last_loss, loss_told = "", 0.0
        while True:
            current: T = await AsyncRetrying(
                retry=retry_if_exception_type(Exception),
                wait=wait_random_exponential(multiplier=_FIRST_S, max=_LONGEST_S),
                before_sleep=say,
            )(self._open)
            self._move(current, None)
            if told is not None:
                told = None
                logger.info("there is a %s again", self._what)
            opened = time.monotonic()
            await asyncio.wait([current.closed])  # which leaves it alone when we are cancelled
            reason = str(current.closed.result())
            closed = time.monotonic()
            self._move(None, None)
            if self._below is not None and self._below.current is None:
                logger.debug("the %s was lost with its connection", self._what)
            elif reason != last_loss or closed - loss_told > _TOLD_S:
                last_loss, loss_told = reason, closed
                logger.warning("the %s was lost", self._what, extra={"cause": reason})
            pause_s = min(_LONGEST_S, 2 * pause_s) if closed - opened < _SHORT_LIFE_S else _FIRST_S
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - no secret

    def _move(self, current: T | None, cause: BackendUnavailable | None) -> None:
        self._current, self._cause = current, cause
        self._moved.set()
        self._moved = asyncio.Event()
