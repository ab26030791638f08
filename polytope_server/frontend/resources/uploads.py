"""Data to archive: uploaded once, checked on the way."""

import base64
import binascii
import functools
import hashlib
import re
import time
import uuid
from contextlib import AbstractContextManager

from falcon.asgi import Request as HttpRequest
from falcon.asgi import Response

from polytope_server.errors import (
    Conflict,
    InvalidRequest,
    RequestNotFound,
    StepLost,
)
from polytope_server.frontend.answers import progress
from polytope_server.frontend.bodies import chunks
from polytope_server.frontend.resources.requests import Polls
from polytope_server.frontend.threads import Threads, Turns
from polytope_server.observability.metrics import Metrics
from polytope_server.observability.tracing import Span, Traces, about
from polytope_server.queue import Queue, Topic
from polytope_server.request import (
    BINARY,
    DataObject,
    Request,
    Status,
    Step,
    Verb,
    input_name,
)
from polytope_server.request_store import RequestStore
from polytope_server.staging import CHUNK_BYTES, Staging, Upload

_MD5_HEX = re.compile(r"[0-9a-fA-F]{32}", re.ASCII)


class Uploads:
    """``/api/v1/uploads/{id}``"""

    def __init__(
        self,
        *,
        polls: Polls,
        store: RequestStore,
        queue: Queue,
        staging: Staging,
        store_threads: Threads,
        staging_threads: Threads,
        max_body: int,
        metrics: Metrics,
        traces: Traces,
    ) -> None:
        self._polls = polls
        self._store, self._queue, self._staging = store, queue, staging
        self._store_threads, self._staging_threads = store_threads, staging_threads
        self._max_body = max_body
        self._metrics, self._traces = metrics, traces

    async def on_get(self, req: HttpRequest, resp: Response, request_id: str) -> None:
        await self._polls.answer(req, resp, request_id)

    on_head = on_get

    async def on_post(self, req: HttpRequest, resp: Response, request_id: str) -> None:
        request = await self._polls.own(req.context.user, request_id)
        if request.verb is not Verb.ARCHIVE:
            raise InvalidRequest(f"Request {request_id} is a retrieve; it takes no data.")
        md5 = _announced_md5(req)
        if request.status is Status.UPLOADING:
            request = await self._receive(req, request, md5)
        else:
            await self._compare(req, request, md5)
        self._polls.accepted(req, resp, request, progress(request))
        if request.is_finished:
            resp.media = {"message": "The data were received earlier", "status": "queued"}

    async def _receive(self, req: HttpRequest, request: Request, md5: str) -> Request:
        """Stage the body, then let the request wait; the body is dropped if it is not as announced."""
        start, since = time.time(), request.modified_at
        name = input_name("", request.id, uuid.uuid4().hex)
        create = functools.partial(self._staging.create, media_type=BINARY)
        context = await self._staging_threads.run(create, name)
        data = await self._stage(req, context, name, md5)
        step = Step(id=request.id, source=Status.UPLOADING, target=Status.WAITING, input=data)
        try:
            request = await self._store_threads.run(self._store.apply, step)
        except (StepLost, RequestNotFound):
            await self._staging_threads.run(self._staging.delete, name)
            request = await self._polls.own(req.context.user, request.id)
            self._must_hold(request, md5)
            return request
        await self._store_threads.run(self._queue.hint, Topic.SUBMITTED, request.id)
        self._metrics.request_moved(request, source=Status.UPLOADING, since=since)
        if self._traces.wants(request.id):
            attributes = about(request, bytes=data.size_bytes)
            span = Span(name="upload", start=start, end=time.time(), attributes=attributes)
            self._traces.add(request.id, span)
        return request

    async def _stage(
        self, req: HttpRequest, context: AbstractContextManager[Upload], name: str, md5: str
    ) -> DataObject:
        run, turns = self._staging_threads.run, Turns()
        leave = turns.taking(context.__exit__)
        hashes = _Hashes()
        upload = await run(context.__enter__)
        try:
            async for chunk in chunks(req, max_bytes=self._max_body, chunk_bytes=CHUNK_BYTES):
                await run(turns.taking(hashes.write), upload, chunk)
                self._metrics.uploaded(len(chunk))
            hashes.must_be(md5)
            await run(turns.taking(upload.commit))
        except BaseException as exc:
            await run(leave, type(exc), exc, exc.__traceback__)
            raise
        await run(leave, None, None, None)
        return DataObject(
            name=name,
            media_type=BINARY,
            size_bytes=hashes.size_bytes,
            sha256=hashes.sha256.hexdigest(),
            md5=md5,
        )

    async def _compare(self, req: HttpRequest, request: Request, md5: str) -> None:
        """A client that lost our answer sends its data again: fine if they are the same."""
        hashes = _Hashes()
        async for chunk in chunks(req, max_bytes=self._max_body, chunk_bytes=CHUNK_BYTES):
            await self._staging_threads.run(hashes.update, chunk)
            self._metrics.uploaded(len(chunk))
        hashes.must_be(md5)
        self._must_hold(request, md5)

    @staticmethod
    def _must_hold(request: Request, md5: str) -> None:
        if request.input is None:
            raise Conflict(f"Request {request.id} takes no data any more.")
        if request.input.md5 != md5:
            raise Conflict("This request already holds other data.")


class _Hashes:
    """What has passed so far."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)  # what clients announce
        self.size_bytes = 0

    def update(self, chunk: bytes | bytearray) -> None:
        self.sha256.update(chunk)
        self._md5.update(chunk)
        self.size_bytes += len(chunk)

    def write(self, upload: Upload, chunk: bytes | bytearray) -> None:
        self.update(chunk)
        upload.write(chunk)

    def must_be(self, md5: str) -> None:
        found = self._md5.hexdigest()
        if found != md5:
            raise InvalidRequest(
                f"The checksum of the data received is {found}, the one announced is {md5}; "
                "upload the data again."
            )


def _announced_md5(req: HttpRequest) -> str:
    """The MD5 that a client announces, in lower-case hex.

    Raises:
        InvalidRequest: it announces none, or it cannot be read.
    """
    for header in ("X-Checksum", "Content-MD5"):
        text = (req.get_header(header) or "").strip()
        if not text:
            continue
        if _MD5_HEX.fullmatch(text):
            return text.lower()
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != 16:
            raise InvalidRequest(f"{header} must be the MD5 of the data: 32 hexadecimal digits.")
        return raw.hex()
    raise InvalidRequest(
        "The header X-Checksum is missing; it must be the MD5 of the data: 32 hexadecimal digits."
    )
