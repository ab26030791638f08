"""The calls: one operation for each method of each route, in the words of their users."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from polytope_server.config.api_keys import ApiKeysSection
from polytope_server.config.model import FrontendSection
from polytope_server.config.section import duration_text
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
from polytope_server.frontend.openapi.responses import JSON, Responses
from polytope_server.frontend.openapi.schemas import EXAMPLE_ID, EXAMPLE_REQUEST, Json, ref
from polytope_server.frontend.resources.keys import NAME_LENGTH
from polytope_server.frontend.submission import KEY_LENGTH
from polytope_server.frontend.urls import API
from polytope_server.request import BINARY, EXTENSIONS, GRIB

TAGS: Final[Mapping[str, str]] = {
    "Requests": "Ask for data, see how it stands, and take it back.",
    "Data": "Download results, upload what is to be archived.",
    "Account": "Who you are here and what you may use.",
    "Health": "Is the server there? Open to all.",
    "Documentation": "This document and its page. Open to all.",
    "Headers only": "`HEAD` works wherever `GET` does and answers the same without the body. "
    "It never waits for an unfinished request.",
    "Methods": "`OPTIONS` tells the methods of a path, and answers the preflights of browsers. "
    "Open to all.",
}

_MD5: Final = "^([0-9A-Fa-f]{32}|[A-Za-z0-9+/]{22}==)$"


def _path_parameter(name: str, description: str, example: str) -> Json:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", "minLength": 1},
        "example": example,
    }


def _header_parameter(name: str, description: str, schema: Json, **more: Any) -> Json:
    return {
        "name": name,
        "in": "header",
        "description": description,
        "schema": {"type": "string", **schema},
        **more,
    }


_REQUEST_ID: Final = _path_parameter(
    "request_id", "The id of a request: the end of its `Location`.", EXAMPLE_ID
)


class Paths:
    """Describes all calls of a server with these settings.

    Args:
        security: what an operation that needs a login says so with.
        page_files: what the page at ``/`` is made of.
    """

    def __init__(
        self,
        settings: FrontendSection,
        responses: Responses,
        *,
        security: Sequence[Json],
        page_files: Mapping[str, str],
        api_keys: ApiKeysSection,
    ) -> None:
        self._settings, self._responses = settings, responses
        self._security, self._page_files = security, page_files
        self._api_keys = api_keys

    def all(self) -> Json:
        """Path to operations, HEAD and OPTIONS included."""
        paths: dict[str, Json] = {
            f"{API}/requests": {"get": self._list()},
            f"{API}/requests/{{name}}": {
                "parameters": [
                    _path_parameter(
                        "name",
                        "The name of a collection, or the id of a request; a collection goes first.",
                        "forecasts",
                    )
                ],
                "post": self._submit(),
                "get": self._poll_or_list(),
                "delete": self._revoke(),
            },
            f"{API}/downloads/{{request_id}}": {
                "parameters": [_REQUEST_ID],
                "get": self._download("download"),
            },
            f"{API}/downloads/{{folder}}/{{request_id}}": {
                "parameters": [
                    _path_parameter("folder", "Anything; it is not looked at.", "default"),
                    _REQUEST_ID,
                ],
                "get": self._download("downloadFromFolder"),
            },
            f"{API}/uploads/{{request_id}}": {
                "parameters": [_REQUEST_ID],
                "post": self._upload(),
                "get": self._poll_upload(),
            },
            f"{API}/user": {"get": self._user()},
            f"{API}/collections": {"get": self._collections()},
            f"{API}/auth/keys": {"post": self._login(), "get": self._keys()},
            f"{API}/auth/keys/{{key_id}}": {
                "parameters": [
                    _path_parameter("key_id", "The id of a key, as it is listed.", EXAMPLE_ID)
                ],
                "get": self._key(),
                "delete": self._revoke_key(),
            },
            f"{API}/test": {"get": self._test()},
            "/healthz": {"get": self._healthz()},
            "/readyz": {"get": self._readyz()},
            "/": {"get": self._page()},
            "/ui/{file}": {
                "parameters": [_path_parameter("file", "The name of a file.", "swagger-ui.css")],
                "get": self._page_file(),
            },
            "/openapi.json": {"get": self._document("openapi")},
            f"{API}/openapi": {"get": self._document("openapiOfVersion1")},
        }
        for path, item in paths.items():
            if "get" in item:
                item["head"] = _head(item["get"])
            item["options"] = {
                "operationId": f"optionsOf{_camel(path)}",
                "tags": ["Methods"],
                "summary": "Which methods there are",
                "security": [],
                "responses": {
                    "200": self._responses.options(),
                    "500": self._responses.internal_error(),
                },
            }
        return paths

    # --- Requests

    def _submit(self) -> Json:
        say = self._responses
        limits = self._settings
        return {
            "operationId": "submit",
            "tags": ["Requests"],
            "summary": "Submit a request to a collection",
            "description": (
                "The request is checked at once; what no datasource of the collection could take is "
                "refused with 400 and the reasons of each. What is accepted is kept, whatever happens "
                "to this server, until it is processed, fails, or is revoked.\n\n"
                "The answer's `Location` is where to ask for it. For an archive request it is where to "
                "upload the data.\n\n"
                "```sh\n"
                "curl --user NAME:PASSWORD --include \\\n"
                '    --json \'{"verb": "retrieve", "request": {"class": "od", "param": "167"}}\' \\\n'
                f"    .../{API.strip('/')}/requests/forecasts\n"
                "```"
            ),
            "security": self._security,
            "parameters": [
                _header_parameter(
                    "Idempotency-Key",
                    "Any text of your choice. Submitting again with the same key gives the first "
                    "request again, so a call whose answer was lost can be repeated.",
                    {"minLength": 1, "maxLength": KEY_LENGTH},
                )
            ],
            "requestBody": {
                "required": True,
                "description": f"JSON in UTF-8, at most {limits.max_request} bytes. `application/json` or "
                "any `application/*+json`.",
                "content": {
                    JSON: {
                        "schema": ref("Submission"),
                        "examples": {
                            "object": {
                                "summary": "A request as an object",
                                "value": {"verb": "retrieve", "request": EXAMPLE_REQUEST},
                            },
                            "text": {
                                "summary": "A request as text",
                                "value": {
                                    "verb": "retrieve",
                                    "request": "class: od\nparam: 167\nstep: [0, 6]\n",
                                },
                            },
                            "archive": {
                                "summary": "Something to archive",
                                "value": {
                                    "verb": "archive",
                                    "request": {"class": "rd", "expver": "0001"},
                                    "url": "",
                                },
                            },
                        },
                    }
                },
            },
            "responses": {
                "202": say.json("Accepted.", "Accepted", headers=["Location", "Retry-After"]),
                **say.errors(
                    NotAuthenticated,
                    NotAuthorized,
                    CollectionNotFound,
                    UnsupportedMediaType,
                    BodyTooLarge,
                    InvalidRequest,
                    LimitReached,
                    NotSupported,
                    status_400=f"At most {limits.max_unfinished} requests of a user may be unfinished.",
                    status_413=f"At most {limits.max_request} bytes.",
                    status_501="No datasource of the collection does what the verb says.",
                ),
            },
        }

    def _poll_or_list(self) -> Json:
        say = self._responses
        return {
            "operationId": "poll",
            "tags": ["Requests"],
            "summary": "How a request stands, or your requests of a collection",
            "description": (
                "With an id: 202 while it is not finished, 303 to the data once they are there, 400 with "
                "the reason if it failed. An archive request ends with 200. "
                f"{self._held()}The 303 can be had again and again, each with a new link.\n\n"
                "With the name of a collection: your requests in it, the oldest first; also if it is not "
                "offered any more."
            ),
            "security": self._security,
            "responses": {
                "200": say.json(
                    "Your requests of the collection; or an archive request that is finished.",
                    "Records",
                    "Archived",
                ),
                **self._unfinished(),
                **self._ready(),
                **say.errors(
                    NotAuthenticated,
                    InvalidRequest,
                    RequestNotFound,
                    status_400="Or the request has failed; the message has the reason.",
                ),
            },
        }

    def _list(self) -> Json:
        say = self._responses
        return {
            "operationId": "listRequests",
            "tags": ["Requests"],
            "summary": "All your requests",
            "security": self._security,
            "responses": {
                "200": say.json("Your requests, the oldest first.", "Records"),
                **say.errors(NotAuthenticated),
            },
        }

    def _revoke(self) -> Json:
        say = self._responses
        return {
            "operationId": "revoke",
            "tags": ["Requests"],
            "summary": "Revoke a request, or all that are unfinished",
            "description": (
                "With an id: the request and its data are removed, whatever its status; what works on it "
                "stops. With `all`: all your requests that are not finished; finished ones stay."
            ),
            "security": self._security,
            "responses": {
                "200": say.json(
                    "Removed.", "Message", example={"message": "Successfully revoked 1 requests"}
                ),
                **say.errors(
                    NotAuthenticated,
                    RequestNotFound,
                    InvalidRequest,
                    status_400="The name is that of a collection.",
                ),
            },
        }

    # --- Data

    def _download(self, operation_id: str) -> Json:
        say = self._responses
        data: Json = {media_type: {} for media_type in EXTENSIONS}
        headers = ["Content-Length", "Content-Disposition", "Accept-Ranges", "ETag", "Repr-Digest"]
        return {
            "operationId": operation_id,
            "tags": ["Data"],
            "summary": "The data of a result",
            "description": (
                "Whoever has the link of a 303 needs no login, as often as they like, for "
                f"{_duration(self._settings.download_expiry)}. The owner of the request may also come "
                "with credentials and without the rest of the link; a request that is not finished is "
                "then answered like a poll, but at once.\n\n"
                "Where the staging has links of its own, the 303 leads there and not here.\n\n"
                "Data are never compressed, and parts can be had with `Range`."
            ),
            "security": [{}, *self._security],
            "parameters": [
                {
                    "name": name,
                    "in": "query",
                    "description": description,
                    "schema": {"type": "string"},
                }
                for name, description in {
                    "expires": "Part of the link: until when it is good, in Unix seconds.",
                    "signature": "Part of the link: nobody but this server can make it.",
                }.items()
            ]
            + [
                _header_parameter(
                    "Range",
                    "One range of bytes. Several, other units and what is malformed are ignored.",
                    {},
                    example="bytes=1024-",
                ),
                _header_parameter(
                    "If-Range",
                    "An `ETag`: `Range` counts only if the data still have it.",
                    {},
                ),
            ],
            "responses": {
                "200": say.answer("All of it.", data, headers=headers),
                "206": say.answer(
                    "A part of it.", data, headers=["Content-Length", "Content-Range", *headers[1:]]
                ),
                **self._unfinished(),
                "416": say.out_of_range(),
                **say.errors(
                    InvalidRequest,
                    NotAuthenticated,
                    RequestNotFound,
                    ResultNotFound,
                    ResultGone,
                    status_400="Or the request has failed; the message has the reason.",
                    status_401="Only without a good link.",
                ),
            },
        }

    def _upload(self) -> Json:
        say = self._responses
        limit = self._settings.max_upload
        return {
            "operationId": "upload",
            "tags": ["Data"],
            "summary": "Upload the data of an archive request",
            "description": (
                "The body is the data, whatever its type. They are checked against the checksum before "
                "anything is done with them. Uploading the same data again does no harm, so a call "
                "whose answer was lost can be repeated.\n\n"
                "```sh\n"
                "curl --user NAME:PASSWORD --data-binary @FILE \\\n"
                '    --header "X-Checksum: $(md5sum < FILE | cut -d" " -f1)" \\\n'
                f"    .../{API.strip('/')}/uploads/ID\n"
                "```"
            ),
            "security": self._security,
            "parameters": [
                _header_parameter(
                    "X-Checksum",
                    "The MD5 of the data, in hexadecimal or base64. Needed, unless `Content-MD5` is there.",
                    {"pattern": _MD5},
                    example="5d41402abc4b2a76b9719d911017c592",
                ),
                _header_parameter(
                    "Content-MD5",
                    "The same; read if `X-Checksum` is not there.",
                    {"pattern": _MD5},
                ),
            ],
            "requestBody": {
                "required": True,
                "description": f"At most {limit} bytes, of any type.",
                "content": {GRIB: {}, BINARY: {}},
            },
            "responses": {
                "202": say.json(
                    "Received; ask the same address how it goes on.",
                    "Accepted",
                    headers=["Location", "Retry-After"],
                ),
                **say.errors(
                    NotAuthenticated,
                    RequestNotFound,
                    InvalidRequest,
                    Conflict,
                    BodyTooLarge,
                    status_400="There is no checksum, or it is not that of the data; or it is the id of a "
                    "retrieve request.",
                    status_413=f"At most {limit} bytes.",
                ),
            },
        }

    def _poll_upload(self) -> Json:
        say = self._responses
        return {
            "operationId": "pollUpload",
            "tags": ["Data"],
            "summary": "How an archive request stands",
            "description": (
                "202 while it waits for data or is not finished, 200 once it is, 400 with the reason if it "
                f"failed. {self._held()}The id of a retrieve request is answered as under `/requests`."
            ),
            "security": self._security,
            "responses": {
                "200": say.json("The data are archived.", "Archived"),
                **self._unfinished(),
                **self._ready(),
                **say.errors(
                    NotAuthenticated,
                    InvalidRequest,
                    RequestNotFound,
                    status_400="Or the request has failed; the message has the reason.",
                ),
            },
        }

    def _unfinished(self) -> Json:
        return {
            "202": self._responses.json(
                "Not finished yet.", "Accepted", headers=["Location", "Retry-After"]
            )
        }

    def _ready(self) -> Json:
        return {
            "303": self._responses.json(
                "The result is there; `Location` leads to it.", "Ready", headers=["Location"]
            )
        }

    def _held(self) -> str:
        if not self._settings.long_poll:
            return ""
        return (
            "The answer about an unfinished request comes when its status changes, but after "
            f"{_duration(self._settings.long_poll)} at the latest. "
        )

    # --- Account

    def _user(self) -> Json:
        return {
            "operationId": "user",
            "tags": ["Account"],
            "summary": "About you",
            "security": self._security,
            "responses": {
                "200": self._responses.json("How much of yours is here.", "Account"),
                **self._responses.errors(NotAuthenticated),
            },
        }

    def _collections(self) -> Json:
        return {
            "operationId": "collections",
            "tags": ["Account"],
            "summary": "The collections that you may use",
            "security": self._security,
            "responses": {
                "200": self._responses.json("Their names, in order.", "CollectionNames"),
                **self._responses.errors(NotAuthenticated),
            },
        }

    def _login(self) -> Json:
        say, longest_s = self._responses, self._api_keys.lifetime
        return {
            "operationId": "login",
            "tags": ["Account"],
            "summary": "Make an API key",
            "description": (
                "What `polytope login` calls. The key is good for all calls but this one, as `Bearer KEY`, "
                "until it expires or is revoked; it is told only once. It acts for you, with the roles that "
                "you have at the time of each call.\n\n"
                "```sh\n"
                'curl --user NAME:PASSWORD --json \'{"name": "laptop"}\' '
                f".../{API.strip('/')}/auth/keys\n"
                "```"
            ),
            "security": self._security,
            "requestBody": {
                "required": False,
                "description": "May be left out.",
                "content": {
                    JSON: {
                        "schema": {
                            "type": "object",
                            "description": "What the key is to be like. Other keys are ignored.",
                            "properties": {
                                "name": {
                                    "type": "string",
                                    "maxLength": NAME_LENGTH,
                                    "description": "By which you recognise it; printable characters.",
                                },
                                "expires_in": {
                                    "type": ["string", "number"],
                                    "minLength": 1,
                                    "minimum": 1,
                                    "maximum": longest_s,
                                    "description": "Seconds, or a duration such as `12h` or `1d12h`; at "
                                    f"most {duration_text(longest_s)}, which it is if left out.",
                                },
                            },
                        },
                        "example": {"name": "laptop", "expires_in": "12h"},
                    }
                },
            },
            "responses": self._with_keys(
                {"200": say.json("The key.", "NewApiKey")},
                NotAuthenticated,
                NotAuthorized,
                InvalidRequest,
                LimitReached,
                UnsupportedMediaType,
                BodyTooLarge,
                status_400=f"A user may have {self._api_keys.max_per_user} keys at once.",
                status_403="An API key cannot make another one, and servers that speak for others cannot.",
            ),
        }

    def _keys(self) -> Json:
        return {
            "operationId": "listKeys",
            "tags": ["Account"],
            "summary": "Your API keys",
            "description": "Those that have not expired. The keys themselves cannot be had again.",
            "security": self._security,
            "responses": self._with_keys(
                {"200": self._responses.json("The oldest first.", "ApiKeys")}, NotAuthenticated
            ),
        }

    def _key(self) -> Json:
        return {
            "operationId": "key",
            "tags": ["Account"],
            "summary": "One of your API keys",
            "security": self._security,
            "responses": self._with_keys(
                {"200": self._responses.json("The key, without the key.", "ApiKey")},
                NotAuthenticated,
                KeyNotFound,
            ),
        }

    def _revoke_key(self) -> Json:
        return {
            "operationId": "revokeKey",
            "tags": ["Account"],
            "summary": "Revoke one of your API keys",
            "description": "Nobody can log in with it from then on, or within two seconds.",
            "security": self._security,
            "responses": self._with_keys(
                {
                    "200": self._responses.json(
                        "Revoked.",
                        "Message",
                        example={"message": f"Successfully revoked the API key {EXAMPLE_ID}"},
                    )
                },
                NotAuthenticated,
                KeyNotFound,
            ),
        }

    def _with_keys(self, done: Json, *errors: type[UserError], **more: str) -> Json:
        """The answers where API keys are given out; where none are, all of them are one."""
        if self._api_keys.enabled:
            return {**done, **self._responses.errors(*errors, **more)}
        return self._responses.errors(
            NotAuthenticated, NotSupported, status_501="It gives out no API keys."
        )

    # --- Health

    def _test(self) -> Json:
        return {
            "operationId": "test",
            "tags": ["Health"],
            "summary": "Is it alive?",
            "description": "Depends on nothing behind this server.",
            "security": [],
            "responses": {
                "200": self._responses.json(
                    "It is.", "Message", example={"message": "Polytope server is alive"}
                ),
                "500": self._responses.internal_error(),
            },
        }

    def _healthz(self) -> Json:
        return {
            "operationId": "healthz",
            "tags": ["Health"],
            "summary": "Does the process live?",
            "description": "For those who start it anew if it does not.",
            "security": [],
            "responses": {
                "200": self._responses.json("It does.", "Alive"),
                "500": self._responses.internal_error(),
            },
        }

    def _readyz(self) -> Json:
        say = self._responses
        return {
            "operationId": "readyz",
            "tags": ["Health"],
            "summary": "Does everything behind it answer?",
            "description": "For those who send it calls only if it does.",
            "security": [],
            "responses": {
                "200": say.json("All of it that is needed; `caching` may be away.", "States"),
                "500": say.internal_error(),
                "503": say.json(
                    "Not all of it.",
                    "States",
                    example={
                        "request_store": "ok",
                        "queue": "away",
                        "staging": "ok",
                        "caching": "ok",
                    },
                ),
            },
        }

    # --- Documentation

    def _page(self) -> Json:
        return {
            "operationId": "page",
            "tags": ["Documentation"],
            "summary": "This document as a page",
            "security": [],
            "responses": {
                "200": self._responses.answer(
                    "The page.",
                    {"text/html; charset=utf-8": {"schema": {"type": "string"}}},
                    headers=["Content-Security-Policy"],
                ),
                "500": self._responses.internal_error(),
            },
        }

    def _page_file(self) -> Json:
        errors = self._responses.errors(PageNotFound)
        del errors["503"]
        return {
            "operationId": "pageFile",
            "tags": ["Documentation"],
            "summary": "What the page is made of",
            "description": f"There are: {', '.join(sorted(self._page_files))}.",
            "security": [],
            "responses": {
                "200": self._responses.answer(
                    "The file.",
                    {media_type: {} for media_type in sorted(set(self._page_files.values()))},
                ),
                **errors,
            },
        }

    def _document(self, operation_id: str) -> Json:
        return {
            "operationId": operation_id,
            "tags": ["Documentation"],
            "summary": "This document",
            "security": [],
            "responses": {
                "200": self._responses.answer(
                    "OpenAPI 3.1.",
                    {JSON: {"schema": {"type": "object", "required": ["openapi", "paths"]}}},
                ),
                "500": self._responses.internal_error(),
            },
        }


def _head(get: Json) -> Json:
    """HEAD as GET answers, without bodies."""
    return {
        **{name: get[name] for name in ("security", "parameters") if name in get},
        "operationId": f"headersOf{_camel(get['operationId'])}",
        "tags": ["Headers only"],
        "summary": get["summary"],
        "responses": {
            status: {name: value for name, value in response.items() if name != "content"}
            for status, response in get["responses"].items()
        },
    }


def _camel(text: str) -> str:
    """``/api/v1/test`` is ``ApiV1Test``; the case within words stays."""
    words = "".join(c if c.isalnum() else " " for c in text).split()
    return "".join(word[0].upper() + word[1:] for word in words) or "Root"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size and seconds % size == 0:
            count = int(seconds // size)
            return f"{count} {unit}" if count == 1 else f"{count} {unit}s"
    return f"{seconds:g} seconds"
