"""What happens to every request and response: paths, identity, headers, one line of log."""

import asyncio
import logging
import time
import uuid
from typing import Any, Final

from falcon.asgi import Request, Response

from polytope_server.asgi_server import SECURITY_HEADERS
from polytope_server.authentication.identity import Identity
from polytope_server.errors import NotAuthenticated
from polytope_server.frontend.policy import Policy
from polytope_server.frontend.threads import Threads
from polytope_server.observability.context import bind_context
from polytope_server.observability.metrics import Metrics
from polytope_server.reloading import Current
from polytope_server.user import User

logger = logging.getLogger(__name__)

EXPOSED_HEADERS: Final = (
    "Accept-Ranges",
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Location",
    "Repr-Digest",
    "Retry-After",
    "WWW-Authenticate",
)
"""What scripts of another origin may read, if that origin is allowed at all."""


class Paths:
    """``//api/v1/x`` and ``/api/v1/x/`` are ``/api/v1/x``."""

    async def process_request(self, req: Request, _resp: Response) -> None:
        req.path = "/" + "/".join(part for part in req.path.split("/") if part)


class Log:
    """One line for each request, with who asked and how long it took."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def process_request(self, req: Request, _resp: Response) -> None:
        req.context.started = time.monotonic()
        req.context.quote = uuid.uuid4().hex[:12]
        bind_context()

    async def process_response(
        self, req: Request, resp: Response, _resource: Any, _succeeded: bool
    ) -> None:
        seconds = time.monotonic() - req.context.started
        route = req.uri_template or "(none)"
        self._metrics.http_request(
            method=req.method, route=req.uri_template, status=resp.status_code, duration_s=seconds
        )
        level = logging.DEBUG if route in ("/healthz", "/readyz") else logging.INFO
        logger.log(
            level,
            "answered",
            extra={
                "method": req.method,
                "route": route,
                "status": resp.status_code,
                "seconds": round(seconds, 4),
                "address": address(req),
                "quote": req.context.quote,
            },
        )


class SecurityHeaders:
    """On every response, whatever it is."""

    async def process_response(
        self, _req: Request, resp: Response, _resource: Any, _succeeded: bool
    ) -> None:
        for name, value in SECURITY_HEADERS:
            resp.set_header(name, value)


class Authentication:
    """Who asks, before anything else is looked at; and by which policy: ``req.context.policy``.

    A resource whose class says ``open_to_all`` is left alone, and may call `identify` itself.
    """

    def __init__(
        self,
        policy: Current[Policy],
        *,
        threads: Threads,
        login_threads: Threads,
        proxy_support: bool,
    ) -> None:
        """*login_threads* are for credentials that may be wrong: many of them keep nobody else waiting."""
        self._policy, self._threads, self._login_threads = policy, threads, login_threads
        self._proxy_support = proxy_support

    async def process_request(self, req: Request, _resp: Response) -> None:
        req.context.policy = self._policy.value

    async def process_resource(
        self, req: Request, resp: Response, resource: Any, _params: Any
    ) -> None:
        if getattr(resource, "open_to_all", False) or req.method == "OPTIONS":
            return
        await self.identify(req, resp)

    async def identify(self, req: Request, resp: Response) -> None:
        """Set ``req.context.user``, or raise `NotAuthenticated` with the challenges set."""
        identity = req.context.policy.identity
        authorization = req.get_header("Authorization")
        try:
            user = identity.recall(authorization) or await self._asked(req, identity, authorization)
        except NotAuthenticated:
            if challenges := identity.challenges():
                resp.set_header("WWW-Authenticate", challenges)
            raise
        req.context.user = user
        bind_context(user=user.username)

    async def identify_for_key(self, req: Request, resp: Response) -> User:
        """Who sends this, for whom an API key may be made; see `Identity.identify_for_key`.

        After `identify`, which has kept those who guess waiting.
        """
        identity = req.context.policy.identity
        try:
            return await self._login_threads.run(
                identity.identify_for_key,
                req.get_header("Authorization"),
                address=address(req, proxy_support=self._proxy_support),
            )
        except NotAuthenticated:
            resp.set_header("WWW-Authenticate", identity.challenges())
            raise

    async def _asked(self, req: Request, identity: Identity, authorization: str | None) -> User:
        where = address(req, proxy_support=self._proxy_support)
        if identity.is_proven(authorization):
            return await self._threads.run(identity.identify, authorization, address=where)
        delay_s = identity.delay_s(authorization, where)
        if delay_s:
            await asyncio.sleep(delay_s)
        return await self._login_threads.run(identity.identify, authorization, address=where)


def address(req: Request, *, proxy_support: bool = False) -> str:
    """Where a request came from; with *proxy_support*, as the nearest proxy says."""
    if proxy_support and (forwarded := req.get_header("X-Forwarded-For")):
        return forwarded.rpartition(",")[2].strip()
    return req.remote_addr
