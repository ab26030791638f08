"""The file of records of use: only ever appended to, by one process at a time, whole lines."""

import contextlib
import errno
import fcntl
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from polytope_server.errors import BackendUnavailable, ConfigurationError, StorageFull
from polytope_server.request_store import Usage
from polytope_server.usage.lines import LineKey, as_json, key_of, line, parsed

REMEMBERED: Final = 2000
"""So many of the last records of the file are not written again."""

_TAIL_BYTES: Final = 1 << 20
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OPERATORS: Final = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


class UsageFile:
    """Appends records. Whoever rotates, truncates or removes the file meanwhile does no harm.

    Holds a descriptor, and the keys of the last records. For one thread.

    Args:
        path: made, closed to others, if it is not there.

    Raises:
        ConfigurationError: it cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._size = -1
        self._recent: OrderedDict[LineKey, None] = OrderedDict()
        try:
            self._opened()
        except OSError as exc:
            if exc.errno in _OPERATORS:
                raise ConfigurationError(
                    f"usage.path: {path} cannot be used: {exc.strerror}; it must be a file that this "
                    "process may append to"
                ) from exc
            # a disk that is full or away may come back

    def append(self, records: Sequence[Usage]) -> int:
        """Write those that are not among the last ones already; durable on return. How many were written.

        A line that was cut off by a crash is removed first. Nothing of a failed call is left.

        Raises:
            StorageFull: there is no room for them.
            BackendUnavailable: the file cannot be written at present.
        """
        with _our_errors(), self._locked() as descriptor:
            size = os.fstat(descriptor).st_size
            if size != self._size:  # new to us, or not left as it was
                size = self._look(descriptor, size)
            fresh = {key_of(as_json(usage)): line(usage) for usage in records}
            for key in self._recent.keys() & fresh.keys():
                del fresh[key]
            if fresh:
                self._size = -1  # until it is as we want it
                self._write(descriptor, size, b"".join(fresh.values()))
                self._size = os.fstat(descriptor).st_size
            self._remember(fresh)
        return len(fresh)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The file that the path leads to, and no other process appends to it."""
        while True:
            descriptor = self._opened()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise BackendUnavailable("usage file: another process has locked it") from exc
            try:
                if self._is_current(descriptor):
                    yield descriptor
                    return
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _opened(self) -> int:
        """The descriptor, of another file if the one it was of has been moved away."""
        if self._descriptor is not None and not self._is_current(self._descriptor):
            self.close()
        if self._descriptor is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(
                self._path,
                os.O_CREAT | os.O_APPEND | os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY,
                0o600,
            )
            self._size = -1
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                self.close()
                raise ConfigurationError(f"usage.path: {self._path} must be a plain file")
            _sync_directory(self._path.parent)
        return self._descriptor

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _look(self, descriptor: int, size: int) -> int:
        """Read the end of the file, and cut off a line that is not whole; the size after that."""
        begin = max(0, size - _TAIL_BYTES)
        tail = os.pread(descriptor, size - begin, begin)
        lines = tail.split(b"\n")
        torn = lines.pop()
        if parsed(torn) is not None:  # only its end is missing
            self._write(descriptor, size, b"\n")
            lines.append(torn)
            size += 1
        elif torn:
            if not torn.startswith((b'{"id":', b"\0")) and not b'{"id":'.startswith(torn):
                raise BackendUnavailable(
                    f"usage: {self._path} ends in the middle of a line that is no record of use; "
                    "it is left alone"
                )
            size -= len(torn)
            os.ftruncate(descriptor, size)
        self._recent.clear()
        self._remember(key_of(record) for text in lines if (record := parsed(text)) is not None)
        return size

    def _write(self, descriptor: int, size: int, data: bytes) -> None:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):  # else the next look does it
                os.ftruncate(descriptor, size)
            raise

    def _remember(self, keys: Iterator[LineKey] | dict[LineKey, bytes]) -> None:
        for key in keys:
            self._recent[key] = None
        while len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except ConfigurationError as exc:  # it was a file when we started
        raise BackendUnavailable(str(exc)) from exc
    except OSError as exc:
        if exc.errno in _NO_ROOM:
            raise StorageFull(f"usage file: {exc.strerror}") from exc
        raise BackendUnavailable(f"usage file: {exc.strerror}") from exc
