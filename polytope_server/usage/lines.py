"""A record of use as one line of JSON, and back."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from polytope_server.request_store import Usage

LineKey = tuple[str, str]
"""When a request finished, as it is written, and its id: lines with the same are the same record."""


def as_json(usage: Usage) -> dict[str, Any]:
    """What a line says; times are ISO 8601 in UTC, to the microsecond. See docs/data.md."""
    began_at = usage.finished_at if usage.started_at is None else usage.started_at
    return {
        "id": usage.id,
        "user": usage.user.username,
        "realm": usage.user.realm,
        "roles": sorted(usage.user.roles),
        "verb": str(usage.verb),
        "collection": usage.collection,
        "datasource": usage.datasource,
        "status": str(usage.status),
        "attempt": usage.attempt,
        "bytes": usage.size_bytes,
        "submitted": time_text(usage.submitted_at),
        "started": None if usage.started_at is None else time_text(usage.started_at),
        "finished": time_text(usage.finished_at),
        "seconds_queued": _seconds(usage.submitted_at, began_at),
        "seconds_processing": _seconds(began_at, usage.finished_at),
    }


def line(usage: Usage) -> bytes:
    """The record as a line of ASCII, its end included."""
    return json.dumps(as_json(usage), separators=(",", ":")).encode() + b"\n"


def parsed(text: bytes) -> Mapping[str, Any] | None:
    """What a line says; None if it is no record of use."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value.keys() >= _FIELDS else None


def key_of(record: Mapping[str, Any]) -> LineKey:
    return (str(record["finished"]), str(record["id"]))


def time_text(seconds: float) -> str:
    return (
        datetime.fromtimestamp(seconds, UTC)
        .isoformat(timespec="microseconds")
        .replace("+00:00", "Z")
    )


def _seconds(begin: float, end: float) -> float:
    return round(max(0.0, end - begin), 3)


_FIELDS = {"id", "user", "realm", "collection", "status", "bytes", "finished", "seconds_processing"}
"""Without these a line is not ours."""
