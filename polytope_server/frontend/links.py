"""Links to results: anybody who has one may download, until it ends."""

import time

from falcon.asgi import Request as HttpRequest

from polytope_server.frontend.urls import PublicUrls
from polytope_server.request import Request, download_name
from polytope_server.signatures import SignedLinks
from polytope_server.staging import Staging


class Links:
    """Makes and checks them; a new one at each poll, so that they never end before the result does."""

    def __init__(
        self, *, signer: SignedLinks, staging: Staging, urls: PublicUrls, expiry_s: float
    ) -> None:
        self._signer, self._staging, self._urls = signer, staging, urls
        self._expiry_s = int(expiry_s)

    def download(self, req: HttpRequest, request: Request) -> str:
        """Where the result of a processed request can be had."""
        if request.result is None:
            return ""
        url = self._staging.url(
            request.result.name,
            download_name=download_name(request),
            media_type=request.result.media_type,
            sha256=request.result.sha256,
            expires_s=self._expiry_s,
        )
        if url is not None:
            return url
        query = self._signer.query(request.id, expires_at=int(time.time()) + self._expiry_s)
        return self._urls.download(req, request.id, query)

    def check(self, request_id: str, req: HttpRequest) -> None:
        """Return if the link is one of ours and still good.

        Raises:
            ResultNotFound, ResultGone
        """
        self._signer.check(request_id, req.params, now=time.time())
