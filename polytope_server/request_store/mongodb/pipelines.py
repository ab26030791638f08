"""What a change writes, as an aggregation pipeline that the server runs on the document, and when it may.

Whatever comes from outside stands in a `$literal`: the server would take a text that begins with a dollar
for the name of a field.
"""

from typing import Any, Final

from bson.datetime_ms import DatetimeMS

from polytope_server.request import ACTIVE, FINISHED, DataObject, Status, Step
from polytope_server.request_store.mongodb.connection import Document
from polytope_server.request_store.mongodb.documents import FIELDS, GONE, KEPT_OF_GONE, REMOVED

Pipeline = list[Document]

TOKENS: Final = 8
"""So many of the last calls that have changed a request are remembered. Between a call and its own second
attempt others would have to take as many steps to hide it."""

_NOW: Final = "$$NOW"
_NOTHING: Final = "$$REMOVE"


def may_step(step: Step, call: str, *, expired_at: DatetimeMS | None) -> Document:
    """The condition of a step: the request stands where it starts from, and this call has not moved it."""
    condition: Document = {"_id": step.id, "state": str(step.source), "steps": {"$ne": call}}
    if step.lease is not None and step.source is Status.PROCESSING:
        condition |= {"holder": step.lease.holder, "attempt": step.lease.attempt}
    if step.lease is not None and step.target is Status.PROCESSING:
        condition |= {"attempt": step.lease.attempt}
    if expired_at is not None:
        condition |= {"lease_expires_at": {"$lt": expired_at}}
    if step.starts_over:
        condition |= {"needs_input": {"$ne": True}}
    return condition


def stepped(step: Step, call: str, *, turn: int | None, claim: str | None) -> Pipeline:
    """The change of a step, all of it from the document as it was before.

    Args:
        turn, claim: of a request that comes into the line; None leaves its turn as it is.
    """
    target = step.target
    fields: Document = {
        "state": str(target),
        "modified_at": _NOW,
        f"history.{target}": {"$ifNull": [f"$history.{target}", _NOW]},
        "steps": {"$slice": [{"$concatArrays": ["$steps", [call]]}, -TOKENS]},
        "line": "$collection" if target is Status.WAITING else _NOTHING,
        "active": "$collection" if target in ACTIVE else _NOTHING,
        "claim": _NOTHING,
        "holder": _NOTHING,
        "lease_expires_at": _NOTHING,
    }
    if turn is not None:
        fields |= {"turn": turn, "claim": _text(claim)}
    if step.message is not None:
        fields["message"] = _text(step.message)
    if step.result is not None:
        fields["result"] = _object(step.result)
    if step.input is not None:
        fields |= {"input": _object(step.input), "needs_input": _NOTHING}
    if step.count_attempt or step.starts_over:
        fields["attempt"] = {"$add": ["$attempt", 1]}
    if target is Status.PROCESSING and step.lease is not None:
        fields |= {
            "holder": _text(step.lease.holder),
            "lease_expires_at": _later(step.lease_s),
            "bytes_staged": 0,
        }
    if target in FINISHED:
        fields |= _finished(step)
    if step.starts_over:
        return [{"$set": {**fields, **_over(step)}}, {"$unset": _HISTORY_OF_ITS_WORK}]
    return [{"$set": fields}]


_HISTORY_OF_ITS_WORK: Final = [f"history.{status}" for status in sorted(ACTIVE | FINISHED, key=str)]


def _over(step: Step) -> Document:
    """What starting over writes besides. It takes a seat of its own if it has none: see admission.py."""
    return {
        "history.waiting": _NOW,
        "begun_at": _NOW,
        "first_attempt": {"$add": ["$attempt", 1]},
        "message": _text(step.message or ""),
        "result": _NOTHING,
        "staged_at": _NOTHING,
        "seat": {"$ifNull": ["$seat", {"$concat": ["$user_id", "/~", "$_id"]}]},
    }


