"""Answers: headers, errors and data, with the statuses that `frontend.errors` gives them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from polytope_server.asgi_server import SECURITY_HEADERS
from polytope_server.errors import (
    BodyTooLarge,
    CollectionNotFound,
    Conflict,
    InvalidRequest,
    KeyNotFound,
    LimitReached,
    NotAuthenticated,
    NotAuthorized,
    NotSupported,
    PageNotFound,
    RequestNotFound,
    ResultGone,
    ResultNotFound,
    UnsupportedMediaType,
    UserError,
)
from polytope_server.frontend.answers import RETRY_AFTER_S
from polytope_server.frontend.errors import RETRY_LATER_S, STATUS
from polytope_server.frontend.middleware import EXPOSED_HEADERS
from polytope_server.frontend.openapi.schemas import EXAMPLE_BASE, EXAMPLE_ID, Json, ref

JSON: Final = "application/json"

WHEN: Final[Mapping[type[UserError], tuple[str, str]]] = {
    InvalidRequest: (
        "What was sent is not acceptable; the message says what would be right.",
        "The request body has no 'verb'; use retrieve or archive.",
    ),
    LimitReached: (
        "You have as many unfinished requests as this server allows.",
        "You have 400 unfinished requests and may have 400; wait for some of them, or revoke them.",
    ),
    NotAuthenticated: (
        "No credentials, or none that were accepted.",
        "The credentials were not accepted.",
    ),
    NotAuthorized: (
        "You have no role for this collection.",
        "User joe may not use collection secret.",
    ),
    RequestNotFound: (
        "There is no such request, or it is somebody else's; both look the same.",
        f"Request {EXAMPLE_ID} not found",
    ),
    KeyNotFound: (
        "There is no such API key, or it is somebody else's; both look the same.",
        "There is no such API key of yours.",
    ),
    CollectionNotFound: (
        "There is no collection of that name.",
        'Collection "forecast" not found',
    ),
    PageNotFound: ("There is nothing at this path.", "There is nothing at /api/v2."),
    ResultNotFound: (
        "This server never gave out that link, or the request has no data.",
        "This is not a download link of this server.",
    ),
    Conflict: (
        "The request holds other data already, or takes none any more.",
        "This request already holds other data.",
    ),
    ResultGone: (
        "The result has been removed, or the link is too old.",
        "The result of this request has been removed; submit it again.",
    ),
    BodyTooLarge: ("The body is too large.", "The body is larger than 1048576 bytes."),
    UnsupportedMediaType: (
        "The body is not declared as JSON.",
        "Send the request as application/json.",
    ),
    NotSupported: (
        "This server does not do that. Trying again will not help.",
        "The collection forecasts does not archive.",
    ),
}
"""For each error: when it happens, and what its message is like."""

_LOCATION: Final = {
    "description": "An absolute URL.",
    "required": True,
    "schema": {"type": "string", "format": "uri"},
    "example": f"{EXAMPLE_BASE}/api/v1/requests/{EXAMPLE_ID}",
}


def _header(description: str, schema: Json, *, required: bool = True) -> Json:
    return {"description": description, "required": required, "schema": schema}


_OWN_HEADERS: Final[Mapping[str, Json]] = {
    "Location": _LOCATION,
    "Retry-After": _header(
        "Seconds after which to ask again.",
        {"type": "integer", "enum": [RETRY_AFTER_S, RETRY_LATER_S]},
    ),
    "WWW-Authenticate": _header(
        "One challenge for each scheme that is accepted.", {"type": "string", "minLength": 1}
    ),
    "Allow": _header("The methods of this path.", {"type": "string", "minLength": 1}),
    "Accept-Ranges": _header("Parts can be asked for.", {"type": "string", "const": "bytes"}),
    "Content-Disposition": _header(
        "A name for the file: the id and `.grib`, `.covjson` or `.bin`.",
        {"type": "string", "pattern": '^attachment; filename="[^"]+"$'},
    ),
    "Content-Length": _header("Always told, and true.", {"type": "integer", "minimum": 0}),
    "Content-Range": _header(
        "Which bytes these are, of how many.",
        {"type": "string", "pattern": r"^bytes ([0-9]+-[0-9]+|\*)/[0-9]+$"},
    ),
    "ETag": _header(
        "Changes with the data; for `If-Range`.", {"type": "string", "pattern": '^"[0-9a-f]{64}"$'}
    ),
    "Repr-Digest": _header(
        "SHA-256 of the whole data, also with a part of them (RFC 9530).",
        {"type": "string", "pattern": "^sha-256=:[A-Za-z0-9+/]{43}=:$"},
    ),
    "Content-Security-Policy": _header(
        "The page loads nothing from elsewhere.", {"type": "string", "minLength": 1}
    ),
    **{
        name: _header("On every answer.", {"type": "string", "const": value})
        for name, value in SECURITY_HEADERS
    },
}

_CORS_HEADERS: Final[Mapping[str, Json]] = {
    "Access-Control-Allow-Origin": _header(
        "To requests with an `Origin` that is allowed.", {"type": "string"}, required=False
    ),
    "Access-Control-Expose-Headers": _header(
        "What scripts of that origin may read.",
        {"type": "string", "const": ", ".join(EXPOSED_HEADERS)},
        required=False,
    ),
}

_PREFLIGHT_HEADERS: Final[Mapping[str, Json]] = {
    name: _header(description, {"type": "string"}, required=False)
    for name, description in {
        "Access-Control-Allow-Methods": "To a preflight, in place of `Allow`: the methods.",
        "Access-Control-Allow-Headers": "To a preflight: the headers that it asks for.",
        "Access-Control-Max-Age": "To a preflight: for how many seconds it need not be repeated.",
    }.items()
}


class Responses:
    """Makes answers. With *cors*, those of a server that lets pages of another origin call it."""

    def __init__(self, *, cors: bool) -> None:
        self._cors = cors

    def headers(self) -> Json:
        """For the components."""
        return {**_OWN_HEADERS, **({**_CORS_HEADERS, **_PREFLIGHT_HEADERS} if self._cors else {})}

    def answer(
        self, description: str, content: Json | None = None, *, headers: Iterable[str] = ()
    ) -> Json:
        """One answer, with the headers that every answer has, and these."""
        names = [*headers, *(name for name, _ in SECURITY_HEADERS)]
        if self._cors:
            names += _CORS_HEADERS
        response: Json = {
            "description": description,
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        }
        if content is not None:
            response["content"] = content
        return response

    def json(
        self, description: str, *schemas: str, headers: Sequence[str] = (), example: Any = None
    ) -> Json:
        """A JSON body of one of these schemas."""
        schema = ref(schemas[0]) if len(schemas) == 1 else {"oneOf": [ref(s) for s in schemas]}
        media: Json = {"schema": schema}
        if example is not None:
            media["example"] = example
        return self.answer(description, {JSON: media}, headers=headers)

    def options(self) -> Json:
        """The answer to OPTIONS."""
        response = self.answer("The methods of this path. No body.", headers=["Allow"])
        if self._cors:
            for name in _PREFLIGHT_HEADERS:
                response["headers"][name] = {"$ref": f"#/components/headers/{name}"}
            # a preflight is told the methods otherwise
            response["headers"]["Allow"] = {**_OWN_HEADERS["Allow"], "required": False}
        return response

    def errors(self, *errors: type[UserError], **more: str) -> Json:
        """What can go wrong, by status; more to say about one is told as ``status_400=...``.

        What may happen to any call is added: 500, and 503 while a back-end is away.
        """
        found: dict[str, list[type[UserError]]] = {}
        for error in errors:
            found.setdefault(STATUS[error][:3], []).append(error)
        said: Json = {}
        for status, causes in sorted(found.items()):
            texts = [WHEN[error][0] for error in causes]
            if (extra := more.pop(f"status_{status}", None)) is not None:
                texts.append(extra)
            said[status] = self._error(
                " ".join(texts),
                {error.__name__: WHEN[error][1] for error in causes},
                headers=["WWW-Authenticate"] if NotAuthenticated in causes else [],
            )
        if more:
            raise ValueError(f"nothing has the status {', '.join(more)}")
        return {**said, "500": self.internal_error(), "503": self.unavailable()}

    def internal_error(self) -> Json:
        return self._error(
            "A fault of ours. The message has a number to quote; the log has the whole story.",
            {"Fault": "Internal error; this is not your fault. Please quote 3f0c9a7b1d24."},
        )

    def unavailable(self) -> Json:
        return self._error(
            "A server that this one needs is away. Nothing was stored.",
            {
                "Away": "The service is temporarily unavailable; nothing was stored. "
                "Please try again later."
            },
            headers=["Retry-After"],
        )

    def out_of_range(self) -> Json:
        return self._error(
            "The range begins behind the end of the data.",
            {"Range": "The requested range is outside the data of 1028 bytes."},
            headers=["Accept-Ranges", "Content-Range"],
        )

    def _error(
        self, description: str, examples: Mapping[str, str], *, headers: Sequence[str] = ()
    ) -> Json:
        return self.answer(
            description,
            {
                JSON: {
                    "schema": ref("Error"),
                    "examples": {
                        name: {"value": {"message": text}} for name, text in examples.items()
                    },
                }
            },
            headers=headers,
        )
