"""An object on its way into a bucket: in one call if it is small, in parts if not."""

import contextlib
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any, Final

from polytope_server.errors import BackendUnavailable, ObjectNotFound, StorageFull
from polytope_server.staging.s3.calls import CONNECT_S, Calls, Refusal
from polytope_server.staging.s3.parts import MOST_PARTS, Body, Parts, part_bytes

_CALL_S: Final = 110.0
"""What one of our methods may take, whatever it asks for."""
_MARK: Final = "polytope-upload"
_NO_UPLOAD: Final = "NoSuchUpload"


class S3Upload:
    """See `polytope_server.staging.Upload`. Holds the part that is being filled; `Parts` holds the others.

    Args:
        headers: what is kept with the object, as boto3 spells it.
        first_bytes: size of the first parts, and of what is sent in one call.
    """

    def __init__(
        self, calls: Calls, parts: Parts, key: str, *, headers: Mapping[str, Any], first_bytes: int
    ) -> None:
        self._calls, self._parts, self._key = calls, parts, key
        self._first_bytes = first_bytes
        self._mark = uuid.uuid4().hex
        self._headers = {**headers, "Metadata": {_MARK: self._mark}}
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._is_open = False
        self._upload = ""
        self._buffer: bytearray | None = None
        self._filled = 0
        self._number = 0
        self._sending: dict[int, Future[str]] = {}
        self._etags: dict[int, str] = {}

    def __enter__(self) -> "S3Upload":
        self._parts.open()
        self._is_open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cancelled.set()  # also what another thread waits for
        with self._lock:
            was_open, self._is_open = self._is_open, False
            self._buffer = None
            try:
                if was_open and self._upload:
                    self._abort()
            finally:
                self._parts.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        end = time.monotonic() + _CALL_S
        with self._lock:
            rest = memoryview(data).cast("B")
            while rest:
                self._must_be_open()
                buffer = self._room()
                size = min(len(rest), len(buffer) - self._filled)
                buffer[self._filled : self._filled + size] = rest[:size]
                self._filled += size
                rest = rest[size:]
                if self._filled == len(buffer):
                    self._send(end)

    def commit(self) -> None:
        end = time.monotonic() + _CALL_S - 2 * (self._calls.timeout_s + CONNECT_S)
        with self._lock:
            self._must_be_open()
            if not self._upload:
                self._put()
            else:
                if self._filled:
                    self._send(end)
                self._gather(self._sending, end)
                self._complete(max(0.0, min(self._calls.long_patience_s, end - time.monotonic())))
            self._is_open = False
            self._buffer = None

    # --- one call

    def _put(self) -> None:
        self._calls(
            "put_object",
            Key=self._key,
            Body=Body(self._buffer or bytearray(), self._filled, self._cancelled),
            patience_s=self._calls.long_patience_s,
            cancelled=self._cancelled,
            **self._headers,
        )

    # --- in parts

    def _room(self) -> bytearray:
        """The part that is being filled."""
        if self._buffer is None:
            number = self._number + 1
            if number > MOST_PARTS:
                raise StorageFull(f"staging: {self._key} is larger than objects of S3 can be")
            self._buffer = self._parts.buffer(part_bytes(number, first_bytes=self._first_bytes))
            self._filled = 0
        return self._buffer

    def _send(self, end: float) -> None:
        """Hand the part that is being filled to a thread, when there is room on the way."""
        self._gather({n: each for n, each in self._sending.items() if each.done()}, end)
        if not self._upload:
            # if the answer is lost, a second upload begins, and the first one becomes stale
            begun = self._calls(
                "create_multipart_upload",
                Key=self._key,
                patience_s=self._calls.long_patience_s,
                cancelled=self._cancelled,
                **self._headers,
            )
            self._upload = str(begun["UploadId"])
        buffer, size = self._room(), self._filled
        number = self._number + 1

        def send() -> str:
            answer = self._calls(
                "upload_part",
                Key=self._key,
                UploadId=self._upload,
                PartNumber=number,
                Body=Body(buffer, size, self._cancelled),
                patience_s=self._calls.long_patience_s,
                cancelled=self._cancelled,
            )
            return str(answer["ETag"])

        patience_s = max(0.0, end - time.monotonic())
        self._sending[number] = self._parts.send(buffer, send, patience_s=patience_s)
        self._number, self._buffer, self._filled = number, None, 0

    def _gather(self, sending: Mapping[int, "Future[str]"], end: float) -> None:
        """Take what has become of these parts; the first that has failed breaks the upload."""
        for number, future in list(sending.items()):
            try:
                self._etags[number] = future.result(timeout=max(0.0, end - time.monotonic()))
            except TimeoutError as exc:
                self._cancelled.set()
                raise BackendUnavailable(
                    f"staging: the S3 server is too slow; parts of {self._key} are still on the way"
                ) from exc
            except BaseException as exc:
                self._cancelled.set()
                self._must_be_known(exc)
                raise
            del self._sending[number]

    def _complete(self, patience_s: float) -> None:
        parts = [{"PartNumber": n, "ETag": self._etags[n]} for n in sorted(self._etags)]
        try:
            self._calls(
                "complete_multipart_upload",
                Key=self._key,
                UploadId=self._upload,
                MultipartUpload={"Parts": parts},
                patience_s=patience_s,
                cancelled=self._cancelled,
            )
        except BackendUnavailable as exc:
            # the answer to an earlier attempt may have been lost, and the next one finds no such upload
            if not isinstance(exc, StorageFull) and self._is_there():
                return
            self._must_be_known(exc)
            raise

    def _is_there(self) -> bool:
        """Whether the object is known to be the one that was uploaded here."""
        try:
            found = self._calls("head_object", Key=self._key, patience_s=0.0)
        except (ObjectNotFound, BackendUnavailable):
            return False
        return bool(found.get("Metadata", {}).get(_MARK) == self._mark)

    def _must_be_known(self, error: BaseException) -> None:
        """Say it in our words if the error is that there is no such upload."""
        if isinstance(error, Refusal) and error.code == _NO_UPLOAD:
            raise BackendUnavailable(
                f"staging: the S3 server does not know the upload of {self._key} any more"
            ) from error

    def _abort(self) -> None:
        """Have the server forget the parts. If it is away, `remove_stale_uploads` has them later."""
        for future in self._sending.values():
            future.cancel()
        wait(self._sending.values())  # a part that comes later than this would stay
        with contextlib.suppress(BackendUnavailable):
            self._calls("abort_multipart_upload", Key=self._key, UploadId=self._upload)

    def _must_be_open(self) -> None:
        if not self._is_open or self._cancelled.is_set():
            raise BackendUnavailable(f"staging: the upload of {self._key} is over")
