"""The URLs that clients are given: absolute, and never made from what a client sent."""

import ipaddress
import logging
from typing import Final

from falcon.asgi import Request

from polytope_server.errors import ConfigurationError

logger = logging.getLogger(__name__)

API: Final = "/api/v1"


class PublicUrls:
    """Absolute URLs below the public base of this server.

    Args:
        public_url: the base that is configured, such as ``https://data.example.org/prefix``.
        proxy_support: without one, believe one hop of ``X-Forwarded-Proto`` and ``X-Forwarded-Host``. Where
            the proxy does not say the host, URLs are given without one: relative ones, which most clients
            understand, and which are never wrong.
        bind_to, port: without either, where we listen, if that is a loopback address.

    Raises:
        ConfigurationError: there is no way to know how clients reach this server.
    """

    def __init__(
        self, *, public_url: str | None, proxy_support: bool, bind_to: str, port: int
    ) -> None:
        self._proxy_support = public_url is None and proxy_support
        self._has_complained = False
        host = f"[{bind_to}]" if ":" in bind_to else bind_to
        self._base = (public_url or f"http://{host}:{port}").rstrip("/")
        if public_url is None and not proxy_support and not _is_loopback(bind_to):
            raise ConfigurationError(
                f"frontend.public_url: this key is missing; with frontend.bind_to {bind_to!r} it must "
                "say how clients reach this server, such as https://data.example.org"
            )

    def request(self, req: Request, request_id: str) -> str:
        return f"{self.base(req)}{API}/requests/{request_id}"

    def upload(self, req: Request, request_id: str) -> str:
        return f"{self.base(req)}{API}/uploads/{request_id}"

    def download(self, req: Request, request_id: str, query: str) -> str:
        return f"{self.base(req)}{API}/downloads/{request_id}?{query}"

    def base(self, req: Request) -> str:
        """Where all of this server is found, without a slash at the end."""
        if self._proxy_support:
            host = _last(req.get_header("X-Forwarded-Host"))
            scheme = _last(req.get_header("X-Forwarded-Proto")) or "https"
            if host and scheme in ("http", "https") and not set(host) & set("/?#@\\ "):
                return f"{scheme}://{host}"
            self._complain()
            return ""
        return self._base

    def _complain(self) -> None:
        """Once: it is so with every request, or with those of somebody who comes around the proxy."""
        if not self._has_complained:
            self._has_complained = True
            logger.error(
                "a request came without a usable X-Forwarded-Host, so its client was given URLs without a "
                "host, which not all clients understand: have the proxy send it, or set frontend.public_url"
            )


def _last(header: str | None) -> str:
    """What the nearest proxy said; anything before it may come from the client."""
    return (header or "").rpartition(",")[2].strip()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
