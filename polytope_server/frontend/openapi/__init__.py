"""The API as an OpenAPI 3.1 document, made of the tables and limits that the code itself uses."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from polytope_server.config.api_keys import ApiKeysSection
from polytope_server.config.model import FrontendSection
from polytope_server.frontend.openapi.paths import TAGS, Paths
from polytope_server.frontend.openapi.responses import Responses
from polytope_server.frontend.openapi.schemas import SCHEMAS, Json

_ABOUT: Final = """\
Weather and climate archives are hypercubes of petabytes. Nobody downloads them: you ask for a slice, and \
this server fetches it and gives you a link.

1. `POST` a request to a *collection*. It is checked, kept, and answered with **202** and a `Location`.
2. `GET` that `Location` until the answer is **303**. Its own `Location` is a link to the data.
3. `GET` the link: the bytes, without a login. With `curl --location`, steps 2 and 3 are one.

To archive, submit with the verb `archive`, and `POST` the data to the `Location` of the answer.

**Programs** need to know none of this: `polytope-client` and earthkit-data do it for them.

**Login.** All calls need credentials, except links to data and those that say they are open. The header \
`Authorization` may hold several, separated by commas; the first that is accepted counts.

**Errors** have one shape, `{"message": "..."}`, always as JSON. A request that has *failed* is told with \
400, never with 5xx. A path that does not exist is 404; a method that a path does not have is 405, with \
`Allow`; where a login is needed, 401 comes first. What is no HTTP, or has headers beyond all measure, is \
refused with 400, 414, 431 or 501 before anybody looks at it.

**Paths.** A doubled slash, or one at the end, does no harm.
"""
_NO_CORS: Final = """
**Other web pages** may not call this server from a browser (CORS).
"""
_CORS: Final = """
**Other web pages** may call this server from a browser (CORS) if they come from {origin}. Preflights are \
answered without a login. Cookies are never used.
"""

_KNOWN_SCHEMES: Final[Mapping[str, Json]] = {
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "Name and password, as `curl --user NAME:PASSWORD` sends them.",
    },
    "bearer": {"type": "http", "scheme": "bearer", "description": "A token or key."},
}


def document(
    settings: FrontendSection,
    *,
    schemes: Sequence[str],
    servers: Sequence[Mapping[str, str]],
    page_files: Mapping[str, str],
    api_keys: ApiKeysSection,
) -> dict[str, Any]:
    """The document about a server with these settings.

    Args:
        schemes: of the Authorization header, as they are accepted.
        servers: url and description of where this server is; the first is the one to try.
        api_keys: whether users may make keys, and for how long.
        page_files: what the page at ``/`` is made of: name to media type.
    """
    cors = settings.allow_origin is not None
    responses = Responses(cors=cors)
    security = {scheme: _security_scheme(scheme) for scheme in schemes}
    paths = Paths(
        settings,
        responses,
        security=[{scheme: []} for scheme in security],
        page_files=page_files,
        api_keys=api_keys,
    )
    origin = "anywhere" if settings.allow_origin == "*" else settings.allow_origin
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Polytope REST API",
            "summary": "Slices of weather and climate hypercubes.",
            "version": version("polytope-server"),
            "description": _ABOUT + (_CORS.format(origin=origin) if cors else _NO_CORS),
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [dict(server) for server in servers],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths.all(),
        "components": {
            "schemas": dict(SCHEMAS),
            "headers": responses.headers(),
            "securitySchemes": security,
        },
    }


def _security_scheme(scheme: str) -> Json:
    known = _KNOWN_SCHEMES.get(scheme.lower())
    if known is not None:
        return known
    return {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": f"`{scheme}` and the credentials, with a blank between them.",
    }
