"""Is it alive, is it ready; open to all."""

import falcon
from falcon.asgi import Request, Response

from polytope_server.frontend.threads import Threads
from polytope_server.observability.health import Readiness


class Test:
    """``/api/v1/test``: depends on nothing."""

    open_to_all = True

    async def on_get(self, _req: Request, resp: Response) -> None:
        resp.media = {"message": "Polytope server is alive"}

    on_head = on_get


class Healthz:
    """``/healthz``: the process lives."""

    open_to_all = True

    async def on_get(self, _req: Request, resp: Response) -> None:
        resp.media = {"status": "alive"}

    on_head = on_get


class Readyz:
    """``/readyz``: which back-ends answer; names and states only."""

    open_to_all = True

    def __init__(self, readiness: Readiness, threads: Threads) -> None:
        self._readiness, self._threads = readiness, threads

    async def on_get(self, _req: Request, resp: Response) -> None:
        ready, states = await self._threads.run(self._readiness.look)
        resp.status = falcon.HTTP_200 if ready else falcon.HTTP_503
        resp.media = dict(states)

    on_head = on_get
