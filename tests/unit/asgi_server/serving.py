"""A small application on the real server, as a process of its own, for `test_asgi_server.py`."""

import asyncio
import hashlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import falcon
from falcon.asgi import App, Request, Response

from polytope_server.asgi_server import serve
from polytope_server.errors import BackendUnavailable, ConfigurationError

CHUNK = b"x" * (1 << 20)


class Lifespan:
    async def process_startup(self, _scope: object, _event: object) -> None:
        if MODE == "startup-fails":
            raise BackendUnavailable("the startup cannot go on")

    async def process_shutdown(self, _scope: object, _event: object) -> None:
        sys.stderr.write("lifespan ended\n")
        sys.stderr.flush()


class Hello:
    async def on_get(self, _req: Request, resp: Response) -> None:
        resp.media = {"pid": os.getpid(), "parent": os.getppid()}


class Slow:
    """Chunks with pauses; says on stderr when the client has gone."""

    async def on_get(self, req: Request, resp: Response) -> None:
        count = req.get_param_as_int("count", default=10)
        pause_s = req.get_param_as_float("pause", default=0.1)
        resp.set_stream(self._chunks(count, pause_s), count * len(CHUNK))

    async def _chunks(self, count: int, pause_s: float) -> AsyncIterator[bytes]:
        sent = 0
        try:
            for _ in range(count):
                await asyncio.sleep(pause_s)
                yield CHUNK
                sent += 1
        finally:
            if sent < count:
                sys.stderr.write("stream closed early\n")
                sys.stderr.flush()


class Digest:
    async def on_post(self, req: Request, resp: Response) -> None:
        digest, size = hashlib.sha256(), 0
        if pause_s := req.get_param_as_float("pause"):
            await asyncio.sleep(pause_s)
        async for part in req.stream:
            digest.update(part)
            size += len(part)
        resp.media = {"size": size, "sha256": digest.hexdigest()}
        if req.content_length is not None and size != req.content_length:
            sys.stderr.write(f"cut at {size}\n")
            sys.stderr.flush()


class Crash:
    async def on_get(self, _req: Request, _resp: Response) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def make_app() -> Any:
    if MODE == "factory-fails":
        raise ConfigurationError("this cannot be made")
    if MODE == "factory-hangs":
        sys.stderr.write("in the factory\n")
        sys.stderr.flush()
        time.sleep(600)
    app: App[Request, Response] = App(middleware=[Lifespan()])
    app.resp_options.media_handlers[falcon.MEDIA_JSON] = falcon.media.JSONHandler()
    for path, resource in {
        "/": Hello(),
        "/slow": Slow(),
        "/digest": Digest(),
        "/crash": Crash(),
    }.items():
        app.add_route(path, resource)
    return app


def ready(host: str, port: int) -> None:
    sys.stdout.write(json.dumps({"host": host, "port": port}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    OPTIONS = json.loads(sys.argv[1])
    MODE = OPTIONS.pop("mode", "")
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    try:
        serve(
            make_app,
            **{
                "bind_to": "127.0.0.1",
                "port": 0,
                "max_connections": 100,
                "idle_timeout_s": 30.0,
                "graceful_timeout_s": 10.0,
                "on_ready": ready,
                **OPTIONS,
            },
        )
    except ConfigurationError as exc:
        sys.stderr.write(f"refused: {exc}\n")
        sys.exit(78)
    finally:
        sys.stderr.write(f"left by {os.getpid()}\n")