def _finished(step: Step) -> Document:
    """What the end of a request writes besides: above all the record of use, in the request's own document.

    So there is one if, and only if, the step was taken, whoever dies at whichever moment. It stays in there
    until it is forgotten, also when the request is removed.
    """
    has_result: Any = _present("$result") if step.result is None else True
    size: Any = {"$ifNull": ["$result.size_bytes", {"$ifNull": ["$input.size_bytes", 0]}]}
    if step.input is not None:
        size = {"$ifNull": ["$result.size_bytes", step.input.size_bytes]}
    if step.result is not None:
        size = step.result.size_bytes
    record = {
        "status": str(step.target),
        "attempt": {"$add": ["$attempt", int(step.count_attempt)]},
        "size_bytes": size,
        "submitted_at": "$begun_at",
        "started_at": {"$ifNull": ["$history.processing", None]},
        "finished_at": _NOW,
    }
    return {
        "seat": _NOTHING,
        "staged_at": {"$cond": [has_result, _NOW, _NOTHING]},
        "usage": {"$concatArrays": [{"$ifNull": ["$usage", []]}, [record]]},
        "usage_at": {"$ifNull": ["$usage_at", _NOW]},
        "usage_more_at": {"$cond": [_present("$usage_at"), _NOW, _NOTHING]},
    }


def renewed(duration_s: float) -> Pipeline:
    return [{"$set": {"lease_expires_at": _later(duration_s)}}]


# --- removing


def removed(call: str) -> Pipeline:
    """No question finds the request any more, but it is there to be told by whom it was removed."""
    return [
        {
            "$set": {
                "state": REMOVED,
                "user_id": "",
                "removed": {
                    "by": call,
                    "at": _NOW,
                    "state": "$state",
                    "lease_expires_at": {"$ifNull": ["$lease_expires_at", None]},
                },
            }
        },
        {
            "$unset": [
                *("seat", "claim", "line", "active"),
                *("idempotency_key", "lease_expires_at", "staged_at"),
            ]
        },
    ]


LEFT_BEHIND: Final[Document] = {
    "$set": {"state": GONE},
    "$unset": dict.fromkeys(sorted(FIELDS - KEPT_OF_GONE), ""),
}
"""Leaves only records of use of what was removed."""
WITHOUT_USAGE: Final[Document] = {"usage_at": {"$exists": False}}


def usage_forgotten(finished_at: DatetimeMS) -> Pipeline:
    first, last = {"$first": "$usage"}, {"$last": "$usage"}
    return [
        {
            "$set": {
                "usage": {
                    "$filter": {
                        "input": "$usage",
                        "cond": {"$ne": ["$$this.finished_at", finished_at]},
                    }
                }
            }
        },
        {
            "$set": {
                "usage_at": {
                    "$cond": [
                        {"$gt": [{"$size": "$usage"}, 0]},
                        {"$let": {"vars": {"one": first}, "in": "$$one.finished_at"}},
                        _NOTHING,
                    ]
                },
                "usage_more_at": {
                    "$cond": [
                        {"$gt": [{"$size": "$usage"}, 1]},
                        {"$let": {"vars": {"one": last}, "in": "$$one.finished_at"}},
                        _NOTHING,
                    ]
                },
            }
        },
    ]


# --- posts and workers


def post_taken(holder: str, *, duration_s: float) -> Pipeline:
    """Makes *holder* the holder of a post that nobody else holds; else leaves it as it is."""
    is_free = {
        "$or": [
            {"$not": [_present("$holder")]},
            {"$eq": ["$holder", _text(holder)]},
            # as numbers: that is how all servers compare the clock
            {"$lt": [{"$toLong": "$expires_at"}, {"$toLong": _NOW}]},
        ]
    }
    return [
        {"$set": {"is_free": is_free}},
        {
            "$set": {
                "holder": {"$cond": ["$is_free", _text(holder), "$holder"]},
                "expires_at": {"$cond": ["$is_free", _later(duration_s), "$expires_at"]},
            }
        },
        {"$unset": "is_free"},
    ]


def attending(*, slots: int, busy: int) -> Pipeline:
    return [{"$set": {"slots": slots, "busy": busy, "seen_at": _NOW}}]


def _later(duration_s: float) -> Document:
    return {"$add": [_NOW, round(duration_s * 1000)]}


def _present(field: str) -> Document:
    return {"$ne": [{"$type": field}, "missing"]}


def _text(value: str | None) -> Document:
    return {"$literal": value}


def _object(data: DataObject) -> Document:
    return {"$literal": data.as_json()}
