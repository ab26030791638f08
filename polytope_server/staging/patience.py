"""Trying a call of a storage server again while it is away for a moment."""

import threading
from collections.abc import Callable
from typing import Final, TypeVar

from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
    wait_random_exponential,
)

from polytope_server.errors import BackendUnavailable

T = TypeVar("T")

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 1.0


class Away(BackendUnavailable):
    """The server did not answer, or asked for patience: worth another attempt at once."""


def patiently(
    attempt: Callable[[], T], *, patience_s: float, cancelled: threading.Event | None = None
) -> T:
    """What *attempt* returns, again while it raises `Away`, with back-off and jitter.

    Args:
        patience_s: no attempt begins later.
        cancelled: once this is set, none begins any more.
    """
    event = cancelled or threading.Event()
    return Retrying(
        retry=retry_if_exception_type(Away),
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
        stop=stop_any(stop_after_delay(patience_s), stop_when_event_set(event)),
        sleep=sleep_using_event(event),
        reraise=True,
    )(attempt)
