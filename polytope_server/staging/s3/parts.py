"""Parts of uploads on their way, bounded for the whole process."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from polytope_server.errors import BackendUnavailable

T = TypeVar("T")

LARGEST_OBJECT: Final = 5 << 40
MOST_PARTS: Final = 10_000
_SAME: Final = 1000
"""So many parts have the size that is configured; only then do they grow."""
_STEP: Final = 100
"""So many parts have the same size afterwards."""
_ALIGNED: Final = 1 << 16
_PIECE: Final = 1 << 18


def part_bytes(number: int, *, first_bytes: int) -> int:
    """Size of the part of that number, from 1: they grow so that the largest object fits into all of them."""
    steps = (MOST_PARTS - _SAME) // _STEP
    missing = max(0, LARGEST_OBJECT - MOST_PARTS * first_bytes)
    growth = -(-missing // (_STEP * steps * (steps + 1) // 2))
    growth = -(-growth // _ALIGNED) * _ALIGNED
    return first_bytes + growth * max(0, (number - 1 - _SAME) // _STEP + 1)


class Body:
    """The first bytes of a buffer, as a file that can be sent more than once, without copying them.

    It is sent in pieces, for the time-out of a socket is for all that it is given at once, and fails in the
    middle once *cancelled* is set.
    """

    def __init__(self, buffer: bytearray, size: int, cancelled: threading.Event) -> None:
        self._bytes = memoryview(buffer)[:size]
        self._cancelled = cancelled
        self._at = 0

    def __len__(self) -> int:
        return len(self._bytes)

    def read(self, size: int) -> memoryview:
        """Also more than *size* bytes: who sends them does not mind, and it takes fewer turns."""
        if self._cancelled.is_set():
            raise BackendUnavailable("staging: the upload has ended")
        start = self._at
        self._at = min(len(self._bytes), start + max(size, _PIECE))
        return self._bytes[start : self._at]

    def seek(self, offset: int) -> int:
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at


class Parts:
    """Sends parts in threads, and holds their buffers: `first_bytes` times `threads` and one per upload.

    A part that is larger is sent when it is alone.
    """

    def __init__(self, *, threads: int, first_bytes: int) -> None:
        self._first_bytes = first_bytes
        self._limit_bytes = threads * first_bytes
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="s3-part")
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._sent_bytes = 0
        self._idle: list[bytearray] = []
        self._uploads = 0

    def open(self) -> None:
        """An upload begins."""
        with self._changed:
            self._uploads += 1

    def close(self) -> None:
        """It has ended; after the last one, no memory is kept."""
        with self._changed:
            self._uploads -= 1
            if not self._uploads:
                self._idle.clear()

    def buffer(self, size: int) -> bytearray:
        """One of that size, whatever is in it."""
        with self._changed:
            if size == self._first_bytes and self._idle:
                return self._idle.pop()
        return bytearray(size)

    def send(self, buffer: bytearray, work: Callable[[], T], *, patience_s: float) -> "Future[T]":
        """Do *work*, which sends *buffer*, in a thread, as soon as there is room on the way.

        Raises:
            BackendUnavailable: there was none for so long.
        """
        size, end = len(buffer), time.monotonic() + patience_s
        # one waits for room at a time: else a large part would never find it among smaller ones
        if not self._turn.acquire(timeout=patience_s):
            raise _too_slow(patience_s)
        try:
            with self._changed:
                if not self._changed.wait_for(
                    lambda: not self._sent_bytes or self._sent_bytes + size <= self._limit_bytes,
                    timeout=end - time.monotonic(),
                ):
                    raise _too_slow(patience_s)
                self._sent_bytes += size
        finally:
            self._turn.release()

        def done(_: "Future[T]") -> None:
            with self._changed:
                self._sent_bytes -= size
                if size == self._first_bytes and self._uploads:
                    self._idle.append(buffer)
                self._changed.notify_all()

        future = self._executor.submit(work)
        future.add_done_callback(done)
        return future


def _too_slow(patience_s: float) -> BackendUnavailable:
    return BackendUnavailable(
        f"staging: the S3 server has taken nothing for {patience_s:g} seconds"
    )
