"""The API document, and the page that shows it: Swagger UI as its package ships it, from here alone."""

import functools
from collections.abc import Mapping, Sequence
from typing import Final

from falcon import MEDIA_JSON
from falcon.asgi import Request, Response
from swagger_ui_bundle import swagger_ui_path

from polytope_server.config.model import FrontendSection
from polytope_server.errors import PageNotFound
from polytope_server.frontend.openapi import document
from polytope_server.frontend.urls import PublicUrls

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Polytope REST API</title>
<link rel="stylesheet" href="ui/swagger-ui.css">
<link rel="stylesheet" href="ui/index.css">
<link rel="icon" type="image/png" sizes="32x32" href="ui/favicon-32x32.png">
</head>
<body>
<noscript>This page needs JavaScript; <a href="openapi.json">the document</a> does not.</noscript>
<div id="swagger-ui"></div>
<script src="ui/swagger-ui-bundle.js"></script>
<script src="ui/start.js"></script>
</body>
</html>
"""
# How Swagger UI is told its settings; all else is the package's own.
_START: Final = """\
SwaggerUIBundle({
  url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,
  defaultModelsExpandDepth: 0, displayRequestDuration: true
});
"""
# Swagger UI's icons are data: URLs; its styles are set by the bundle.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_FILES: Final[Mapping[str, str]] = {
    "favicon-32x32.png": "image/png",
    "index.css": "text/css; charset=utf-8",
    "start.js": "text/javascript; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
}
"""What the page loads, with its media types."""


class Page:
    """``/``: the document for people."""

    open_to_all = True

    async def on_get(self, _req: Request, resp: Response) -> None:
        resp.content_type = "text/html; charset=utf-8"
        resp.set_header("Content-Security-Policy", _POLICY)
        resp.text = _PAGE

    on_head = on_get


class PageFile:
    """``/ui/{name}``: these files, and no others of the package."""

    open_to_all = True

    def __init__(self) -> None:
        self._contents = {
            name: _START.encode() if name == "start.js" else (swagger_ui_path / name).read_bytes()
            for name in PAGE_FILES
        }

    async def on_get(self, req: Request, resp: Response, name: str) -> None:
        content = self._contents.get(name)
        if content is None:
            raise PageNotFound(f"There is nothing at {req.path}.")
        resp.content_type = PAGE_FILES[name]
        resp.data = content

    on_head = on_get


class Document:
    """``/openapi.json``, and ``/api/v1/openapi``, which clients' documentation names."""

    open_to_all = True

    def __init__(self, settings: FrontendSection, urls: PublicUrls) -> None:
        self._urls = urls
        self._document = functools.partial(document, settings, page_files=PAGE_FILES)

    async def on_get(self, req: Request, resp: Response) -> None:
        resp.content_type = MEDIA_JSON
        policy = req.context.policy
        resp.media = self._document(
            schemes=policy.identity.schemes,
            servers=self._servers(req),
            api_keys=policy.api_keys,
        )

    on_head = on_get

    def _servers(self, req: Request) -> Sequence[Mapping[str, str]]:
        """Relative to this document first, for who sees the server by another name."""
        up = "/".join([".."] * (req.path.count("/") - 1)) or "."
        return [
            {"url": up, "description": "Where this document was found"},
            {"url": self._urls.base(req), "description": "The public address"},
        ]
