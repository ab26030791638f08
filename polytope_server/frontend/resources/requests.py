"""Submitting, polling, listing and revoking."""

import time
from typing import Any

import falcon
from falcon.asgi import Request as HttpRequest
from falcon.asgi import Response

from polytope_server.errors import InvalidRequest, RequestNotFound
from polytope_server.frontend.answers import (
    RETRY_AFTER_S,
    failure,
    progress,
    record,
    shown_status,
)
from polytope_server.frontend.bodies import expect_json, whole
from polytope_server.frontend.links import Links
from polytope_server.frontend.polling import Reader, Watcher
from polytope_server.frontend.resources.listing import Listing
from polytope_server.frontend.revocation import Revoke
from polytope_server.frontend.submission import Submit, usable
from polytope_server.frontend.threads import Threads
from polytope_server.frontend.urls import PublicUrls
from polytope_server.observability.context import bind_context
from polytope_server.request import Request, Status, Verb
from polytope_server.user import User

_LARGE_BYTES = 1 << 14


class Polls:
    """The answer to a poll, wherever it is asked for."""

    def __init__(
        self, *, reader: Reader, watcher: Watcher, urls: PublicUrls, links: Links, hold_s: float
    ) -> None:
        self._reader, self._watcher, self._urls = reader, watcher, urls
        self._links, self._hold_s = links, hold_s

    async def own(self, user: User, request_id: str) -> Request:
        """A request of this user.

        Raises:
            RequestNotFound: no such request, or another user's.
        """
        request = await self._reader.get(request_id)
        if request.user.id != user.id:
            raise RequestNotFound(request_id)
        bind_context(request_id=request_id)
        return request

    async def answer(self, req: HttpRequest, resp: Response, request_id: str) -> None:
        """Hold the poll for a while if the request is unfinished, then say how it stands."""
        with self._watcher.watching(request_id) as event:
            request = await self.own(req.context.user, request_id)
            if not request.is_finished and self._hold_s and req.method != "HEAD":
                request = await self._watcher.changed(request, event, at_most_s=self._hold_s)
        await self.say(req, resp, request)

    async def say(self, req: HttpRequest, resp: Response, request: Request) -> None:
        """How a request stands, as clients expect it."""
        if not request.is_finished:
            position, paused = None, False
            if request.status is Status.WAITING:
                position = await self._reader.position(request)
                paused = await self._reader.is_paused(request.collection)
            message = progress(request, position=position, paused=paused)
            self.accepted(req, resp, request, message)
        elif request.status is Status.FAILED:
            resp.status = falcon.HTTP_400
            resp.media = {"message": failure(request)}
        elif request.verb is Verb.ARCHIVE or request.result is None:
            resp.media = {
                "location": self._poll_url(req, request),
                "message": "Success",
                "status": "processed",
            }
        else:
            location = self._links.download(req, request)
            resp.status = falcon.HTTP_303
            resp.location = location
            resp.media = {
                "contentLength": request.result.size_bytes,
                "contentType": request.result.media_type,
                "location": location,
            }

    def accepted(self, req: HttpRequest, resp: Response, request: Request, message: str) -> None:
        """202: it is not finished."""
        resp.status = falcon.HTTP_202
        resp.location = self._poll_url(req, request)
        resp.retry_after = RETRY_AFTER_S
        resp.media = {"message": message, "status": str(shown_status(request.status))}

    def record(self, req: HttpRequest, request: Request) -> dict[str, Any]:
        """An element of a list of requests."""
        done = request.status is Status.PROCESSED and request.result is not None
        return record(request, url=self._links.download(req, request) if done else "")

    def _poll_url(self, req: HttpRequest, request: Request) -> str:
        if request.verb is Verb.ARCHIVE:
            return self._urls.upload(req, request.id)
        return self._urls.request(req, request.id)


class AllRequests:
    """``/api/v1/requests``"""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    async def on_get(self, req: HttpRequest, resp: Response) -> None:
        await self._listing.answer(req, resp, None)

    on_head = on_get


class Requests:
    """``/api/v1/requests/{name}``, where the name of a collection goes before an id."""

    def __init__(
        self,
        *,
        submit: Submit,
        revoke: Revoke,
        polls: Polls,
        listing: Listing,
        threads: Threads,
        large_threads: Threads,
        max_body: int,
    ) -> None:
        """*large_threads* are for submissions that take long to read: few, so that others get their turn."""
        self._submit, self._revoke = submit, revoke
        self._polls, self._threads, self._max_body = polls, threads, max_body
        self._large_threads = large_threads
        self._listing = listing

    async def on_get(self, req: HttpRequest, resp: Response, name: str) -> None:
        if name in req.context.policy.collections:
            await self._listing.answer(req, resp, name)
            return
        try:
            await self._polls.answer(req, resp, name)
        except RequestNotFound:
            # a collection that was taken away still has its requests
            if not await self._listing.answer(req, resp, name):
                raise

    on_head = on_get

    async def on_post(self, req: HttpRequest, resp: Response, name: str) -> None:
        user = req.context.user
        collection = usable(req.context.policy.collections, user, name)
        expect_json(req)
        body = await whole(req, max_bytes=self._max_body)
        threads = self._threads if len(body) <= _LARGE_BYTES else self._large_threads
        request = await threads.run(
            self._submit,
            user,
            collection,
            body,
            idempotency_key=req.get_header("Idempotency-Key"),
            began=time.time() - (time.monotonic() - req.context.started),
        )
        bind_context(request_id=request.id)
        self._polls.accepted(req, resp, request, progress(request))
        if request.is_finished:  # an idempotency key of long ago
            resp.media = {"message": "Request accepted earlier", "status": "queued"}

    async def on_delete(self, req: HttpRequest, resp: Response, name: str) -> None:
        user = req.context.user
        if name.lower() == "all":
            count = await self._threads.run(self._revoke.all_unfinished, user)
        elif name in req.context.policy.collections:
            raise InvalidRequest(
                f"{name} is a collection; give the id of a request to revoke, or 'all'."
            )
        else:
            bind_context(request_id=name[:64])
            await self._threads.run(self._revoke.one, user, name)
            count = 1
        resp.media = {"message": f"Successfully revoked {count} requests"}
