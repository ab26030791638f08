"""Objects in the object store, over HTTP. See `polytope_server.object_store.app` for what it answers."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, cast
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter

from polytope_server.config.staging import ObjectStoreSection
from polytope_server.errors import BackendUnavailable, ObjectNotFound, StorageFull
from polytope_server.signatures import SignedLinks
from polytope_server.staging import CHUNK_BYTES, StoredObject, checked_name
from polytope_server.staging.patience import Away, patiently
from polytope_server.staging.wire import (
    DOWNLOAD_NAME,
    MEDIA_TYPE,
    MODIFIED_AT,
    PART_BYTES,
    RESERVED,
    SHA256,
    signing_key,
)

_CONNECT_S: Final = 5.0
_PATIENCE_S: Final = 2.0
_UPLOAD_PATIENCE_S: Final = 15.0
"""Enough for the store to be started again, so that what has been sent is not lost."""
_CONNECTIONS: Final = 64
_LONGEST_MESSAGE: Final = 2000
_BROKEN: Final = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


class ObjectStoreStaging:
    """See `polytope_server.staging.Staging`. Holds one part per writer, and one chunk per reader."""

    Config = ObjectStoreSection

    def __init__(self, config: ObjectStoreSection) -> None:
        self._base = _base(config)
        self._timeout = (min(_CONNECT_S, config.timeout), config.timeout)
        self.upload_patience_s = min(_UPLOAD_PATIENCE_S, config.timeout)
        token = config.token.get_secret_value()
        self._links = SignedLinks(signing_key(token))
        self._url = config.url
        self._session = requests.Session()
        # neither a proxy nor a password from the environment: the store is ours
        self._session.trust_env = False
        self._session.headers.update(
            {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}
        )
        adapter = HTTPAdapter(pool_maxsize=_CONNECTIONS)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def ping(self) -> None:
        self.json("GET", "", params={"limit": 0}, patience_s=0.0)

    def create(self, name: str, *, media_type: str) -> "RemoteUpload":  # noqa: ARG002
        """The media type is not kept: it is in the links, or the frontend knows it."""
        return RemoteUpload(self, _checked(name))

    def read(self, name: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        headers = {}
        if offset or length is not None:
            if length is not None and length <= 0:
                self.stat(name)
                return iter(())
            last = "" if length is None else str(offset + length - 1)
            headers["Range"] = f"bytes={offset}-{last}"
        response = self.call("GET", _checked(name), headers=headers, stream=True, also=(416,))
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            response.close()
            return iter(())
        return RemoteReader(response, name)

    def stat(self, name: str) -> StoredObject:
        headers = self.call("HEAD", _checked(name)).headers
        try:
            return StoredObject(
                name=name,
                size_bytes=int(headers["Content-Length"]),
                modified_at=float(headers[MODIFIED_AT]),
            )
        except (KeyError, ValueError) as exc:
            raise BackendUnavailable("staging: what answers is no object store") from exc

    def delete(self, name: str) -> None:
        self.call("DELETE", _checked(name))

    def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Sequence[StoredObject]:
        page = self._page(prefix=prefix, after=after, limit=limit)
        return [StoredObject(**each) for each in page["objects"]]

    def remove_stale_uploads(self, *, age_s: float) -> int:
        return int(self.json("DELETE", "uploads/stale", params={"age": age_s})["removed"])

    def url(
        self, name: str, *, download_name: str, media_type: str, sha256: str, expires_s: int
    ) -> str | None:
        if self._url is None:
            return None
        query = self._links.query(
            name,
            expires_at=int(time.time()) + expires_s,
            extra={DOWNLOAD_NAME: download_name, MEDIA_TYPE: media_type, SHA256: sha256},
        )
        return f"{self._url}/{quote(_checked(name))}?{query}"

    def free_bytes(self) -> int:
        return int(self._page(limit=0)["free_bytes"])

    def _page(self, **params: str | int) -> Mapping[str, Any]:
        return self.json("GET", "", params=params)

    def json(self, method: str, path: str, **options: Any) -> Mapping[str, Any]:
        """What the store answers. Options and errors are those of `call`."""
        try:
            answer = self.call(method, path, **options).json()
        except requests.JSONDecodeError as exc:
            raise BackendUnavailable("staging: what answers is no object store") from exc
        if not isinstance(answer, dict):
            raise BackendUnavailable("staging: what answers is no object store")
        return answer

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | float] | None = None,
        data: bytearray | None = None,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
        also: Sequence[int] = (),
        patience_s: float = _PATIENCE_S,
    ) -> requests.Response:
        """One call, again if the store is away for a moment; so it must do no harm twice.

        Args:
            also: statuses that are answers as well.
            patience_s: no attempt begins later.

        Raises:
            ObjectNotFound, StorageFull, BackendUnavailable
        """

        def attempt() -> requests.Response:
            try:
                response = self._session.request(
                    method,
                    f"{self._base}/{path}",
                    params=params,
                    data=cast("bytes | None", data),  # anything like bytes will do
                    headers=headers,
                    stream=stream,
                    timeout=self._timeout,
                    allow_redirects=False,
                )
            except _BROKEN as exc:
                raise Away(f"staging: the object store at {self._base} does not answer") from exc
            except requests.RequestException as exc:
                raise BackendUnavailable(
                    f"staging: the object store at {self._base} cannot be used"
                ) from exc
            if response.status_code in also or response.ok:
                return response
            with contextlib.closing(response):
                raise _refusal(response, path)

        return patiently(attempt, patience_s=patience_s)


class RemoteUpload:
    """An object on its way: whole in one call if it is small, in parts if not."""

    def __init__(self, store: ObjectStoreStaging, name: str) -> None:
        self._store, self._name = store, name
        self._buffer = bytearray()
        self._upload = ""
        self._sent_bytes = 0
        self._is_over = False
        self._lock = threading.Lock()

    def __enter__(self) -> "RemoteUpload":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._buffer = bytearray()
            if self._upload and not self._is_over:
                # if the store is away, `remove_stale_uploads` has it later
                with contextlib.suppress(BackendUnavailable):
                    self._store.call("DELETE", f"uploads/{self._upload}", patience_s=0.0)
            self._is_over = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        with self._lock:
            rest = memoryview(data).cast("B")
            while rest:
                self._must_be_open()
                room = PART_BYTES - len(self._buffer)
                self._buffer += rest[:room]
                rest = rest[room:]
                if len(self._buffer) == PART_BYTES:
                    self._send_part()

    def commit(self) -> None:
        with self._lock:
            self._must_be_open()
            if not self._upload:
                self._store.call("PUT", self._name, data=self._buffer)
            else:
                if self._buffer:
                    self._send_part()
                self._call("POST", params={"name": self._name, "size": self._sent_bytes})
            self._is_over = True

    def _send_part(self) -> None:
        if not self._upload:
            self._upload = str(self._store.json("POST", "uploads/new")["upload"])
        self._call("PUT", params={"offset": self._sent_bytes}, data=self._buffer)
        self._sent_bytes += len(self._buffer)
        self._buffer = bytearray()

    def _call(self, method: str, **options: Any) -> None:
        try:
            self._store.call(
                method,
                f"uploads/{self._upload}",
                patience_s=self._store.upload_patience_s,
                **options,
            )
        except ObjectNotFound as exc:
            # also what a second attempt finds if the first one's answer was lost
            raise BackendUnavailable(
                f"staging: the object store does not know the upload of {self._name} any more"
            ) from exc

    def _must_be_open(self) -> None:
        if self._is_over:
            raise BackendUnavailable(f"staging: the upload of {self._name} is over")


class RemoteReader:
    """The bytes of an object, in chunks. May be closed at any time."""

    def __init__(self, response: requests.Response, name: str) -> None:
        self._response, self._name = response, name
        self._chunks: Iterator[bytes] = response.iter_content(CHUNK_BYTES)
        self._lock = threading.Lock()

    def __iter__(self) -> "RemoteReader":
        return self

    def __next__(self) -> bytes:
        with self._lock:
            try:
                return next(self._chunks)
            except requests.RequestException as exc:
                raise BackendUnavailable(
                    f"staging: the connection broke while {self._name} was read"
                ) from exc

    def close(self) -> None:
        """Stop early; waits for a read that is going on, which has a time-out."""
        with self._lock:
            self._chunks = iter(())
            self._response.close()


def _refusal(response: requests.Response, path: str) -> Exception:
    """What the store's answer means to us."""
    said = _message(response)
    match response.status_code:
        case 404:
            return ObjectNotFound(f"There is no {path} in the object store.")
        case 507:
            return StorageFull(f"staging: the object store has no room: {said}")
        case 503 | 502 | 504:
            return Away(f"staging: the object store is not ready: {said}")
        case 401 | 403:
            return BackendUnavailable(
                "staging: the object store does not accept our token; staging.polytope.token must be "
                "the same for the store and for all who use it"
            )
        case status:
            return BackendUnavailable(f"staging: the object store answered {status}: {said}")


def _message(response: requests.Response) -> str:
    """What it says about it, as far as that is short; nothing where there is no text, as to HEAD."""
    with contextlib.suppress(ValueError, requests.RequestException):
        answer = json.loads(next(response.iter_content(_LONGEST_MESSAGE), b""))
        if isinstance(answer, dict):
            return str(answer.get("message", ""))
    return ""


def _checked(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"{name!r} is a page of the object store, not the name of an object")
    return checked_name(name)


def _base(config: ObjectStoreSection) -> str:
    scheme, separator, host = config.host.rpartition("://")
    if host == "0.0.0.0":  # noqa: S104 -- what older files say for this machine
        host = "127.0.0.1"
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{scheme if separator else 'http'}://{host}:{config.port}"
