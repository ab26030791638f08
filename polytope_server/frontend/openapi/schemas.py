"""The shapes of bodies, as JSON Schema, from the tables that the code itself uses."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from polytope_server.frontend.answers import shown_status
from polytope_server.observability.health import AWAY, OK
from polytope_server.request import EXTENSIONS, UNFINISHED, Status, Verb

Json = dict[str, Any]

EXAMPLE_ID: Final = "17186e2e-91aa-46d4-a392-505e66796f76"
EXAMPLE_BASE: Final = "https://polytope.example.org"
EXAMPLE_LINK: Final = (
    f"{EXAMPLE_BASE}/api/v1/downloads/{EXAMPLE_ID}"
    "?expires=1795539859&signature=5oGkV1ZtVj1Fr1nYhmBIg0a6m0cVYf3vC7m9eXl2k0A"
)
EXAMPLE_REQUEST: Final = {
    "class": "od",
    "stream": "oper",
    "type": "fc",
    "date": "20260101",
    "time": "0000",
    "levtype": "sfc",
    "param": "167",
    "step": "0/6",
}


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(description: str, properties: Mapping[str, Json], *, example: Any = None) -> Json:
    """An object that always has all of these."""
    schema: Json = {
        "type": "object",
        "description": description,
        "required": list(properties),
        "properties": dict(properties),
    }
    if example is not None:
        schema["examples"] = [example]
    return schema


def _text(description: str, **more: Any) -> Json:
    return {"type": "string", "description": description, **more}


def _one_of(values: Iterable[str], description: str) -> Json:
    return _text(description, enum=sorted(str(value) for value in values))


def _seconds(description: str) -> Json:
    return {"type": "number", "description": f"{description}, in Unix seconds."}


_SHOWN: Final = frozenset(shown_status(status) for status in Status)
_SHOWN_UNFINISHED: Final = frozenset(shown_status(status) for status in UNFINISHED)

_MEDIA_TYPE: Final = _one_of(EXTENSIONS, "What the data are.")

SCHEMAS: Final[Mapping[str, Json]] = {
    "Error": {
        "type": "object",
        "description": "How every error is told: one sentence or more for the user, and nothing else.",
        "required": ["message"],
        "properties": {
            "message": _text("What was wrong and what would be right. May have several lines.")
        },
        "additionalProperties": False,
    },
    "Message": _object("A message.", {"message": _text("For people; nothing should parse it.")}),
    "Submission": {
        "type": "object",
        "description": (
            "What is asked for. Other keys are ignored. A key must not stand twice in an object."
        ),
        "required": ["verb", "request"],
        "properties": {
            "verb": _one_of(Verb, "What to do; lower case."),
            "request": {
                "description": (
                    "The request: as an object, or as the text of one, in YAML or as "
                    "`key=value, key=value`. Its keys are those of the collection's datasources; "
                    "they are folded to lower case. Values are texts, numbers or lists; `a/b/c` is a "
                    "list, `a/to/b/by/c` is a range where the key has any."
                ),
                "oneOf": [
                    {"type": "string", "minLength": 1},
                    {"type": "object", "minProperties": 1},
                ],
            },
            "url": {
                "type": ["string", "null"],
                "maxLength": 0,
                "description": (
                    "Clients that archive send it empty. This server does not fetch data from "
                    "elsewhere: upload them."
                ),
            },
        },
        "examples": [
            {"verb": "retrieve", "request": EXAMPLE_REQUEST},
            {"verb": "retrieve", "request": "class=od, stream=oper, date=20260101, param=167"},
            {"verb": "archive", "request": {"class": "rd", "expver": "0001"}, "url": ""},
        ],
    },
    "Accepted": _object(
        "A request that is not finished.",
        {
            "message": _text("How it stands, for people."),
            "status": _one_of(
                _SHOWN_UNFINISHED,
                "`uploading` waits for your data, `queued` for its turn; `processing` is under way.",
            ),
        },
        example={"message": "Request queued; number 3 in line", "status": "queued"},
    ),
    "Ready": _object(
        "Where the result is.",
        {
            "contentLength": {"type": "integer", "minimum": 0, "description": "In bytes."},
            "contentType": _MEDIA_TYPE,
            "location": _text("The link to the data, as in the header `Location`.", format="uri"),
        },
        example={
            "contentLength": 51409440,
            "contentType": "application/x-grib",
            "location": EXAMPLE_LINK,
        },
    ),
    "Archived": _object(
        "An archive request that is finished.",
        {
            "location": _text("The address of the upload.", format="uri"),
            "message": {"type": "string", "const": "Success"},
            "status": {"type": "string", "const": str(Status.PROCESSED)},
        },
        example={
            "location": f"{EXAMPLE_BASE}/api/v1/uploads/{EXAMPLE_ID}",
            "message": "Success",
            "status": "processed",
        },
    ),
    "User": _object(
        "Whose request it is.",
        {
            "id": _text("Made of name and realm.", format="uuid"),
            "username": _text("The name within the realm."),
            "realm": _text("Where the name comes from."),
            "roles": {
                "type": "array",
                "items": {"type": "string"},
                "description": "At the time of submission.",
            },
            "attributes": {"type": "object", "maxProperties": 0, "description": "Always empty."},
        },
    ),
    "Record": _object(
        "A request, as it is listed.",
        {
            "id": _text("Opaque; whoever asks again needs it."),
            "timestamp": _seconds("When it was submitted"),
            "last_modified": _seconds("When it last changed"),
            "user": ref("User"),
            "verb": _one_of(Verb, "What was asked for."),
            "url": _text("A link to the result, or empty if there is none (yet)."),
            "md5": {"type": "null", "description": "Never known; see `Repr-Digest` of the data."},
            "collection": _text("Where it was submitted."),
            "status": _one_of(_SHOWN, "How it stands."),
            "user_message": _text("Progress, or why it failed."),
            "user_request": _text("The request as it was sent; an object as JSON."),
            "coerced_request": {
                "type": "object",
                "description": "What the datasource was given; empty until processed.",
            },
            "content_length": {
                "type": ["integer", "null"],
                "minimum": 0,
                "description": "Of the result, in bytes.",
            },
            "content_type": _MEDIA_TYPE,
            "status_history": {
                "type": "object",
                "description": "When each status was reached, in Unix seconds.",
                "propertyNames": {"enum": sorted(str(status) for status in _SHOWN)},
                "additionalProperties": {"type": "number"},
            },
            "datasource": _text("Which datasource delivered; empty until processed."),
        },
        example={
            "id": EXAMPLE_ID,
            "timestamp": 1795453459.015,
            "last_modified": 1795453460.2,
            "user": {
                "id": "42a22e2e-ecbf-5bbe-a165-e179542d30e6",
                "username": "joe",
                "realm": "r",
                "roles": ["default"],
                "attributes": {},
            },
            "verb": "retrieve",
            "url": EXAMPLE_LINK,
            "md5": None,
            "collection": "forecasts",
            "status": "processed",
            "user_message": "Success",
            "user_request": "class=od, stream=oper, date=20260101, param=167",
            "coerced_request": EXAMPLE_REQUEST,
            "content_length": 51409440,
            "content_type": "application/x-grib",
            "status_history": {
                "queued": 1795453459.015,
                "processing": 1795453459.1,
                "processed": 1795453460.2,
            },
            "datasource": "fdb",
        },
    ),
    "Records": _object(
        "Your requests, the oldest first, with those that are finished.",
        {"message": {"type": "array", "items": ref("Record")}},
    ),
    "CollectionNames": _object(
        "The collections that you may use.",
        {"message": {"type": "array", "items": {"type": "string"}}},
        example={"message": ["forecasts", "reanalysis"]},
    ),
    "Account": _object(
        "About you; all values are texts.",
        {"live requests": _text("How many requests of yours are stored.", pattern="^[0-9]+$")},
        example={"live requests": "3"},
    ),
    "NewApiKey": _object(
        "A key that has just been made.",
        {
            "key": _text("The key. It is not told again.", pattern="^polytope_[0-9A-Za-z]{49}$"),
            "expires": _text("When it expires, in UTC.", format="date-time"),
            "id": _text("By which it is revoked.", format="uuid"),
        },
        example={
            "key": "polytope_" + "0" * 49,
            "expires": "2026-12-24T18:30:00Z",
            "id": EXAMPLE_ID,
        },
    ),
    "ApiKey": _object(
        "A key, without the key.",
        {
            "id": _text("By which it is revoked.", format="uuid"),
            "name": _text("As you called it; may be empty."),
            "ends_with": _text("The last characters of the key."),
            "created": _text("When it was made, in UTC.", format="date-time"),
            "expires": _text("When it expires, in UTC.", format="date-time"),
        },
    ),
    "ApiKeys": _object(
        "Your keys.",
        {"message": {"type": "array", "items": ref("ApiKey")}},
    ),
    "States": {
        "type": "object",
        "description": "The back-ends by name; names and states, nothing else.",
        "additionalProperties": _one_of((OK, AWAY), "Whether it answers."),
        "examples": [{"request_store": OK, "queue": OK, "staging": OK, "caching": OK}],
    },
    "Alive": _object("A sign of life.", {"status": {"type": "string", "const": "alive"}}),
}
