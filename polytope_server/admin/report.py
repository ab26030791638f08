"""What operators read: tables for people, JSON for programs. Nothing of a user's can forge a line in it."""

import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from polytope_server.admin.overview import CollectionState, Overview, WorkerState
from polytope_server.audit import AuditEntry
from polytope_server.config.section import size_text
from polytope_server.observability.logging import one_line
from polytope_server.request import DataObject, Request, Status
from polytope_server.request_store import ApiKey

_WIDE = 4000
"""Columns: no line is broken but by the terminal, so that an id is always found in one piece."""
_MESSAGE_CHARACTERS = 60
_SHOWN = (Status.UPLOADING, Status.WAITING, Status.QUEUED, Status.PROCESSING)


def say(text: str) -> None:
    """A line of ours."""
    sys.stdout.write(f"{one_line(text)}\n")


def say_json(value: Mapping[str, Any]) -> None:
    """One object in one line, in ASCII."""
    sys.stdout.write(f"{json.dumps(value)}\n")


def warn(text: str) -> None:
    """A line for people that programs do not read."""
    sys.stderr.write(f"{one_line(text)}\n")


# --- API keys


def key_json(key: ApiKey) -> dict[str, Any]:
    """A key: all but its digest, for nobody needs it."""
    whole = key.as_json()
    del whole["digest"]
    return whole


def print_keys(keys: Iterable[ApiKey], *, now: float) -> None:
    """A line for each."""
    table = _table("id", "user", "name", "ends with", "age", "expires in")
    for key in keys:
        table.add_row(
            *_cells(
                key.id,
                f"{key.user.username}@{key.user.realm}",
                key.name,
                key.hint,
                span(now - key.created_at),
                span(key.expires_at - now),
            )
        )
    _print(table)


# --- requests


def request_json(request: Request, *, whole: bool = True) -> dict[str, Any]:
    """A request; without the user's and the canonical text unless it is to be *whole*."""
    shown = {
        "id": request.id,
        "status": request.status,
        "verb": request.verb,
        "collection": request.collection,
        "datasource": request.datasource,
        "user": {**request.user.as_json(), "id": request.user.id},
        "created_at": request.created_at,
        "modified_at": request.modified_at,
        "status_history": dict(request.status_history),
        "attempt": request.attempt,
        "tries": request.tries,
        "holder": request.holder,
        "lease_expires_at": request.lease_expires_at,
        "bytes_staged": request.bytes_staged,
        "message": request.message,
        "result": request.result.as_json() if request.result else None,
        "input": request.input.as_json() if request.input else None,
    }
    if whole:
        shown["user_request"] = request.user_request
        shown["coerced_request"] = dict(request.coerced_request)
    return shown


def print_requests(requests: Iterable[Request], *, now: float) -> None:
    """A line for each."""
    table = _table("id", "status", "collection", "user", "age", "try", "holder", "message")
    for request in requests:
        table.add_row(
            *_cells(
                request.id,
                request.status,
                request.collection,
                _user(request),
                span(now - request.created_at),
                str(request.tries),
                request.holder or "",
                _shortened(request.message),
            )
        )
    _print(table)


