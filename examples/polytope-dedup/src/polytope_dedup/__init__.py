"""Staging in a directory where equal results take room once, however many users ask for them.

::

    root_dir/objects/abc-1.grib   the object abc-1.grib: the bytes, and then their SHA-256
    root_dir/contents/9f86...     the same file, under its SHA-256 (a hard link)
    root_dir/uploads/5f3a...      what is being written, or was when its writer was killed
"""

import contextlib
import errno
import hashlib
import heapq
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Final

from polytope_server.config.section import Section
from polytope_server.errors import (
    BackendUnavailable,
    ConfigurationError,
    ObjectNotFound,
    StorageFull,
)
from polytope_server.staging import CHUNK_BYTES, StoredObject, checked_name

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DIGEST_BYTES: Final = hashlib.sha256().digest_size


class DedupSection(Section):
    """``staging.dedup``"""

    root_dir: Path
    """Where the objects lie: one file system that has hard links, the same for all processes."""


class DedupStaging:
    """See `polytope_server.staging.Staging`. Holds one chunk for each reader, and nothing for a writer.

    There is no lock: an object holds its bytes by itself, and losing a name in `contents` to somebody
    who removes it at the same moment only means that the next equal result takes room of its own. Equal
    objects have one `modified_at`, that of the latest.
    """

    Config = DedupSection

    def __init__(self, config: DedupSection) -> None:
        root = config.root_dir.expanduser()
        self.objects, self.contents, self.uploads = (
            root / name for name in ("objects", "contents", "uploads")
        )
        try:
            for directory in (root, self.objects, self.contents, self.uploads):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigurationError(f"staging.dedup.root_dir: {root}: {exc.strerror}") from exc

    def ping(self) -> None:
        for directory in (self.objects, self.contents, self.uploads):
            if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
                raise BackendUnavailable(f"staging: {directory} is gone or cannot be written")

    def create(self, name: str, *, media_type: str) -> "DedupUpload":  # noqa: ARG002
        """The media type is not kept: the frontend, which serves the objects, knows it."""
        return DedupUpload(self, checked_name(name))

    def read(self, name: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        with _our_errors(name):
            file = self._path(name).open("rb", buffering=0)
            rest = max(0, _size_bytes(os.fstat(file.fileno())) - offset)
            file.seek(offset)
        return _chunks(file, rest if length is None else min(length, rest))

    def stat(self, name: str) -> StoredObject:
        with _our_errors(name):
            return _stored(name, self._path(name).stat())

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _our_errors(), contextlib.suppress(FileNotFoundError):
            with path.open("rb") as file:
                file.seek(-_DIGEST_BYTES, os.SEEK_END)
                content = file.read().hex()
            path.unlink()
            self._drop(content)

    def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Sequence[StoredObject]:
        """Looks at all names for every page, and keeps those of the page."""
        found: list[StoredObject] = []
        with _our_errors():
            while len(found) < limit:
                with os.scandir(self.objects) as entries:
                    names = (
                        e.name for e in entries if e.name.startswith(prefix) and e.name > after
                    )
                    page = heapq.nsmallest(limit - len(found), names)
                if not page:
                    break
                after = page[-1]
                for name in page:
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        found.append(_stored(name, (self.objects / name).stat()))
        return found

    def remove_stale_uploads(self, *, age_s: float) -> int:
        """Those without a byte written for so long; and contents that no object has any more."""
        removed, newest = 0, time.time() - age_s
        with _our_errors():
            for partial in os.listdir(self.uploads):
                with contextlib.suppress(FileNotFoundError):  # finished meanwhile
                    if (self.uploads / partial).stat().st_mtime <= newest:
                        (self.uploads / partial).unlink()
                        removed += 1
            with os.scandir(self.contents) as contents:
                for content in contents:
                    self._drop(content.name)
        return removed

    def url(
        self, name: str, *, download_name: str, media_type: str, sha256: str, expires_s: int
    ) -> None:
        """None, always: the frontend serves what is here."""

    def free_bytes(self) -> int:
        with _our_errors():
            room = os.statvfs(self.objects)
        return room.f_bavail * room.f_frsize

    def _path(self, name: str) -> Path:
        return self.objects / checked_name(name)

    def _drop(self, content: str) -> None:
        """Remove a content if it is nobody's."""
        with contextlib.suppress(FileNotFoundError):
            if (self.contents / content).stat().st_nlink == 1:
                (self.contents / content).unlink()


class DedupUpload:
    """A file that becomes an object when it is whole, or makes way for one that is there already."""

    def __init__(self, staging: DedupStaging, name: str) -> None:
        self._staging, self._final = staging, staging.objects / name
        self._partial = staging.uploads / secrets.token_hex(16)
        self._digest = hashlib.sha256()
        self._file: FileIO | None = None

    def __enter__(self) -> "DedupUpload":
        with _our_errors():
            self._file = self._partial.open("xb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened().close()
        self._file = None
        with contextlib.suppress(OSError):  # after a commit it is not there; else it will be stale
            self._partial.unlink()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._write(data)
        self._digest.update(data)

    def commit(self) -> None:
        digest = self._digest.digest()
        self._write(digest)
        with _our_errors():
            os.fsync(self._opened())
            content = self._staging.contents / digest.hex()
            try:
                os.link(self._partial, content)
            except FileExistsError:
                self._become(content)
            self._partial.replace(self._final)
            _sync_directory(self._final.parent)

    def _become(self, content: Path) -> None:
        """Let an equal file take our place, unless it has just gone or cannot have any more names."""
        twin = self._partial.with_suffix(".twin")
        with contextlib.suppress(OSError):
            os.link(content, twin)
            os.utime(twin)  # it is old, but neither stale nor long without an owner
            twin.replace(self._partial)

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        file, rest = self._opened(), memoryview(data).cast("B")
        with _our_errors():
            while rest:
                rest = rest[file.write(rest) :]

    def _opened(self) -> FileIO:
        if self._file is None:
            raise BackendUnavailable("staging: this upload is over")
        return self._file


def _chunks(file: FileIO, rest: int) -> Iterator[bytes]:
    with file, _our_errors():
        while rest:
            chunk = file.read(min(CHUNK_BYTES, rest))
            if not chunk:
                raise BackendUnavailable("staging: an object has been cut off")
            rest -= len(chunk)
            yield chunk


def _stored(name: str, status: os.stat_result) -> StoredObject:
    return StoredObject(name=name, size_bytes=_size_bytes(status), modified_at=status.st_mtime)


def _size_bytes(status: os.stat_result) -> int:
    return status.st_size - _DIGEST_BYTES


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _our_errors(name: str | None = None) -> Iterator[None]:
    """What the operating system says, in our words; with a *name*, a missing file is a missing object."""
    try:
        yield
    except OSError as exc:
        if name is not None and isinstance(exc, FileNotFoundError):
            raise ObjectNotFound(f"There is no object {name} in staging.") from exc
        kind = StorageFull if exc.errno in _NO_ROOM else BackendUnavailable
        raise kind(f"staging: {exc.strerror}") from exc
