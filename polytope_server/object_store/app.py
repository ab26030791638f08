"""The object store's HTTP, and the one place where it is put together.

::

    GET    /?prefix=&after=&limit=           objects by name, and the room that is left
    PUT    /{name}                           a whole object
    GET    /{name}                           with the token, or with a signed link; HEAD alike
    DELETE /{name}
    POST   /uploads/new                      an upload in parts: its id,
    PUT    /uploads/{id}?offset=             each part,
    POST   /uploads/{id}?name=&size=         and its end, which makes it an object
    DELETE /uploads/{id}
    DELETE /uploads/stale?age=               what has not grown for so many seconds
    GET    /healthz, /readyz                 open to all

Everything that is no object is JSON, and every error ``{"message": text}``.
"""

import json
import logging
import time
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any, Final

import falcon
from falcon.asgi import App, Request, Response

from polytope_server.asgi_server import SECURITY_HEADERS
from polytope_server.config.staging import ObjectStoreSection
from polytope_server.errors import (
    BackendUnavailable,
    BodyTooLarge,
    Conflict,
    InvalidRequest,
    NotAuthenticated,
    NotAuthorized,
    ObjectNotFound,
    PolytopeError,
    ResultGone,
    StorageFull,
)
from polytope_server.http_ranges import Range, RangeNotSatisfiable, parse_range
from polytope_server.object_store.access import Access
from polytope_server.object_store.bodies import Chunks, Disk, receive
from polytope_server.object_store.uploads import PartedUploads
from polytope_server.observability.health import AWAY, OK
from polytope_server.observability.metrics import Metrics
from polytope_server.signatures import SignedLinks
from polytope_server.staging import checked_name, repr_digest
from polytope_server.staging.local import LocalReader, LocalStaging
from polytope_server.staging.wire import (
    DOWNLOAD_NAME,
    MEDIA_TYPE,
    MODIFIED_AT,
    SHA256,
    signing_key,
)

logger = logging.getLogger(__name__)

Application = App[Request, Response]

STATUS: Final[Mapping[type[PolytopeError], str]] = {
    InvalidRequest: falcon.HTTP_400,
    NotAuthenticated: falcon.HTTP_401,
    NotAuthorized: falcon.HTTP_403,
    ObjectNotFound: falcon.HTTP_404,
    Conflict: falcon.HTTP_409,
    ResultGone: falcon.HTTP_410,
    BodyTooLarge: falcon.HTTP_413,
    BackendUnavailable: falcon.HTTP_503,
    StorageFull: falcon.HTTP_507,
}

_LONGEST_PAGE: Final = 10_000


def create_app(section: ObjectStoreSection, staging: LocalStaging, metrics: Metrics) -> Application:
    """The object store as an ASGI application."""
    disk = Disk(threads=section.threads)
    token = section.token.get_secret_value()
    access = Access(token=token, links=SignedLinks(signing_key(token)), clock=time.time)
    uploads = PartedUploads(staging)
    app: Application = App(middleware=[_Frame(disk, metrics), access])
    app.add_error_handler(PolytopeError, _ours)
    app.add_error_handler(Exception, _unexpected)
    app.add_error_handler(falcon.HTTPError, _falcons)
    app.add_route("/", Listing(staging, disk))
    app.add_route("/healthz", Healthz())
    app.add_route("/readyz", Readyz(staging, disk))
    app.add_route("/{name}", Objects(staging, disk, metrics, max_bytes=section.max_object))
    app.add_route("/uploads/new", NewUpload(uploads, disk))
    app.add_route("/uploads/stale", StaleUploads(staging, disk))
    app.add_route(
        "/uploads/{upload}", Uploads(uploads, disk, metrics, max_bytes=section.max_object)
    )
    return app


