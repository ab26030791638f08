"""What clients read about a request: poll answers and list records, from the request alone."""

import json
from typing import Any, Final

from polytope_server.request import Request, Status, Verb

RETRY_AFTER_S: Final = 5


def json_bytes(value: Any) -> bytes:
    """JSON as it leaves: readable, and with half of a surrogate pair, which is no text, as an escape."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def shown_status(status: Status) -> str:
    """Clients know no ``waiting``."""
    return Status.QUEUED if status is Status.WAITING else status


def progress(request: Request, *, position: int | None = None, paused: bool = False) -> str:
    """A sentence or two for a user who waits."""
    match request.status:
        case Status.UPLOADING:
            return "Request uploading; send the data to the location given"
        case Status.PROCESSING if request.bytes_staged:
            return f"Request processing; {_size(request.bytes_staged)} staged so far"
        case Status.PROCESSING:
            return "Request processing"
    text = "Request queued"
    if position is not None:
        text += f"; number {position} in line"
    if paused:
        text += ". The collection is paused by its operators"
    return f"{text}. {request.message}" if request.message else text


def failure(request: Request) -> str:
    return f"Request failed with error:\n{request.message or 'no reason was given'}"


def record(request: Request, *, url: str) -> dict[str, Any]:
    """An element of the lists of requests; no secret, no internal status."""
    finished = request.status is Status.PROCESSED
    history = dict(request.status_history)
    waited = history.pop(Status.WAITING, None)
    if waited is not None:
        history[Status.QUEUED] = min(waited, history.get(Status.QUEUED, waited))
    return {
        "id": request.id,
        "timestamp": request.created_at,
        "last_modified": request.modified_at,
        "user": {
            "id": request.user.id,
            "username": request.user.username,
            "realm": request.user.realm,
            "roles": sorted(request.user.roles),
            "attributes": {},
        },
        "verb": str(request.verb),
        "url": url if finished and request.verb is Verb.RETRIEVE else "",
        "md5": None,
        "collection": request.collection,
        "status": str(shown_status(request.status)),
        "user_message": request.message or progress(request),
        "user_request": request.user_request,
        "coerced_request": dict(request.coerced_request) if finished else {},
        "content_length": request.result.size_bytes if request.result else None,
        "content_type": request.result.media_type if request.result else "application/octet-stream",
        "status_history": history,
        "datasource": request.datasource if finished else "",
    }


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
