"""What a server's data are, and how they are brought up to date."""

from collections.abc import Iterator
from pathlib import Path

from polytope_server.data.manifest import requests_text
from polytope_server.data.place import Place
from polytope_server.request_store.snapshot import Live, Summary
from polytope_server.request_store.sqlite import SCHEMA
from polytope_server.sqlite import Database


def describe(place: Place) -> Iterator[tuple[str, str]]:
    """Names and texts, a line each. Changes nothing.

    Raises:
        ConfigurationError: there are no data, or not ours.
        BackendUnavailable
    """
    with Live(place.database) as live:
        summary = live.summary()
    yield "database", f"{place.database}, {_size(place.database)} bytes"
    yield "schema", f"version {summary.version}; this server's is {len(SCHEMA)}{_advice(summary)}"
    yield "requests", requests_text(summary.requests)
    yield (
        "results",
        f"{summary.results}, {summary.result_bytes} bytes; staging: {place.staging.name}",
    )
    yield "usage", _usage_text(place.usage.path, summary)
    yield "API keys", str(summary.keys)
    yield "in use", "by a running server" if place.is_in_use() else "by no server that can be seen"


def upgrade(place: Place) -> tuple[int, int]:
    """Bring the file up to date, as the first process of this version would; the versions before and after.

    Processes of the version before may go on meanwhile.

    Raises:
        ConfigurationError: there are no data, not ours, or too new for us.
    """
    with Live(place.database) as live:
        before = live.summary().version
    Database(place.database, schema=SCHEMA)
    with Live(place.database) as live:
        return before, live.summary().version


def _advice(summary: Summary) -> str:
    if summary.version < len(SCHEMA):
        return " and brings it up to date when it starts, or 'data upgrade' does"
    if summary.version > len(SCHEMA):
        return ", which can be used with it for the time of an upgrade"
    return ""


def _usage_text(path: Path | None, summary: Summary) -> str:
    if path is None:
        return f"{summary.usage} records in the database"
    return f"{path}, {_size(path)} bytes; {summary.usage} records not written to it yet"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
