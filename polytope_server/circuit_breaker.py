"""A server that has just failed is left alone for a while, so that its callers do not wait for it."""

import logging
import time
from collections.abc import Callable
from threading import Lock

logger = logging.getLogger(__name__)


class CircuitBreaker:
    """Says whether to ask a server. Safe between threads.

    Logs once when the server goes away and once when it is back, whatever the number of calls.

    Args:
        what: the server, for the log.
        pause_s: how long nobody asks after a failure. Then one caller may, and only an answer lets
            the others in again; if that one never reports back, another may after the same time.
    """

    def __init__(
        self, what: str, *, pause_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._pause_s = pause_s
        self._clock = clock
        self._lock = Lock()
        self._next_try: float | None = None
        self._cause = ""

    @property
    def cause(self) -> str:
        """Why it was away when that was last seen."""
        return self._cause

    def lets_through(self) -> bool:
        """Whether the caller may ask, and then tells `succeeded` or `failed`."""
        if self._next_try is None:
            return True
        with self._lock:
            now = self._clock()
            if self._next_try is not None:
                if now < self._next_try:
                    return False
                self._next_try = now + self._pause_s
            return True

    def succeeded(self) -> None:
        """It has answered."""
        if self._next_try is None:
            return
        with self._lock:
            was_away, self._next_try = self._next_try is not None, None
        if was_away:
            logger.info("A server is there again", extra={"server": self._what})

    def failed(self, error: Exception, *, pause_s: float | None = None) -> None:
        """It has not answered.

        Args:
            pause_s: how long nobody asks this time.
        """
        with self._lock:
            was_there = self._next_try is None
            self._next_try = self._clock() + (self._pause_s if pause_s is None else pause_s)
            self._cause = str(error)
        if was_there:
            logger.warning(
                "A server is away; it is asked again from time to time",
                extra={"server": self._what, "cause": self._cause},
            )
