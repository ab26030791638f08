"""Links to results: anybody who has one may download, until it ends."""

import secrets
import threading
import time
from collections.abc import Callable
from typing import Final

from falcon.asgi import Request as HttpRequest

from polytope_server.errors import BackendUnavailable
from polytope_server.frontend.urls import PublicUrls
from polytope_server.lifecycle import Stop, patiently
from polytope_server.request import Request, download_name
from polytope_server.request_store import RequestStore
from polytope_server.signatures import SignedLinks
from polytope_server.staging import Staging

_LONGEST_PAUSE_S: Final = 1.0

Signer = Callable[[], SignedLinks]
"""May raise `BackendUnavailable`; never blocks."""


class SharedSecret:
    """The secret that all frontends of one store share, None until the store has told it. Never blocks."""

    def __init__(self, store: RequestStore, *, stop: Stop) -> None:
        self._store, self._stop = store, stop
        self._secret: bytes | None = None
        threading.Thread(target=self._learn, name="signing key", daemon=True).start()

    def __call__(self) -> bytes | None:
        return self._secret

    def _learn(self) -> None:
        secret = patiently(
            lambda: self._store.shared_secret("download links", secrets.token_urlsafe(32)),
            stop=self._stop,
            what="request_store",
            longest_pause_s=_LONGEST_PAUSE_S,
        )
        self._secret = secret.encode()


def signer(secret: Callable[[], bytes | None]) -> Signer:
    """Signs with a secret as soon as it is known."""

    def signed_links() -> SignedLinks:
        key = secret()
        if key is None:
            raise BackendUnavailable("The key of download links is not known yet.")
        return SignedLinks(key)

    return signed_links


class Links:
    """Makes and checks them; a new one at each poll, so that they never end before the result does."""

    def __init__(
        self, *, signer: Signer, staging: Staging, urls: PublicUrls, expiry_s: float
    ) -> None:
        self._signer, self._staging, self._urls = signer, staging, urls
        self._expiry_s = int(expiry_s)

    def download(self, req: HttpRequest, request: Request) -> str:
        """Where the result of a processed request can be had.

        Raises: BackendUnavailable.
        """
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
        query = self._signer().query(request.id, expires_at=int(time.time()) + self._expiry_s)
        return self._urls.download(req, request.id, query)

    def check(self, request_id: str, req: HttpRequest) -> None:
        """Return if the link is one of ours and still good.

        Raises:
            ResultNotFound, ResultGone, BackendUnavailable
        """
        self._signer().check(request_id, req.params, now=time.time())
