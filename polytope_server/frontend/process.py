"""The frontend as a process of its own: the application on gunicorn."""

import functools
import logging
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from polytope_server.asgi_server import listen_patiently, serve
from polytope_server.authentication.identity import Identity
from polytope_server.authentication.sealed import Secret
from polytope_server.caching import Cache
from polytope_server.config.files import ConfigFiles
from polytope_server.config.model import Choice, Config
from polytope_server.config.realms import realms
from polytope_server.frontend.app import Application, Services, create_app
from polytope_server.frontend.links import SharedSecret, signer
from polytope_server.frontend.policy import Policy
from polytope_server.frontend.urls import PublicUrls
from polytope_server.lifecycle import Hangup, Stop, open_chosen, open_traces
from polytope_server.observability.families import FRONTEND
from polytope_server.observability.health import LateChecks
from polytope_server.observability.metrics import Metrics
from polytope_server.observability.siblings import SharedListener
from polytope_server.reloading import Build, Reload, Snapshot
from polytope_server.request_store import RequestStore


def run(config: Config, files: ConfigFiles, hangup: Hangup) -> None:
    """Serve until SIGTERM, then finish what is being answered.

    Raises:
        ConfigurationError: it cannot start.
    """
    settings = config.frontend
    urls = PublicUrls(
        public_url=settings.public_url,
        proxy_support=settings.proxy_support,
        bind_to=settings.bind_to,
        port=settings.port,
    )
    stop = Stop()
    choices = {
        "request_store": config.request_store,
        "queue": config.queue,
        "staging": config.staging,
        "caching": config.caching,
    }
    # here, so that mistakes are told at once
    cache: Cache = _opened(choices, stop=stop)["caching"]
    # Here changes are found, checked, and kept for worker processes to come, which say that it is done.
    ours = Reload(files, hangup, config, _policy(cache), process=FRONTEND, success=logging.DEBUG)

    def make_app(listener: SharedListener) -> Application:
        # Called in gunicorn's worker process: connections and threads do not survive a fork.
        metrics = Metrics(FRONTEND)
        checks = LateChecks("request_store", "queue", "staging")
        listener.answer(checks, metrics)
        backends = _opened(choices, stop=stop, metrics=metrics)
        for name in checks:
            checks.opened(name, backends[name].ping)
        store: RequestStore = backends["request_store"]
        cache: Cache = backends["caching"]
        secret = _secret(config, store, stop)
        reload = Reload(
            files,
            hangup,
            ours.config,
            _policy(cache, store, metrics, secret=secret),
            process=FRONTEND,
            looks=False,
            caution=logging.DEBUG,
        )
        services = Services(
            store=store,
            queue=backends["queue"],
            staging=backends["staging"],
            cache=cache,
            policy=reload.current,
            metrics=metrics,
            signer=signer(secret),
            traces=open_traces(config.tracing, process=FRONTEND),
        )
        reload.start()
        return create_app(services, settings, urls)

    sockets: Sequence[socket.socket] = ()
    if settings.metrics_port is not None:
        sockets = listen_patiently(settings.metrics_bind_to, settings.metrics_port)
    with SharedListener(sockets, processes=settings.processes) as listener:
        serve(
            functools.partial(make_app, listener),
            bind_to=settings.bind_to,
            port=settings.port,
            processes=settings.processes,
            max_connections=settings.max_connections,
            idle_timeout_s=settings.idle_timeout,
            graceful_timeout_s=settings.graceful_timeout,
            on_ready=None,
            each_turn=ours.turn,
        )


def _opened(
    choices: Mapping[str, Choice | None], *, stop: Stop, metrics: Metrics | None = None
) -> Mapping[str, Any]:
    """All of them, opened at the same time: each may look some seconds for a server that is away."""

    def opened(abstraction: str) -> Any:
        return open_chosen(abstraction, choices[abstraction], stop=stop, metrics=metrics)

    with ThreadPoolExecutor(len(choices)) as threads:
        return dict(zip(choices, threads.map(opened, choices), strict=True))


def _policy(
    cache: Cache,
    store: RequestStore | None = None,
    metrics: Metrics | None = None,
    *,
    secret: Secret | None = None,
) -> Build[Policy]:
    def build(snapshot: Snapshot, before: Policy | None) -> Policy:
        api_keys = snapshot.config.api_keys
        identity = Identity.build(
            realms(snapshot.config),
            cache,
            before=before.identity if before else None,
            metrics=metrics,
            keys=store if api_keys.enabled else None,
            secret=secret,
        )
        return Policy(identity=identity, collections=snapshot.collections, api_keys=api_keys)

    return build


def _secret(config: Config, store: RequestStore, stop: Stop) -> Secret:
    """The configured key of download links, or the one that all frontends of this store share.

    Besides links it signs what frontends with a shared cache tell each other.
    """
    key = config.frontend.signing_key
    if key is None:
        return SharedSecret(store, stop=stop)
    secret = key.get_secret_value().encode()
    return lambda: secret
