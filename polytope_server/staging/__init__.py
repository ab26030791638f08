"""Where results and uploaded data lie between a worker and a client."""

import base64
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

CHUNK_BYTES = 1 << 20
"""What one step of a transfer holds, here and in the back-ends."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


def checked_name(name: str) -> str:
    """The same name, if it can be an object's; there is no way out of a directory in one.

    Raises:
        ValueError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name[:210]!r} cannot be the name of an object: at most 200 characters, of A-Z a-z 0-9 "
            ". _ - and no dot first"
        )
    return name


def repr_digest(sha256: str) -> str:
    """The header ``Repr-Digest`` (RFC 9530) of an object with this digest, given in hexadecimal."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object as staging sees it. `modified_at` is Unix seconds by the storage's clock."""

    name: str
    size_bytes: int
    modified_at: float


class Upload(Protocol):
    """An object that is being written and that nobody sees yet.

    The calls on it, entering and leaving among them, come one after the other, but from any threads.
    """

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take these bytes, or block until they can be taken; the buffer is free again on return.

        Raises:
            StorageFull: there is no room for them.
            BackendUnavailable: the upload is broken and must be started again.
        """

    def commit(self) -> None:
        """Make the object visible, whole, in place of any other of that name; durable on return.

        Raises:
            StorageFull: there is no room for the rest of it.
            BackendUnavailable: the upload is broken, over, or was removed as stale.
        """


class Staging(Protocol):
    """Named objects of any size. For what names there are, see `checked_name`.

    A name that cannot be raises ValueError, and every method may raise `BackendUnavailable`. Safe between
    threads, and between processes, each of which opens the storage for itself. Memory in use is bounded
    by a small number of `CHUNK_BYTES` per transfer. A call that waits for a server gives up in less than
    two minutes.
    """

    def ping(self) -> None:
        """Return if the storage answers."""

    def create(self, name: str, *, media_type: str) -> AbstractContextManager[Upload]:
        """Write an object. Leaving the context without `commit` leaves nothing behind.

        The media type is there for storages whose own links tell it to clients.

        Raises:
            StorageFull: there is no room.
        """

    def read(self, name: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of an object from *offset*, *length* of them or to its end, in chunks.

        No chunk is empty or larger than `CHUNK_BYTES`. The object is opened before this returns, so that
        a missing one is known at once, and what is read is the object as it was then, even if it is
        replaced or deleted meanwhile. To stop early, close the iterator if it has a ``close``, as generators
        do. Its calls come one after the other, but from any threads.

        Raises:
            ObjectNotFound
            BackendUnavailable: also in the middle, rather than ending before all bytes have come.
        """

    def stat(self, name: str) -> StoredObject:
        """Raises: ObjectNotFound."""

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""

    def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Sequence[StoredObject]:
        """Visible objects whose names begin with *prefix*, by name, from behind the name *after*.

        The first *limit* of them at most. An empty answer is the end; a short one need not be.
        """

    def remove_stale_uploads(self, *, age_s: float) -> int:
        """Remove what killed writers have left of uploads begun so long ago; returns how many.

        The collector calls it now and then. A writer that goes on all the same finds its upload broken.
        """

    def url(
        self, name: str, *, download_name: str, media_type: str, sha256: str, expires_s: int
    ) -> str | None:
        """A link that needs no credentials, or None: then the frontend serves the object itself.

        Args:
            sha256: of the object, in hexadecimal; goes out as `repr_digest` where the storage can do that.
        """

    def free_bytes(self) -> int | None:
        """Room left, or None where nobody can tell."""
