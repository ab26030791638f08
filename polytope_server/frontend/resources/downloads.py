"""Results, to whoever has a link or owns the request."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import falcon
from falcon.asgi import Request as HttpRequest
from falcon.asgi import Response

from polytope_server.errors import ObjectNotFound, RequestNotFound, ResultGone, ResultNotFound
from polytope_server.frontend.errors import say
from polytope_server.frontend.links import Links
from polytope_server.frontend.middleware import Authentication
from polytope_server.frontend.polling import Reader
from polytope_server.frontend.resources.requests import Polls
from polytope_server.frontend.threads import Threads, stream
from polytope_server.http_ranges import Range, RangeNotSatisfiable, parse_range
from polytope_server.observability.context import bind_context
from polytope_server.observability.metrics import Metrics
from polytope_server.observability.tracing import Span, Traces, about
from polytope_server.request import DataObject, Request, Status, download_name
from polytope_server.staging import Staging, repr_digest


class Downloads:
    """``/api/v1/downloads/{id}``, and the same with one more segment before the id."""

    open_to_all = True  # a link is enough; without one, see `_found`

    def __init__(
        self,
        *,
        reader: Reader,
        links: Links,
        polls: Polls,
        authentication: Authentication,
        staging: Staging,
        threads: Threads,
        metrics: Metrics,
        traces: Traces,
    ) -> None:
        self._reader, self._links, self._polls = reader, links, polls
        self._authentication = authentication
        self._staging, self._threads = staging, threads
        self._metrics, self._traces = metrics, traces

    async def on_get(self, req: HttpRequest, resp: Response, first: str, second: str = "") -> None:
        request_id = second or first
        request = await self._found(req, resp, request_id)
        if request.status is not Status.PROCESSED:
            await self._polls.say(req, resp, request)
            return
        if request.result is None:
            raise ResultNotFound(f"Request {request_id} has no data to download.")
        await self._send(req, resp, request, request.result)

    on_head = on_get

    async def _found(self, req: HttpRequest, resp: Response, request_id: str) -> Request:
        """The request, for one who has a good link, or for its owner."""
        try:
            self._links.check(request_id, req)
        except (ResultNotFound, ResultGone):
            if not req.get_header("Authorization"):
                raise
            await self._authentication.identify(req, resp)
            return await self._polls.own(req.context.user, request_id)
        try:
            request = await self._reader.get(request_id)
        except RequestNotFound as exc:
            raise ResultGone(
                "The result of this request has been removed; submit it again."
            ) from exc
        bind_context(request_id=request_id, user=request.user.username)
        return request

    async def _send(
        self, req: HttpRequest, resp: Response, request: Request, data: DataObject
    ) -> None:
        etag = f'"{data.sha256}"'
        resp.content_type = data.media_type
        resp.set_header("Content-Disposition", f'attachment; filename="{download_name(request)}"')
        resp.set_header("Accept-Ranges", "bytes")
        resp.set_header("ETag", etag)
        resp.set_header("Repr-Digest", repr_digest(data.sha256))
        try:
            wanted = parse_range(
                req.get_header("Range"),
                data.size_bytes,
                if_range=req.get_header("If-Range"),
                etag=etag,
            )
        except RangeNotSatisfiable:
            resp.status = falcon.HTTP_416
            resp.set_header("Content-Range", f"bytes */{data.size_bytes}")
            for name in ("Content-Disposition", "ETag", "Repr-Digest"):
                resp.delete_header(name)
            say(resp, f"The requested range is outside the data of {data.size_bytes} bytes.")
            return
        part = wanted or Range(0, data.size_bytes)
        if wanted is not None:
            resp.status = falcon.HTTP_206
            resp.set_header("Content-Range", wanted.content_range(data.size_bytes))
        if req.method == "HEAD":
            await self._threads.run(self._opened, data, None)
            resp.set_header("Content-Length", str(part.length))
            return
        bytes_ = await self._threads.run(self._opened, data, part)
        resp.set_stream(self._stream(bytes_, request), part.length)

    def _opened(self, data: DataObject, part: Range | None) -> Iterator[bytes]:
        try:
            if part is None:
                self._staging.stat(data.name)
                return iter(())
            return self._staging.read(data.name, offset=part.start, length=part.length)
        except ObjectNotFound as exc:
            raise ResultGone(
                "The result of this request has been removed; submit it again."
            ) from exc

    async def _stream(self, chunks: Iterator[bytes], request: Request) -> AsyncIterator[bytes]:
        start, sent_bytes = time.time(), 0
        try:
            async with aclosing(stream(chunks, self._threads)) as parts:
                async for chunk in parts:
                    yield chunk
                    sent_bytes += len(chunk)
                    self._metrics.downloaded(len(chunk))
        finally:
            if self._traces.wants(request.id):
                attributes = about(request, bytes=sent_bytes)
                span = Span(name="download", start=start, end=time.time(), attributes=attributes)
                self._traces.add(request.id, span)
