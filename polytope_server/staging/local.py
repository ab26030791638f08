"""Objects as files of one directory, which the frontend serves and all processes share.

::

    root_dir/objects/ab/abc-1.grib    the object abc-1.grib, in the directory of its first two characters
    root_dir/uploads/5f3a...          what is being written, or was when its writer was killed
"""

import contextlib
import errno
import heapq
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Final

from polytope_server.config.staging import LocalStagingSection
from polytope_server.errors import (
    BackendUnavailable,
    ConfigurationError,
    ObjectNotFound,
    StorageFull,
)
from polytope_server.staging import CHUNK_BYTES, StoredObject, checked_name

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OPERATORS: Final = frozenset({errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EROFS})
_PRIVATE_DIRECTORY: Final = 0o700
_PRIVATE_FILE: Final = 0o600
_SHARD_CHARACTERS: Final = 2


class LocalStaging:
    """See `polytope_server.staging.Staging`. Holds one chunk per reader, and nothing per writer.

    Raises:
        ConfigurationError: the directory cannot be made or used.
        BackendUnavailable: its file system does not answer.
    """

    Config = LocalStagingSection

    def __init__(self, config: LocalStagingSection) -> None:
        self._root = root = config.root_dir.expanduser()
        self._objects = root / "objects"
        self.uploads = root / "uploads"
        try:
            for directory in (root, self._objects, self.uploads):
                directory.mkdir(mode=_PRIVATE_DIRECTORY, parents=True, exist_ok=True)
            for directory in (self._objects, self.uploads):
                directory.chmod(_PRIVATE_DIRECTORY)
        except OSError as exc:
            if exc.errno in _OPERATORS:
                raise ConfigurationError(
                    f"staging: root_dir: {root} cannot be used: {exc.strerror}; it must be a "
                    "directory that this process may write to"
                ) from exc
            raise BackendUnavailable(f"staging: {root}: {exc.strerror}") from exc

    def ping(self) -> None:
        with our_errors():
            for directory in (self._objects, self.uploads):
                if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
                    raise BackendUnavailable(f"staging: {directory} is gone or cannot be written")

    def create(self, name: str, *, media_type: str) -> "LocalUpload":  # noqa: ARG002
        """The media type is not kept: whoever serves the object knows it."""
        return LocalUpload(self.uploads / secrets.token_hex(16), self.path(name))

    def path(self, name: str) -> Path:
        """Where an object is, or would be.

        Raises:
            ValueError: that cannot be the name of an object.
        """
        return object_path(self._root, name)

    def read(self, name: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self.open(name).part(offset, length)

    def open(self, name: str) -> "LocalReader":
        """The same as `read`, before it is said which part.

        Raises:
            ObjectNotFound
        """
        with self._errors(name):
            return LocalReader(self.path(name).open("rb", buffering=0), name)

    def stat(self, name: str) -> StoredObject:
        with self._errors(name):
            return _stored(name, self.path(name).stat())

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """A missing file is a missing object, unless everything is missing: then it may come back."""
        try:
            with our_errors(name):
                yield
        except ObjectNotFound:
            self.ping()
            raise

    def delete(self, name: str) -> None:
        with our_errors(), contextlib.suppress(FileNotFoundError):
            self.path(name).unlink()

    def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Sequence[StoredObject]:
        found: list[StoredObject] = []
        with our_errors():
            while len(found) < limit:
                names = self._names(prefix, after, limit - len(found))
                if not names:
                    break
                after = names[-1]
                for name in names:
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        found.append(_stored(name, self.path(name).stat()))
        return found

    def _names(self, prefix: str, after: str, limit: int) -> Sequence[str]:
        """The first *limit* names behind *after*; reads only the directories that they are in."""
        shards = sorted(
            shard
            for shard in os.listdir(self._objects)
            if shard.startswith(prefix[:_SHARD_CHARACTERS]) and shard >= after[:_SHARD_CHARACTERS]
        )
        names: list[str] = []
        for shard in shards:
            # a file that somebody else has put here is none of ours
            with (
                contextlib.suppress(NotADirectoryError),
                os.scandir(self._objects / shard) as entries,
            ):
                names += heapq.nsmallest(
                    limit - len(names),
                    (
                        entry.name
                        for entry in entries
                        if entry.name.startswith(prefix)
                        and entry.name > after
                        and _is_ours(entry, shard)
                    ),
                )
            if len(names) == limit:
                break
        return names

    def remove_stale_uploads(self, *, age_s: float) -> int:
        """Removes those without a byte written for so long; their writers, if alive, hear of it."""
        removed, newest = 0, time.time() - age_s
        with our_errors(), os.scandir(self.uploads) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # finished meanwhile
                    if entry.stat(follow_symlinks=False).st_mtime <= newest:
                        os.unlink(entry)
                        removed += 1
        return removed

    def url(
        self, name: str, *, download_name: str, media_type: str, sha256: str, expires_s: int
    ) -> None:
        """None, always: the frontend serves what is here."""

    def device(self) -> int:
        """The file system that the objects are on; within it they can be linked, as they never change."""
        with our_errors():
            return self._objects.stat().st_dev

    def free_bytes(self) -> int:
        with our_errors():
            room = os.statvfs(self._objects)
        return room.f_bavail * room.f_frsize


def object_path(root: Path, name: str) -> Path:
    """Where an object is, or would be, below a root.

    Raises:
        ValueError: that cannot be the name of an object.
    """
    return root / "objects" / checked_name(name)[:_SHARD_CHARACTERS] / name


class LocalUpload:
    """A file that becomes an object when it is whole. Enter it to begin; leaving it removes the file.

    May be left while another thread still writes: that write is waited for, and any other refused.

    Args:
        partial: the file; on the same file system as the object.
        final: where the object will be.
    """

    def __init__(self, partial: Path, final: Path) -> None:
        self._partial, self._final = partial, final
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def __enter__(self) -> "LocalUpload":
        with our_errors():
            self._descriptor = os.open(
                self._partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _PRIVATE_FILE
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None
        # after a commit it is not there any more
        with contextlib.suppress(OSError):
            self._partial.unlink()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        with our_errors(), self._lock:
            write_all(opened(self._descriptor), data)

    def commit(self) -> None:
        with our_errors(), self._lock:
            publish(opened(self._descriptor), self._partial, self._final)


class LocalReader:
    """The bytes of an object as it was when this was made, in chunks. May be closed at any time."""

    def __init__(self, file: FileIO, name: str) -> None:
        self._file, self._name = file, name
        self._lock = threading.Lock()
        self.status = os.fstat(file.fileno())
        self._rest = self.status.st_size

    def part(self, offset: int, length: int | None) -> "LocalReader":
        """The same, of *length* bytes from *offset* on, or to the end."""
        self._file.seek(offset)
        after = max(0, self.status.st_size - offset)
        self._rest = after if length is None else min(length, after)
        return self

    def __iter__(self) -> "LocalReader":
        return self

    def __next__(self) -> bytes:
        with our_errors(), self._lock:
            if self._rest == 0 or self._file.closed:
                raise StopIteration
            chunk = self._file.read(min(CHUNK_BYTES, self._rest))
            if not chunk:
                raise BackendUnavailable(f"staging: {self._name} has been cut off")
            self._rest -= len(chunk)
            return chunk

    def close(self) -> None:
        """Stop early; waits for a read that is going on."""
        with self._lock:
            self._file.close()

    def __del__(self) -> None:
        self._file.close()


def opened(descriptor: int | None) -> int:
    """The descriptor of an upload that is still open.

    Raises:
        BackendUnavailable: it is not.
    """
    if descriptor is None:
        raise BackendUnavailable("staging: this upload is over")
    return descriptor


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of *data*, in as many calls as it takes."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def publish(descriptor: int, partial: Path, final: Path) -> None:
    """Make a whole file an object, at once and for good, even if the power fails right after."""
    os.fsync(descriptor)
    shard = final.parent
    try:
        shard.mkdir(mode=_PRIVATE_DIRECTORY)
    except FileExistsError:
        pass
    else:
        _sync_directory(shard.parent)
    partial.rename(final)
    _sync_directory(shard)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_ours(entry: os.DirEntry[str], shard: str) -> bool:
    try:
        checked_name(entry.name)
    except ValueError:
        return False
    return entry.name.startswith(shard) and entry.is_file(follow_symlinks=False)


def _stored(name: str, status: os.stat_result) -> StoredObject:
    return StoredObject(name=name, size_bytes=status.st_size, modified_at=status.st_mtime)


@contextlib.contextmanager
def our_errors(name: str | None = None) -> Iterator[None]:
    """What the operating system says, in our words; with a *name*, a missing file is a missing object."""
    try:
        yield
    except FileNotFoundError as exc:
        if name is not None:
            raise ObjectNotFound(f"There is no object {name} in staging.") from exc
        raise BackendUnavailable(f"staging: {exc.strerror}") from exc
    except OSError as exc:
        if exc.errno in _NO_ROOM:
            raise StorageFull(f"staging: {exc.strerror}") from exc
        raise BackendUnavailable(f"staging: {exc.strerror}") from exc
