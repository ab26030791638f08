"""A request as a document, and back.

::

    _id              the request's id
    schema           version of the schema it was made by; documents without are not ours
    user_id, user    whose it is; `user_id` is "" once it is removed
    verb, collection, datasource, user_request, message, attempt, first_attempt, holder, lease_expires_at,
    bytes_staged, result, input, created_at, modified_at
                     as in `Request`; what is None is left out
    coerced_request  as JSON, for its keys may be any text
    state            where it stands; `REMOVED` or `GONE` after that (see changes.py)
    history          state to first time there
    begun_at         when it was submitted, or last started over
    needs_input      true of an archive whose data are not there (yet, or any more)
    turn             its place among the requests of its collection
    steps            tokens of the last calls that have changed it, by which a call whose answer was lost
                     finds out that it has happened

    seat             while unfinished: see admission.py
    claim            from the moment when it is given its turn until it leaves the line: see admission.py
    line             the collection, while it is WAITING
    active           the collection, while it is QUEUED or PROCESSING
    idempotency_key  the user's id, a slash, and what the user has called it
    confirmed_by     the last call that was given it as one that had been added before
    staged_at        as `modified_at`, while it is finished and has a result
    usage            records of use that nobody has forgotten, oldest first
    usage_at         when the first of these has ended
    usage_more_at    when the last of these has ended, if there are several
    removed          by which call it was removed, when, and how it stood

All times are dates (milliseconds) by the clock of the server that took the write.
"""

import json
import math
import secrets
from typing import Any, Final

from bson.datetime_ms import DatetimeMS

from polytope_server.audit import AuditEntry
from polytope_server.errors import RequestNotFound
from polytope_server.request import UNFINISHED, DataObject, Request, Status, Verb
from polytope_server.request_store import Usage
from polytope_server.request_store.mongodb.connection import Document
from polytope_server.request_store.mongodb.schema import VERSION
from polytope_server.user import User

REMOVED: Final = "removed"
"""Removed, and whoever did it has not tidied up yet."""
GONE: Final = "gone"
"""Removed; only records of use are left."""
STATES: Final = [str(status) for status in Status]
KEPT_OF_GONE: Final = frozenset(
    {"_id", "schema", "user_id", "user", "verb", "collection", "datasource", "state"}
    | {"usage", "usage_at", "usage_more_at"}
)
FIELDS: Final = frozenset(
    {
        *KEPT_OF_GONE,
        *("user_request", "coerced_request", "message", "history", "attempt", "first_attempt"),
        *("holder", "lease_expires_at", "bytes_staged", "result", "input", "needs_input", "turn"),
        *("created_at", "modified_at", "begun_at", "steps", "seat", "claim", "line", "active"),
        *("idempotency_key", "confirmed_by", "staged_at", "removed"),
    }
)


def token() -> str:
    """Tells one call from all others."""
    return secrets.token_hex(8)


# --- times


def seconds(date: DatetimeMS) -> float:
    return int(date) / 1000


def date(at: float) -> DatetimeMS:
    """The inverse of `seconds`."""
    return DatetimeMS(round(at * 1000))


def not_after(at: float) -> DatetimeMS:
    """The last date that is not after that time."""
    return DatetimeMS(math.floor(at * 1000))


def not_before(at: float) -> DatetimeMS:
    """The first date that is not before that time."""
    return DatetimeMS(math.ceil(at * 1000))


# --- requests


def document_of(request: Request, *, now: float, call: str) -> Document:
    """A new request's; without place and seat."""
    at = date(now)
    document: Document = {
        "_id": request.id,
        "schema": VERSION,
        "user_id": request.user.id,
        "user": request.user.as_json(),
        "verb": str(request.verb),
        "collection": request.collection,
        "datasource": request.datasource,
        "user_request": request.user_request,
        "coerced_request": json.dumps(dict(request.coerced_request)),
        "state": str(request.status),
        "message": request.message,
        "created_at": at,
        "modified_at": at,
        "begun_at": at,
        "history": {str(request.status): at},
        "attempt": request.attempt,
        "first_attempt": request.first_attempt,
        "bytes_staged": 0,
        "turn": 0,
        "steps": [call],
    }
    if request.input is not None:
        document["input"] = request.input.as_json()
    elif request.verb is Verb.ARCHIVE:
        document["needs_input"] = True
    return document


def request_of(document: Document | None, request_id: str) -> Request:
    """Raises: RequestNotFound."""
    if document is None or not is_there(document):
        raise RequestNotFound(request_id)
    return a_request(document)


def is_there(document: Document) -> bool:
    """Whether it is a request, and has not been removed."""
    return "schema" in document and document["state"] not in (REMOVED, GONE)


def a_request(document: Document) -> Request:
    """The request; of one that has been removed, as it stood then."""
    removed = document.get("removed", {})
    expires_at = document.get("lease_expires_at", removed.get("lease_expires_at"))
    return Request(
        id=document["_id"],
        user=user_of(document),
        verb=Verb(document["verb"]),
        collection=document["collection"],
        datasource=document["datasource"],
        user_request=document["user_request"],
        coerced_request=json.loads(document["coerced_request"]),
        status=Status(removed.get("state", document["state"])),
        message=document["message"],
        created_at=seconds(document["created_at"]),
        modified_at=seconds(document["modified_at"]),
        status_history={state: seconds(at) for state, at in document["history"].items()},
        attempt=document["attempt"],
        first_attempt=document["first_attempt"],
        holder=document.get("holder"),
        lease_expires_at=seconds(expires_at) if expires_at is not None else None,
        bytes_staged=document["bytes_staged"],
        result=object_of(document.get("result")),
        input=object_of(document.get("input")),
    )


def text_bytes(document: Document) -> int:
    """How long the texts of a request are."""
    return len(document["user_request"]) + len(document["coerced_request"])


def user_of(document: Document) -> User:
    return User.from_json(document["user"])


def object_of(value: Document | None) -> DataObject | None:
    return DataObject(**value) if value is not None else None


def seats_of(user_id: str) -> Document:
    """The condition on `seat` that all unfinished requests of a user fulfil."""
    return {"$gte": f"{user_id}/", "$lt": f"{user_id}0"}  # 0 comes next after /


def unfinished() -> list[str]:
    return sorted(str(status) for status in UNFINISHED)


# --- what else is kept


def usage_of(document: Document, record: Document) -> Usage:
    started_at: Any = record.get("started_at")
    return Usage(
        id=document["_id"],
        user=user_of(document),
        verb=Verb(document["verb"]),
        collection=document["collection"],
        datasource=document["datasource"],
        status=Status(record["status"]),
        attempt=record["attempt"],
        size_bytes=record["size_bytes"],
        submitted_at=seconds(record["submitted_at"]),
        started_at=seconds(started_at) if started_at is not None else None,
        finished_at=seconds(record["finished_at"]),
    )


def entry_of(document: Document) -> AuditEntry:
    return AuditEntry.from_json(json.loads(document["record"]))