class _Frame:
    """What is around every answer: headers, one line of log, and the end of the threads."""

    def __init__(self, disk: Disk, metrics: Metrics) -> None:
        self._disk, self._metrics = disk, metrics

    async def process_shutdown(self, _scope: object, _event: object) -> None:
        self._disk.close()

    async def process_request(self, req: Request, _resp: Response) -> None:
        req.context.started = time.monotonic()

    async def process_resource(
        self, req: Request, _resp: Response, _resource: object, params: Mapping[str, str]
    ) -> None:
        name = params.get("name", req.get_param("name") if req.method == "POST" else None)
        if name is not None:
            try:
                checked_name(name)
            except ValueError as exc:
                raise InvalidRequest(str(exc)) from exc

    async def process_response(
        self, req: Request, resp: Response, _resource: object, _succeeded: bool
    ) -> None:
        for name, value in SECURITY_HEADERS:
            resp.set_header(name, value)
        seconds = time.monotonic() - req.context.started
        self._metrics.http_request(
            method=req.method, route=req.uri_template, status=resp.status_code, duration_s=seconds
        )
        logger.log(
            logging.DEBUG if req.path in ("/healthz", "/readyz") else logging.INFO,
            "answered",
            extra={
                "method": req.method,
                "path": req.path,
                "status": resp.status_code,
                "seconds": round(seconds, 4),
                "address": req.remote_addr,
            },
        )


class Healthz:
    """``/healthz``: the process lives."""

    open_to_all = True

    async def on_get(self, _req: Request, resp: Response) -> None:
        resp.media = {"status": "alive"}


class Readyz:
    """``/readyz``: whether the directory can be used; 503 if not."""

    open_to_all = True

    def __init__(self, staging: LocalStaging, disk: Disk) -> None:
        self._staging, self._disk = staging, disk

    async def on_get(self, _req: Request, resp: Response) -> None:
        try:
            await self._disk.run(self._staging.ping)
        except BackendUnavailable as exc:
            logger.warning("The directory cannot be used", extra={"cause": str(exc)})
            resp.status, state = falcon.HTTP_503, AWAY
        else:
            state = OK
        resp.media = {"staging": state}


class Listing:
    """``/``"""

    def __init__(self, staging: LocalStaging, disk: Disk) -> None:
        self._staging, self._disk = staging, disk

    async def on_get(self, req: Request, resp: Response) -> None:
        page = await self._disk.run(
            self._staging.list,
            req.get_param("prefix", default=""),
            after=req.get_param("after", default=""),
            limit=req.get_param_as_int("limit", min_value=0, max_value=_LONGEST_PAGE, default=1000),
        )
        resp.media = {
            "objects": [
                {"name": each.name, "size_bytes": each.size_bytes, "modified_at": each.modified_at}
                for each in page
            ],
            "free_bytes": await self._disk.run(self._staging.free_bytes),
        }


class Objects:
    """``/{name}``"""

    open_to_links = True

    def __init__(
        self, staging: LocalStaging, disk: Disk, metrics: Metrics, *, max_bytes: int
    ) -> None:
        self._staging, self._disk, self._max_bytes = staging, disk, max_bytes
        self._metrics = metrics

    async def on_put(self, req: Request, resp: Response, name: str) -> None:
        upload = self._staging.create(name, media_type="")
        size = await receive(
            req, upload, self._disk, max_bytes=self._max_bytes, received=self._metrics.received
        )
        resp.status = falcon.HTTP_201
        resp.media = {"name": name, "size_bytes": size}

    async def on_delete(self, _req: Request, resp: Response, name: str) -> None:
        await self._disk.run(self._staging.delete, name)
        resp.status = falcon.HTTP_204

    async def on_get(self, req: Request, resp: Response, name: str) -> None:
        reader = await self._disk.run(self._staging.open, name)
        size, etag = reader.status.st_size, _etag(req, reader)
        try:
            wanted = parse_range(
                req.get_header("Range"), size, if_range=req.get_header("If-Range"), etag=etag
            )
        except RangeNotSatisfiable:
            reader.close()
            resp.status = falcon.HTTP_416
            resp.set_header("Content-Range", f"bytes */{size}")
            _say(resp, f"The requested range is outside the object of {size} bytes.")
            return
        _describe(req, resp, reader, etag)
        part = wanted or Range(0, size)
        if wanted is not None:
            resp.status = falcon.HTTP_206
            resp.set_header("Content-Range", wanted.content_range(size))
        if req.method == "HEAD":
            reader.close()
            resp.set_header("Content-Length", str(part.length))
            return
        chunks = Chunks(reader.part(part.start, part.length), self._disk, sent=self._metrics.sent)
        resp.set_stream(chunks, part.length)

    on_head = on_get


