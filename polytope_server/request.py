"""A request, its life, and the steps it may take."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from polytope_server.audit import AuditEntry
from polytope_server.user import User


class Status(StrEnum):
    """Where a request stands."""

    UPLOADING = "uploading"
    WAITING = "waiting"
    QUEUED = "queued"
    PROCESSING = "processing"
    PROCESSED = "processed"
    FAILED = "failed"


class Verb(StrEnum):
    """What a request asks for."""

    RETRIEVE = "retrieve"
    ARCHIVE = "archive"


UNFINISHED: Final = frozenset({Status.UPLOADING, Status.WAITING, Status.QUEUED, Status.PROCESSING})
FINISHED: Final = frozenset({Status.PROCESSED, Status.FAILED})
ACTIVE: Final = frozenset({Status.QUEUED, Status.PROCESSING})

STEPS: Final[Mapping[Status, frozenset[Status]]] = MappingProxyType(
    {
        Status.UPLOADING: frozenset({Status.WAITING, Status.FAILED}),
        Status.WAITING: frozenset({Status.QUEUED, Status.FAILED}),
        Status.QUEUED: frozenset({Status.PROCESSING, Status.WAITING, Status.FAILED}),
        Status.PROCESSING: frozenset({Status.PROCESSED, Status.FAILED, Status.WAITING}),
        Status.PROCESSED: frozenset(),
        Status.FAILED: frozenset({Status.WAITING}),
    }
)
"""What may follow what. Revocation removes the record and so is not in the table.

Out of FAILED leads only what an operator asks for; see `Step.starts_over`.
"""

_ROUNDED_S: Final = 0.001
"""Times in a history may be rounded; those of a request's own record are not."""

GRIB: Final = "application/x-grib"
COVERAGE_JSON: Final = "application/prs.coverage+json"
BINARY: Final = "application/octet-stream"
EXTENSIONS: Final[Mapping[str, str]] = MappingProxyType(
    {GRIB: ".grib", COVERAGE_JSON: ".covjson", BINARY: ".bin"}
)
"""The three media types that clients accept, and how files of each are called."""
_ATTEMPT: Final = re.compile(r"-[0-9]+(\.[a-z]+)$", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who works on a request, for the how-many-th time. A lease ends by the store's clock."""

    holder: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataObject:
    """Bytes in staging: a result, or the data that a user uploaded.

    `md5` (lower-case hex) is known only of uploads, whose clients send one. The name of data that
    staging does not hold any more is empty.
    """

    name: str
    media_type: str
    size_bytes: int
    sha256: str
    md5: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "media_type": self.media_type,
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "md5": self.md5,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as the request store holds it.

    Times are Unix seconds by the store's clock. `coerced_request` is the one canonical form that
    was coerced, matched and authorised at submission, and that the datasource is given; it is
    None where the collection's datasource reads free text only. `attempt` never comes again in the
    life of a request, for objects are named after it; `first_attempt` is the one that it began with
    when it was last started over.
    """

    id: str
    user: User
    verb: Verb
    collection: str
    datasource: str
    user_request: str
    coerced_request: Mapping[str, Any] = field(hash=False)
    status: Status
    message: str = ""
    created_at: float = 0.0
    modified_at: float = 0.0
    status_history: Mapping[str, float] = field(default_factory=dict, hash=False)
    attempt: int = 1
    first_attempt: int = 1
    holder: str | None = None
    lease_expires_at: float | None = None
    bytes_staged: int = 0
    result: DataObject | None = None
    input: DataObject | None = None

    @property
    def begun_at(self) -> float:
        """When it was submitted, or last started over."""
        if self.first_attempt == 1:
            return self.created_at
        return self.status_history.get(Status.WAITING, self.created_at)

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED

    @property
    def lease(self) -> Lease | None:
        """The lease that a step out of PROCESSING must show, if somebody holds one."""
        if self.holder is None:
            return None
        return Lease(holder=self.holder, attempt=self.attempt)

    @property
    def tries(self) -> int:
        """How often it was begun since it was last started over, the present time included."""
        return self.attempt - self.first_attempt + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of one request: where it must stand now, and where it goes.

    With `only_if_expired` the lease must have run out, by the store's clock, when the step is taken.
    `lease` is written on the way into PROCESSING (its attempt must be the request's own) and must
    match on the way out. `count_attempt` raises the attempt by one, for a request whose worker died.
    Without `message` the old one stays.

    With `starts_over`, which leads to WAITING, the request is as if it had just been submitted: the
    attempt is raised by one and becomes the first one, message and result are cleared, the history
    begins anew (but for the upload), and so does its age. An archive must still have its input. It is
    the only way out of FAILED.

    `audit` is kept if, and only if, the step is taken.
    """

    id: str
    source: Status
    target: Status
    lease: Lease | None = None
    lease_s: float = 0.0
    message: str | None = None
    result: DataObject | None = None
    input: DataObject | None = None
    count_attempt: bool = False
    only_if_expired: bool = False
    starts_over: bool = False
    audit: AuditEntry | None = None

    def __post_init__(self) -> None:
        if self.target not in STEPS[self.source]:
            raise ValueError(f"no step leads from {self.source} to {self.target}")
        if Status.PROCESSING in (self.source, self.target) and self.lease is None:
            raise ValueError("a step into or out of processing needs a lease")
        if self.target is Status.PROCESSING and self.lease_s <= 0:
            raise ValueError("a lease needs a duration")
        if self.starts_over and self.target is not Status.WAITING:
            raise ValueError("what starts over waits")
        if self.source is Status.FAILED and not self.starts_over:
            raise ValueError("a failed request can only start over")


def stood_since(moved: Request, source: Status) -> float | None:
    """When a request that was just taken out of *source* had come there; None if nobody knows.

    `status_history` has first times only: of one that has been sent back it does not tell the last.
    """
    others = {status: at for status, at in moved.status_history.items() if status != moved.status}
    since = others.get(source)
    came = moved.status_history.get(moved.status)
    if since is None or came is None or moved.modified_at - came > _ROUNDED_S:
        return None
    return since if since >= max(others.values()) - _ROUNDED_S else None


def result_name(prefix: str, request_id: str, attempt: int, media_type: str) -> str:
    """Name in staging: a worker that lost its lease can never touch the next one's object."""
    return f"{prefix}{request_id}-{attempt}{EXTENSIONS[media_type]}"


def input_name(prefix: str, request_id: str, upload: str) -> str:
    """Name in staging of uploaded data; *upload* tells two uploads of one request apart."""
    return f"{prefix}{request_id}-in-{upload}.bin"


def download_name(request: Request) -> str:
    """What the user's file is called."""
    media_type = request.result.media_type if request.result else BINARY
    return f"{request.id}{EXTENSIONS[media_type]}"


def file_name(name: str) -> str:
    """The same, told from a name in staging alone: of a result, without the number of its attempt."""
    return _ATTEMPT.sub(r"\1", name)


def with_status(request: Request, status: Status) -> Request:
    """The same request, elsewhere; for tests and pure decisions."""
    return replace(request, status=status)
