"""The bytes of an object of a bucket."""

import threading
from collections.abc import Mapping
from typing import Any, Final

from botocore.exceptions import BotoCoreError
from urllib3.exceptions import HTTPError

from polytope_server.errors import BackendUnavailable, ObjectNotFound
from polytope_server.staging import CHUNK_BYTES
from polytope_server.staging.patience import Away, patiently
from polytope_server.staging.s3.calls import Calls, Refusal

_BROKEN: Final = (BotoCoreError, HTTPError, OSError)


class S3Reader:
    """The bytes of an object as it was when this was made, in chunks. May be closed at any time.

    One that loses its connection goes on where it was, if the object is still the same.

    Args:
        length: how many there are at most.

    Raises:
        ObjectNotFound
        Refusal: ``InvalidRange`` if the object ends before *offset*.
        BackendUnavailable
    """

    def __init__(self, calls: Calls, key: str, *, offset: int, length: int | None) -> None:
        self._calls, self._key = calls, key
        self._lock = threading.Lock()
        self._at = offset
        wanted: dict[str, Any] = {}
        if offset or length is not None:
            wanted["Range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
        answer = calls("get_object", Key=key, **wanted)
        self._etag = str(answer["ETag"])
        self._body = answer["Body"]
        self._end = offset + int(answer["ContentLength"])
        if wanted:
            self._must_be_part(answer)

    def __iter__(self) -> "S3Reader":
        return self

    def __next__(self) -> bytes:
        with self._lock:
            left = self._end - self._at
            if left <= 0 or self._body is None:
                raise StopIteration
            size = min(CHUNK_BYTES, left)
            chunk = self._read(size) or patiently(
                lambda: self._again(size), patience_s=self._calls.long_patience_s
            )
            self._at += len(chunk)
            return chunk

    def close(self) -> None:
        """Stop early; waits for a read that is going on, which has a time-out."""
        with self._lock:
            if self._body is not None:
                self._body.close()
                self._body = None

    def _read(self, size: int) -> bytes:
        """What comes next, or nothing if the connection has broken."""
        try:
            return bytes(self._body.read(size))
        except _BROKEN:
            return b""

    def _again(self, size: int) -> bytes:
        """The same, from a new connection."""
        self._body.close()
        try:
            answer = self._calls(
                "get_object",
                Key=self._key,
                Range=f"bytes={self._at}-{self._end - 1}",
                IfMatch=self._etag,
                patience_s=0.0,
            )
        except ObjectNotFound as exc:
            raise self._changed("removed") from exc
        except Refusal as exc:
            if exc.code in ("PreconditionFailed", "InvalidRange", "412"):
                raise self._changed("replaced") from exc
            raise
        self._body = answer["Body"]
        self._must_be_part(answer)
        chunk = self._read(size)
        if not chunk:
            raise Away(f"staging: the connection broke while {self._key} was read")
        return chunk

    def _must_be_part(self, answer: Mapping[str, Any]) -> None:
        """Raise if what comes is not what was asked for: some servers send all of it instead."""
        if not str(answer.get("ContentRange", "")).startswith(f"bytes {self._at}-"):
            self._body.close()
            raise BackendUnavailable("staging: the S3 server does not send parts of objects")

    def _changed(self, how: str) -> BackendUnavailable:
        return BackendUnavailable(
            f"staging: the connection broke while {self._key} was read, which was {how} meanwhile"
        )
