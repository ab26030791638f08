"""Who may: whoever has the token anything, whoever has a signed link to an object that object."""

import hmac
from collections.abc import Callable, Mapping
from typing import Final

from falcon.asgi import Request, Response

from polytope_server.errors import NotAuthenticated, NotAuthorized, ResultNotFound
from polytope_server.signatures import SIGNATURE, SignedLinks

_SCHEME: Final = "bearer"


class Access:
    """Before any resource, unless its class says ``open_to_all``."""

    def __init__(self, *, token: str, links: SignedLinks, clock: Callable[[], float]) -> None:
        self._token = token.encode()
        self._links, self._clock = links, clock

    async def process_resource(
        self, req: Request, resp: Response, resource: object, params: Mapping[str, str]
    ) -> None:
        """Sets ``req.context.link``: what a signed link says, or nothing."""
        req.context.link = {}
        if getattr(resource, "open_to_all", False) or self._has_token(req):
            return
        if (
            getattr(resource, "open_to_links", False)
            and req.method in ("GET", "HEAD")
            and SIGNATURE in req.params
        ):
            req.context.link = self._link(params["name"], req)
            return
        resp.set_header("WWW-Authenticate", "Bearer")
        raise NotAuthenticated("A token or a signed link is needed.")

    def _link(self, name: str, req: Request) -> Mapping[str, str]:
        try:
            return self._links.check(name, req.params, now=self._clock())
        except ResultNotFound as exc:
            raise NotAuthorized("This link was not signed by this store.") from exc

    def _has_token(self, req: Request) -> bool:
        scheme, _, token = (req.get_header("Authorization") or "").partition(" ")
        return scheme.lower() == _SCHEME and hmac.compare_digest(
            token.strip().encode("utf-8", "replace"), self._token
        )
