"""How many status polls a frontend answers per second of CPU, beside the same app's constant answer."""

import asyncio
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import requests as http
from deployed import basic
from falcon.asgi import Request as HttpRequest
from falcon.asgi import Response

from benchmarks.client import Client
from benchmarks.options import Options, main
from benchmarks.table import Figure, ratio_at_least, show
from benchmarks.target import USERNAME, Target, cpu_seconds, embedded, free_port, target
from polytope_server.asgi_server import serve
from polytope_server.authentication.identity import Identity
from polytope_server.collection import collections_of
from polytope_server.config.loading import load
from polytope_server.frontend.app import Application, Services, create_app
from polytope_server.frontend.policy import Policy
from polytope_server.frontend.urls import PublicUrls
from polytope_server.lifecycle import Stop, open_chosen
from polytope_server.observability.logging import configure
from polytope_server.observability.metrics import Metrics
from polytope_server.reloading import Current
from polytope_server.signatures import SignedLinks

CONNECTIONS = 64
RUN_S = 4.0
CONSTANT = "/constant"


def measure(options: Options) -> bool:
    """Budget: at least 60 % of the constant answer. Long poll is off; the login is cached."""
    polls: list[float] = []
    constant: list[float] = []
    with _served(options) as (server, pid):
        client = Client(server.url, server.authorization)
        ids = [client.submit(server.collection("dummy"), "1") for _ in range(CONNECTIONS)]
        kinds = [([f"/requests/{request_id}" for request_id in ids], polls)]
        if pid is not None:
            kinds.append(([CONSTANT] * CONNECTIONS, constant))
        for paths, _ in kinds:
            asyncio.run(_load(server, client, paths, seconds=1.0))
        for _ in range(options.runs):
            for paths, rates in kinds:
                before, begin = cpu_seconds(pid) if pid else 0.0, time.perf_counter()
                count = asyncio.run(_load(server, client, paths, seconds=RUN_S))
                spent = cpu_seconds(pid) - before if pid else time.perf_counter() - begin
                rates.append(count / spent)
        for request_id in ids:
            client.revoke(request_id)
        client.close()
    per = "per second of the frontend's CPU" if constant else "per second"
    return show(
        f"polling: {CONNECTIONS} connections, a request each, Basic login, long poll off, {RUN_S:g} s a run",
        [
            Figure(
                name=f"polls {per}",
                unit="/s",
                runs=polls,
                reference=constant,
                reference_name="constant answer behind the same middleware",
                budget=ratio_at_least(0.6) if constant else None,
            )
        ],
        file=options.json,
    )


@contextlib.contextmanager
def _served(options: Options) -> Iterator[tuple[Target, int | None]]:
    """A frontend with a constant answer beside the others, and its process; or a deployment's frontend.

    There is no broker: what is submitted waits.
    """
    if options.config:
        with target(options) as server:
            yield server, None
        return
    with tempfile.TemporaryDirectory(prefix="polytope-bench-") as temporary:
        directory = Path(temporary)
        port, password = free_port(), os.urandom(8).hex()
        tree = embedded(directory, port=port, password=password)
        tree["frontend"] |= {"long_poll": 0}
        file = directory / "config.yaml"
        file.write_text(json.dumps(tree))
        files = [file, *options.back_ends]
        with (directory / "frontend.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.polling", "--serve", *map(str, files)],
                stdout=log,
                stderr=log,
            )
        url = f"http://127.0.0.1:{port}"
        try:
            _until_ready(url)
            yield (
                Target(
                    url=url,
                    authorization=basic(USERNAME, password).authorization,
                    collections={"dummy": "dummy"},
                    config=load(files, strict=True, environ={}).config,
                ),
                process.pid,
            )
        finally:
            process.terminate()
            process.wait(timeout=30)


def _until_ready(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(http.ConnectionError):
            if http.get(f"{url}/readyz", timeout=5).ok:
                return
        if time.monotonic() > deadline:
            raise AssertionError("the frontend was not ready within 30 seconds")
        time.sleep(0.1)


async def _load(server: Target, client: Client, paths: Sequence[str], *, seconds: float) -> int:
    """Answers that came on all connections, one for each path, one after another on each."""
    host, _, port = server.url.rpartition("//")[2].partition(":")
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(
            functools.partial(_Caller, _call(host, path, client)), host, int(port or 80)
        )
        for path in paths
    ]
    callers = [caller for _, caller in made]
    for caller in callers:
        caller.call()
    await asyncio.sleep(seconds)
    for transport, _ in made:
        transport.close()
    if broken := [caller for caller in callers if not caller.count]:
        raise AssertionError(f"{len(broken)} connections got no answer: {broken[0].said[:300]!r}")
    return sum(caller.count for caller in callers)


def _call(host: str, path: str, client: Client) -> bytes:
    return (
        f"GET /api/v1{path} HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: {client.authorization}\r\n\r\n"
    ).encode()


class _Caller(asyncio.Protocol):
    """Makes the same call again as soon as the answer is whole."""

    def __init__(self, call: bytes) -> None:
        self._call = call
        self.count = 0
        self.said = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def call(self) -> None:
        self._transport.write(self._call)

    def data_received(self, data: bytes) -> None:
        self.said += data
        head, end, body = self.said.partition(b"\r\n\r\n")
        if not end:
            return
        _, _, rest = head.lower().partition(b"content-length:")
        if len(body) < int(rest.partition(b"\r\n")[0]):
            return
        # a deployment may have done the request by now
        if not head.startswith((b"HTTP/1.1 202", b"HTTP/1.1 303", b"HTTP/1.1 200")):
            self._transport.abort()
            return
        self.said = b""
        self.count += 1
        self.call()


class _Constant:
    """What a poll of a waiting request says, without asking anybody."""

    async def on_get(self, req: HttpRequest, resp: Response) -> None:
        resp.status = "202 Accepted"
        resp.location = f"http://127.0.0.1/api/v1/requests/{req.context.user.id}"
        resp.retry_after = 5
        resp.media = {"message": "Request queued; number 1 in line", "status": "queued"}


def _serve(files: Sequence[str]) -> None:
    config = load(files, strict=True, environ={}).config
    settings = config.frontend
    configure(config.logging, process="frontend")

    def make_app() -> Application:
        stop = Stop()
        cache = open_chosen("caching", config.caching, stop=stop)
        policy = Policy(
            identity=Identity.build(config.authentication, cache),
            collections=collections_of(config),
        )
        links = SignedLinks(os.urandom(32))
        services = Services(
            store=open_chosen("request_store", config.request_store, stop=stop),
            queue=open_chosen("queue", config.queue, stop=stop),
            staging=open_chosen("staging", config.staging, stop=stop),
            cache=cache,
            policy=Current(policy),
            metrics=Metrics(),
            signer=lambda: links,
        )
        urls = PublicUrls(
            public_url=None, proxy_support=False, bind_to=settings.bind_to, port=settings.port
        )
        app = create_app(services, settings, urls)
        app.add_route(f"/api/v1{CONSTANT}", _Constant())
        return app

    serve(
        make_app,
        bind_to=settings.bind_to,
        port=settings.port,
        max_connections=settings.max_connections,
        idle_timeout_s=settings.idle_timeout,
        graceful_timeout_s=settings.graceful_timeout,
        on_ready=None,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        _serve(sys.argv[2:])
    else:
        main(__doc__, measure)
