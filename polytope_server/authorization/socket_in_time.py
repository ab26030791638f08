"""A socket for questions whose answers are there in time as a whole, or not at all."""

import time
from typing import Any, Final

_LONGEST_ANSWER_BYTES: Final = 4 << 20
"""Enough for tens of thousands of groups of a user."""


class SocketInTime:
    """A socket on which a whole answer comes in time, and is not longer than any real one.

    The time-out of a socket alone is for each piece: a directory that sends a byte now and then would keep
    its caller for as long as it likes. Everything else is as the socket does it.
    """

    def __init__(self, socket: Any, timeout_s: float) -> None:
        self.socket, self._timeout_s = socket, timeout_s
        self.begin()

    def begin(self) -> None:
        """The next question."""
        self._end = time.monotonic() + self._timeout_s
        self._left_bytes = _LONGEST_ANSWER_BYTES
        self.socket.settimeout(self._timeout_s)

    def of(self, socket: Any) -> "SocketInTime":
        """The same for another socket."""
        return SocketInTime(socket, self._timeout_s)

    def recv(self, size: int) -> bytes:
        left_s = self._end - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self.socket.settimeout(left_s)
        data: bytes = self.socket.recv(size)
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise OSError("the answer is longer than any real one")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)
