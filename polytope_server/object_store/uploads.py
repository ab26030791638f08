"""Objects that arrive in parts, each a request of its own, so that a broken connection costs one part."""

import contextlib
import fcntl
import os
import re
import secrets
import threading
from pathlib import Path
from types import TracebackType
from typing import Final

from polytope_server.errors import BackendUnavailable, Conflict, ObjectNotFound
from polytope_server.staging.local import LocalStaging, opened, our_errors, publish, write_all

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_ID: Final = re.compile(r"[0-9a-f]{32}")
_BOOT_CHARACTERS: Final = 8


class PartedUploads:
    """Uploads by id, in the directory of the local staging, where its `remove_stale_uploads` finds them.

    The store may be restarted between two parts. If its machine was, parts may be lost that were not on
    the disk: an id holds what tells one run of a machine from another, and is not known in the next.
    """

    def __init__(self, staging: LocalStaging) -> None:
        self._staging = staging
        with our_errors():
            self._boot = _BOOT.read_text().replace("-", "")[:_BOOT_CHARACTERS]

    def begin(self) -> str:
        """The id of a new upload."""
        upload = self._boot + secrets.token_hex(12)
        with our_errors():
            os.close(os.open(self._path(upload), os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode=0o600))
        return upload

    def part(self, upload: str, *, offset: int) -> "Part":
        """The bytes from *offset* on; those that were there already are replaced.

        Raises (when entered):
            ObjectNotFound: there is no such upload.
            Conflict: bytes before *offset* are missing.
            BackendUnavailable: another part of it is being written.
        """
        return Part(self._path(upload), offset)

    def commit(self, upload: str, name: str, *, size_bytes: int) -> None:
        """Make the upload an object.

        Raises:
            ObjectNotFound: there is no such upload.
            Conflict: it has another size.
            BackendUnavailable: a part of it is being written.
        """
        path, final = self._path(upload), self._staging.path(name)
        with our_errors(upload):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                _lock(descriptor)
                size = os.fstat(descriptor).st_size
                if size != size_bytes:
                    raise Conflict(f"{size} bytes have arrived, not {size_bytes}")
                publish(descriptor, path, final)
            finally:
                os.close(descriptor)

    def abort(self, upload: str) -> None:
        """Remove an upload; one that is not there is no error."""
        with our_errors(), contextlib.suppress(ObjectNotFound, FileNotFoundError):
            self._path(upload).unlink()

    def _path(self, upload: str) -> Path:
        if not _ID.fullmatch(upload) or not upload.startswith(self._boot):
            raise ObjectNotFound("There is no such upload.")
        return self._staging.uploads / upload


class Part:
    """A part that is being written. Leaving it without `commit` takes back what was written."""

    def __init__(self, path: Path, offset: int) -> None:
        self._path, self._offset = path, offset
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._kept = False

    def __enter__(self) -> "Part":
        with our_errors(self._path.name), contextlib.ExitStack() as on_error:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            on_error.callback(os.close, descriptor)
            _lock(descriptor)
            size = os.fstat(descriptor).st_size
            if size < self._offset:
                raise Conflict(f"{size} bytes have arrived, not {self._offset}")
            os.ftruncate(descriptor, self._offset)
            os.lseek(descriptor, self._offset, os.SEEK_SET)
            on_error.pop_all()
            self._descriptor = descriptor
        return self

    def write(self, data: bytes | bytearray | memoryview) -> None:
        with our_errors(), self._lock:
            write_all(opened(self._descriptor), data)

    def commit(self) -> None:
        """Keep it: it is whole."""
        self._kept = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with our_errors(), self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is None:
                return
            try:
                if not self._kept:
                    os.ftruncate(descriptor, self._offset)
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Until the descriptor is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise BackendUnavailable("another part of this upload is being written") from exc
