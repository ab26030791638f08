"""The one place where a frontend is put together."""

import asyncio
import functools
from dataclasses import dataclass
from typing import Any, TypeAlias

import falcon
from falcon import CORSMiddleware
from falcon.asgi import App, Request, Response

from polytope_server.caching import Cache
from polytope_server.config.model import FrontendSection
from polytope_server.frontend import errors
from polytope_server.frontend.answers import json_bytes
from polytope_server.frontend.links import Links, Signer
from polytope_server.frontend.middleware import (
    EXPOSED_HEADERS,
    Authentication,
    Log,
    Paths,
    SecurityHeaders,
)
from polytope_server.frontend.policy import Policy
from polytope_server.frontend.polling import Reader, Watcher
from polytope_server.frontend.resources.documentation import Document, Page, PageFile
from polytope_server.frontend.resources.downloads import Downloads
from polytope_server.frontend.resources.keys import Key, Keys
from polytope_server.frontend.resources.listing import Listing
from polytope_server.frontend.resources.requests import AllRequests, Polls, Requests
from polytope_server.frontend.resources.system import Healthz, Readyz, Test
from polytope_server.frontend.resources.uploads import Uploads
from polytope_server.frontend.resources.user import Collections, UserResource
from polytope_server.frontend.revocation import Revoke
from polytope_server.frontend.submission import Submit
from polytope_server.frontend.threads import Threads
from polytope_server.frontend.urls import API, PublicUrls
from polytope_server.observability.health import Readiness
from polytope_server.observability.metrics import Metrics
from polytope_server.observability.tracing import NO_TRACES, Traces
from polytope_server.queue import Queue
from polytope_server.reloading import Current
from polytope_server.request_store import RequestStore
from polytope_server.staging import Staging

Application: TypeAlias = App[Request, Response]

_STORE_TIMEOUT_S = 40.0
_STAGING_TIMEOUT_S = 120.0
_IDENTITY_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What a frontend works with."""

    store: RequestStore
    queue: Queue
    staging: Staging
    cache: Cache
    policy: Current[Policy]
    metrics: Metrics
    signer: Signer
    traces: Traces = NO_TRACES


class _Lifespan:
    """Starts and ends what lives in the event loop."""

    def __init__(self, watcher: Watcher, threads: tuple[Threads, ...], traces: Traces) -> None:
        self._watcher, self._threads, self._traces = watcher, threads, traces

    async def process_startup(self, _scope: object, _event: object) -> None:
        self._watcher.start()

    async def process_shutdown(self, _scope: object, _event: object) -> None:
        self._watcher.close()
        for threads in self._threads:
            threads.close()
        await asyncio.to_thread(self._traces.close)


def create_app(services: Services, settings: FrontendSection, urls: PublicUrls) -> Application:
    """The frontend as an ASGI application; used in production and in tests alike."""
    store, queue, staging = services.store, services.queue, services.staging
    pool = functools.partial(Threads, size=settings.threads)
    store_threads = pool("request_store", timeout_s=_STORE_TIMEOUT_S)
    submit_threads = pool("submission", timeout_s=_STORE_TIMEOUT_S)
    listing_threads = Threads("lists of requests", size=4, timeout_s=_STORE_TIMEOUT_S)
    large_threads = Threads("large submissions", size=2, timeout_s=_STORE_TIMEOUT_S)
    staging_threads = pool("staging", timeout_s=_STAGING_TIMEOUT_S)
    identity_threads = pool("authentication", timeout_s=_IDENTITY_TIMEOUT_S)
    login_threads = pool("login", timeout_s=_IDENTITY_TIMEOUT_S)
    health_threads = Threads("health", size=2, timeout_s=_IDENTITY_TIMEOUT_S)

    reader = Reader(store, store_threads)
    watcher = Watcher(reader, queue)
    links = Links(
        signer=services.signer,
        staging=staging,
        urls=urls,
        expiry_s=settings.download_expiry,
    )
    polls = Polls(reader=reader, watcher=watcher, urls=urls, links=links, hold_s=settings.long_poll)
    listing = Listing(store=store, threads=listing_threads, record=polls.record)
    authentication = Authentication(
        services.policy,
        threads=identity_threads,
        login_threads=login_threads,
        proxy_support=settings.proxy_support,
    )
    readiness = Readiness(
        {
            "request_store": store.ping,
            "queue": queue.ping,
            "staging": staging.ping,
            "caching": services.cache.ping,
        },
        dispensable={"caching"},  # without it, logins are slower
    )
    downloads = Downloads(
        reader=reader,
        links=links,
        polls=polls,
        authentication=authentication,
        staging=staging,
        threads=staging_threads,
        metrics=services.metrics,
        traces=services.traces,
    )

    middleware: list[Any] = [
        Paths(),
        Log(services.metrics),
        SecurityHeaders(),
        authentication,
        _Lifespan(
            watcher,
            (
                store_threads,
                submit_threads,
                large_threads,
                listing_threads,
                staging_threads,
                identity_threads,
                login_threads,
                health_threads,
            ),
            services.traces,
        ),
    ]
    if settings.allow_origin is not None:
        middleware.append(CORSMiddleware(settings.allow_origin, EXPOSED_HEADERS))
    app: Application = App(middleware=middleware)
    app.resp_options.media_handlers[falcon.MEDIA_JSON] = falcon.media.JSONHandler(dumps=json_bytes)
    errors.install(app)
    api_document = Document(settings, urls)
    app.add_route("/", Page())
    app.add_route("/ui/{name}", PageFile())
    app.add_route("/openapi.json", api_document)
    app.add_route(f"{API}/openapi", api_document)
    app.add_route("/healthz", Healthz())
    app.add_route("/readyz", Readyz(readiness, health_threads))
    app.add_route(f"{API}/test", Test())
    app.add_route(f"{API}/user", UserResource(store, store_threads))
    app.add_route(f"{API}/collections", Collections())
    app.add_route(
        f"{API}/auth/keys",
        Keys(
            store=store,
            authentication=authentication,
            threads=store_threads,
            metrics=services.metrics,
        ),
    )
    app.add_route(
        f"{API}/auth/keys/{{key_id}}",
        Key(store=store, threads=store_threads, metrics=services.metrics),
    )
    app.add_route(f"{API}/requests", AllRequests(listing))
    app.add_route(
        f"{API}/requests/{{name}}",
        Requests(
            submit=Submit(
                store=store,
                queue=queue,
                staging=staging,
                max_unfinished=settings.max_unfinished,
                min_free=settings.min_free,
                metrics=services.metrics,
                traces=services.traces,
            ),
            revoke=Revoke(store=store, queue=queue, staging=staging, metrics=services.metrics),
            polls=polls,
            listing=listing,
            threads=submit_threads,
            large_threads=large_threads,
            max_body=settings.max_request,
        ),
    )
    app.add_route(
        f"{API}/uploads/{{request_id}}",
        Uploads(
            polls=polls,
            store=store,
            queue=queue,
            staging=staging,
            store_threads=store_threads,
            staging_threads=staging_threads,
            max_body=settings.max_upload,
            metrics=services.metrics,
            traces=services.traces,
        ),
    )
    app.add_route(f"{API}/downloads/{{first}}", downloads)
    app.add_route(f"{API}/downloads/{{first}}/{{second}}", downloads)
    return app
