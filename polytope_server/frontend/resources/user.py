"""Who one is, and what one may use."""

from falcon.asgi import Request, Response

from polytope_server.frontend.threads import Threads
from polytope_server.request_store import RequestStore


class UserResource:
    """``/api/v1/user``: values are texts, as clients join them."""

    def __init__(self, store: RequestStore, threads: Threads) -> None:
        self._store, self._threads = store, threads

    async def on_get(self, req: Request, resp: Response) -> None:
        count = await self._threads.run(self._store.count, req.context.user.id)
        resp.media = {"live requests": str(count)}

    on_head = on_get


class Collections:
    """``/api/v1/collections``: the names that the user may use."""

    async def on_get(self, req: Request, resp: Response) -> None:
        resp.media = {
            "message": sorted(
                name
                for name, collection in req.context.policy.collections.items()
                if collection.may_use(req.context.user)
            )
        }

    on_head = on_get