class NewUpload:
    """``/uploads/new``"""

    def __init__(self, uploads: PartedUploads, disk: Disk) -> None:
        self._uploads, self._disk = uploads, disk

    async def on_post(self, _req: Request, resp: Response) -> None:
        resp.media = {"upload": await self._disk.run(self._uploads.begin)}
        resp.status = falcon.HTTP_201


class StaleUploads:
    """``/uploads/stale``"""

    def __init__(self, staging: LocalStaging, disk: Disk) -> None:
        self._staging, self._disk = staging, disk

    async def on_delete(self, req: Request, resp: Response) -> None:
        age_s = req.get_param_as_float("age", required=True, min_value=0)
        removed = await self._disk.run(self._staging.remove_stale_uploads, age_s=age_s)
        resp.media = {"removed": removed}


class Uploads:
    """``/uploads/{upload}``"""

    def __init__(
        self, uploads: PartedUploads, disk: Disk, metrics: Metrics, *, max_bytes: int
    ) -> None:
        self._uploads, self._disk, self._max_bytes = uploads, disk, max_bytes
        self._metrics = metrics

    async def on_put(self, req: Request, resp: Response, upload: str) -> None:
        offset = req.get_param_as_int("offset", required=True, min_value=0)
        part = self._uploads.part(upload, offset=offset)
        size = await receive(
            req,
            part,
            self._disk,
            max_bytes=max(0, self._max_bytes - offset),
            received=self._metrics.received,
        )
        resp.media = {"size_bytes": offset + size}

    async def on_post(self, req: Request, resp: Response, upload: str) -> None:
        name = req.get_param("name", required=True)
        size = req.get_param_as_int("size", required=True, min_value=0)
        await self._disk.run(self._uploads.commit, upload, name, size_bytes=size)
        resp.status = falcon.HTTP_201
        resp.media = {"name": name, "size_bytes": size}

    async def on_delete(self, _req: Request, resp: Response, upload: str) -> None:
        await self._disk.run(self._uploads.abort, upload)
        resp.status = falcon.HTTP_204


def _describe(req: Request, resp: Response, reader: LocalReader, etag: str) -> None:
    """The headers of an object; those that clients go by come out of the signed link."""
    link: Mapping[str, str] = req.context.link
    resp.content_type = link.get(MEDIA_TYPE, "application/octet-stream")
    if download_name := link.get(DOWNLOAD_NAME):
        resp.set_header("Content-Disposition", f'attachment; filename="{download_name}"')
    resp.set_header("Accept-Ranges", "bytes")
    resp.set_header("ETag", etag)
    if sha256 := link.get(SHA256):
        resp.set_header("Repr-Digest", repr_digest(sha256))
    resp.set_header("Last-Modified", formatdate(reader.status.st_mtime, usegmt=True))
    resp.set_header(MODIFIED_AT, repr(reader.status.st_mtime))


def _etag(req: Request, reader: LocalReader) -> str:
    """Of the data if the link tells their digest, else of the file, which nothing else is like."""
    if sha256 := req.context.link.get(SHA256):
        return f'"{sha256}"'
    status = reader.status
    return f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"'


def _say(resp: Response, message: str) -> None:
    resp.content_type = falcon.MEDIA_JSON
    resp.data = json.dumps({"message": message}).encode()
    resp.text = resp.media = resp.stream = None


async def _ours(req: Request, resp: Response, error: PolytopeError, _params: Any) -> None:
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    if isinstance(error, BackendUnavailable):
        logger.warning("cannot store or read", extra={"path": req.path, "cause": str(error)})
    resp.status = status
    _say(resp, str(error))


async def _unexpected(req: Request, resp: Response, error: Exception, _params: Any) -> None:
    logger.error("unexpected error", exc_info=error, extra={"path": req.path})
    resp.status = falcon.HTTP_500
    _say(resp, "Internal error; the log of the object store has the story.")


async def _falcons(_req: Request, resp: Response, error: falcon.HTTPError, _params: Any) -> None:
    resp.status = error.status
    for name, value in dict(error.headers or {}).items():
        resp.set_header(name, value)
    _say(resp, str(error.description or error.title))