def print_request(
    request: Request, *, now: float, position: int | None, entries: Sequence[AuditEntry]
) -> None:
    """Everything about one request."""
    lease = ""
    if request.holder is not None and request.lease_expires_at is not None:
        left_s = request.lease_expires_at - now
        lease = f"{request.holder}, " + (
            f"ends in {span(left_s)}" if left_s >= 0 else f"ended {span(-left_s)} ago"
        )
    rows = {
        "id": request.id,
        "status": request.status + (f", number {position} in line" if position else ""),
        "message": request.message,
        "user": f"{_user(request)}, roles {', '.join(sorted(request.user.roles))}",
        "verb": request.verb,
        "collection": request.collection,
        "datasource": request.datasource,
        "created": _when(request.created_at, now),
        "modified": _when(request.modified_at, now),
        "attempt": f"{request.attempt}, try {request.tries}",
        "lease": lease,
        "staged so far": size_text(request.bytes_staged) if request.bytes_staged else "",
        "result": _object(request.result),
        "input": _object(request.input),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        if value:
            table.add_row(Text(name, style="bold"), Text(one_line(value)))
    for status, at in sorted(request.status_history.items(), key=lambda item: item[1]):
        table.add_row(Text(f"  {status}", style="bold"), Text(_when(at, now)))
    _print(table)
    say("request:")
    for line in request.user_request.splitlines():
        say(f"    {line}")
    if request.coerced_request:
        say("as it is handed to the datasource:")
        for key, value in request.coerced_request.items():
            say(f"    {key}: {value if isinstance(value, str) else json.dumps(value)}")
    if entries:
        say("operators:")
        print_entries(entries)


# --- the deployment


def overview_json(overview: Overview) -> dict[str, Any]:
    return asdict(overview)


def print_overview(overview: Overview) -> None:
    """Broker, queue, collections, workers."""
    queue = "does not answer" if overview.queue_size is None else str(overview.queue_size)
    say(f"broker: {overview.broker or 'none is active'}")
    say(f"messages on the queue: {queue}")
    say("")
    print_collections(overview.collections, now=overview.at)
    say("")
    print_workers(overview.workers)


def print_collections(collections: Sequence[CollectionState], *, now: float) -> None:
    finished = (Status.PROCESSED, Status.FAILED)
    names = [*_SHOWN, *finished]
    table = _table("collection", *names, "oldest", "active", "one user", "remarks", right=names)
    for each in collections:
        remarks = []
        if not each.is_configured:
            remarks.append("not configured")
        if each.paused is not None:
            remarks.append(f"paused {span(now - each.paused.at)} ago by {_who(each.paused)}")
            remarks.extend([each.paused.reason] if each.paused.reason else [])
        table.add_row(
            *_cells(
                each.name,
                *(str(each.counts.get(name, 0)) for name in names),
                "" if each.oldest_waiting_s is None else span(each.oldest_waiting_s),
                _used(each.active, each.limit_total),
                _used(each.most_by_one_user, each.limit_per_user),
                ", ".join(remarks),
            )
        )
    _print(table)


def print_workers(workers: Sequence[WorkerState]) -> None:
    if not workers:
        say("no worker is known")
        return
    table = _table("worker", "busy", "slots", "seen", "state", right=["busy", "slots"])
    for each in workers:
        table.add_row(
            *_cells(
                each.name, str(each.busy), str(each.slots), f"{span(each.seen_s)} ago", each.state
            )
        )
    _print(table)


def print_entries(entries: Iterable[AuditEntry]) -> None:
    table = _table("when", "who", "host", "command", "target", "outcome", "reason")
    for entry in entries:
        table.add_row(
            *_cells(
                _moment(entry.at),
                _who(entry),
                entry.host,
                entry.command,
                entry.target,
                entry.outcome,
                entry.reason,
            )
        )
    _print(table)


# --- words


def span(seconds: float) -> str:
    """``3d4h``, ``2m5s``, ``0s``: the two largest units."""
    left = int(max(0.0, seconds))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, left = divmod(left, length)
        if number or (unit == "s" and not parts):
            parts.append(f"{number}{unit}")
    return "".join(parts[:2])


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _when(at: float, now: float) -> str:
    return f"{_moment(at)}, {span(now - at)} ago"


def _user(request: Request) -> str:
    return f"{request.user.username}@{request.user.realm}"


def _who(entry: AuditEntry) -> str:
    return f"{entry.sudo_user} as {entry.user}" if entry.sudo_user else entry.user


def _used(number: int, limit: int | None) -> str:
    return str(number) if limit is None else f"{number}/{limit}"


def _object(data: DataObject | None) -> str:
    if data is None:
        return ""
    name = data.name or "removed from staging"
    return f"{name}, {data.size_bytes} bytes, {data.media_type}, sha256 {data.sha256}"


def _shortened(text: str) -> str:
    if not sys.stdout.isatty() or len(text) <= _MESSAGE_CHARACTERS:
        return text
    return f"{text[: _MESSAGE_CHARACTERS - 3]}..."


def _cells(*values: str) -> list[Text]:
    return [Text(one_line(value) or "-") for value in values]


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _print(table: Table) -> None:
    drawn = io.StringIO()
    Console(
        file=drawn,
        force_terminal=sys.stdout.isatty(),
        width=_WIDE,
        highlight=False,
        markup=False,
        emoji=False,
    ).print(table)
    for line in drawn.getvalue().splitlines():
        sys.stdout.write(f"{line.rstrip()}\n")
