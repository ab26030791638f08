"""The only truth about requests."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Protocol, Self

from polytope_server.audit import AuditEntry
from polytope_server.request import DataObject, Lease, Request, Status, Step, Verb
from polytope_server.user import User

BROKER: Final = "broker"
"""The post of the one broker that schedules."""
FORGOTTEN_AFTER_S: Final = 86400.0
"""A worker that was not seen for so long is forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What the scheduler needs to know of a waiting request."""

    id: str
    user: User
    attempt: int
    since: float | None = None
    """When it began to wait; None where the store does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A finished request's result, as the collector weighs it."""

    id: str
    name: str
    size_bytes: int
    modified_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """A request that is not stored any more, and the objects that staging may hold of it."""

    id: str
    user: User
    objects: Sequence[DataObject]


class Mark(StrEnum):
    """What an operator can say about something that is no request."""

    PAUSED = "paused"
    """Of a collection: its requests wait."""
    DRAINING = "draining"
    """Of a worker: it takes nothing new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attendance:
    """A worker, as it has last said about itself."""

    name: str
    slots: int
    busy: int
    seen_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which requests are asked for: those that fit everything that is said here.

    `worker` is that of the slot that holds a request; slots are called by their worker's name, a slash
    and a number. `created_before` and `created_after` are exclusive.
    """

    statuses: Collection[Status] = tuple(Status)
    collection: str | None = None
    username: str | None = None
    realm: str | None = None
    worker: str | None = None
    created_before: float = math.inf
    created_after: float = -math.inf


UsageKey = tuple[float, str]
"""When a request finished, and its id: no two records of use have the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one request has used, up to one of its ends. Outlives the request's own record.

    `size_bytes` is the size of the result, or of the data that were uploaded for archiving; 0 if there are
    none. `submitted_at` is when the request was submitted, or last started over; `started_at` when a worker
    first took it after that, None if it ended without.
    """

    id: str
    user: User
    verb: Verb
    collection: str
    datasource: str
    status: Status
    attempt: int
    size_bytes: int
    submitted_at: float
    started_at: float | None
    finished_at: float

    @property
    def key(self) -> UsageKey:
        return (self.finished_at, self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is kept of a key that a user logs in with: everything but the key.

    `digest` is what a key is found by; see `authentication.api_keys`. `user` is who made it, with the role
    that everybody has and with no attribute that is secret. `name` is the user's own word for it, and `hint`
    the last characters of the key; either may be empty. `created_at` and `expires_at` are the store's to set.
    """

    id: str
    digest: str = field(repr=False)
    user: User
    name: str = ""
    hint: str = ""
    created_at: float = 0.0
    expires_at: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """All of it; `user` without roles, for they are found out anew at each login."""
        return {
            "id": self.id,
            "digest": self.digest,
            "user": {
                "username": self.user.username,
                "realm": self.user.realm,
                "attributes": dict(self.user.attributes),
            },
            "name": self.name,
            "hint": self.hint,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        user = value["user"]
        return cls(
            **{
                **value,
                "user": User(
                    username=user["username"],
                    realm=user["realm"],
                    attributes=MappingProxyType(dict(user["attributes"])),
                ),
            }
        )


class RequestStore(Protocol):
    """The only truth about requests. Every method is one atomic operation, durable on return.

    Only what a power cut may undo without harm need not be durable: hints that say so, and steps into QUEUED
    and PROCESSING, after which a request would be scheduled, or run, once more.

    Every method may raise `BackendUnavailable`. Whether it has happened is then unknown: read the
    request again before going on. All times are Unix seconds by the store's own clock. Safe between
    threads and between processes.
    """

    def ping(self) -> None:
        """Return if the store answers."""

    def now(self) -> float:
        """The store's clock."""

    def add(
        self,
        request: Request,
        *,
        idempotency_key: str | None = None,
        max_unfinished: int | None = None,
    ) -> Request:
        """Keep a new request, which stands in UPLOADING or WAITING, and give it its turn.

        The turn makes a collection fair: it is one more than that of the same user's last waiting
        request, but not less than the one that was dispatched last. `created_at`, `modified_at` and
        `status_history` are the store's to set.

        With an `idempotency_key` that this user has used before, the earlier request is returned as
        it stands now, and nothing is written.

        Raises:
            LimitReached: the user has `max_unfinished` unfinished requests already. Nothing was written.
        """

    def get(self, request_id: str) -> Request:
        """Raises: RequestNotFound."""

    def get_many(self, ids: Collection[str]) -> Mapping[str, Request]:
        """Those of *ids* that exist. One call answers any number of polls."""

    def apply(self, step: Step) -> Request:
        """Take *step* if the request still stands where the step starts from.

        A compare-and-set: of any number of callers with the same step, one wins. Writes the status,
        its time in `status_history` (first time of each), `modified_at` and what the step carries; no
        other field is touched. Out of PROCESSING the holder and attempt must be those of `step.lease`,
        and the lease is given up; into PROCESSING the attempt must be the record's own. For what a step
        that starts over writes, see `Step`; out of FAILED it gives the request a new turn, as `add` does.

        The audit entry of a step is kept in one transaction with it. A store that has none keeps it
        before: better an entry of something that did not happen than the other way round.

        Raises:
            RequestNotFound: it is gone; it may have been revoked.
            StepLost: it stands elsewhere by now, or starts over without its input. Nothing was written.
        """

    def apply_each(self, steps: Sequence[Step]) -> Sequence[Request | None]:
        """`apply` each on its own; None for those that were lost or are gone.

        Not all-or-nothing: a failure may leave any of them taken.
        """

    def remove(
        self,
        request_id: str,
        *,
        user_id: str | None = None,
        only_unfinished: bool = False,
        audit: AuditEntry | None = None,
    ) -> Request:
        """Forget a request, and return what it was last.

        With `user_id`, only if it is this user's. The entry is kept as by `apply`.

        Raises:
            RequestNotFound: it is gone, somebody else's, or finished although it must not be.
        """

    def remove_if_finished(self, ids: Collection[str], *, not_after: float) -> Sequence[Forgotten]:
        """Forget those of *ids* that are finished and were last modified at or before `not_after`.

        Returns what this call has removed, in any order. Not all-or-nothing: a failure may leave any
        of them removed.
        """

    # --- a user's own

    def unfinished_ids(self, user_id: str) -> Sequence[str]:
        """All of a user's unfinished requests, oldest first."""

    def requests_of(
        self,
        user_id: str,
        *,
        collection: str | None = None,
        after: Request | None = None,
        limit: int = 1000,
        max_bytes: int = 1 << 20,
    ) -> Sequence[Request]:
        """A user's requests by time of creation, then id; the next page is after this one's last.

        Requests may be large: a page ends with the one with which its texts (`user_request` and
        `coerced_request`) come to *max_bytes*, so only an empty one says that there are no more. Of an
        `after`, which may be gone from the store by now, time and id are enough.
        """

    def count(self, user_id: str) -> int:
        """How many requests of a user are stored, in any status."""

    # --- the broker

    def active_counts(self) -> Mapping[tuple[str, str], int]:
        """QUEUED and PROCESSING requests by (collection, user id)."""

    def queued_count(self) -> int:
        """QUEUED requests: those that a worker could take now."""

    def waiting_collections(self) -> Sequence[str]:
        """Collections that have waiting requests, whether or not they are configured."""

    def next_waiting(
        self, collection: str, *, leaving_out: Collection[str], limit: int
    ) -> Sequence[Waiting]:
        """The first waiting requests of a collection in order of turn, then age.

        Users (by id) in `leaving_out` are skipped at no cost for their backlog.
        """

    def queued_since(self, before: float, *, limit: int) -> Sequence[tuple[str, int]]:
        """(id, attempt) of requests that are QUEUED since before that time, oldest first."""

    def expired_leases(self, *, limit: int) -> Sequence[Request]:
        """PROCESSING requests whose lease has run out."""

    def put_positions(self, collection: str, ids: Sequence[str]) -> None:
        """Remember which requests of a collection are next, in order; replaces what was there."""

    def positions(self, collection: str) -> Sequence[str]:
        """What `put_positions` wrote last; empty if nothing."""

    def take_post(self, post: str, holder: str, *, duration_s: float) -> bool:
        """Become, or stay, the one active holder of a post ("broker"); False if another one is."""

    def leave_post(self, post: str, holder: str) -> None:
        """Give a post up, if it is held by *holder*, so that another need not wait for its end."""

    # --- the worker

    def renew(
        self, leases: Collection[tuple[str, Lease]], *, duration_s: float
    ) -> Collection[tuple[str, Lease]]:
        """Extend those of the leases, each with its request's id, that still hold, and return them.

        Of several leases of one request at most one does.
        """

    def report(self, request_id: str, lease: Lease, *, bytes_staged: int) -> None:
        """Progress of a request under this lease; nothing is written without it, and nothing raised.

        Progress is a hint: it need not be durable and does not change `modified_at`.
        """

    # --- the collector

    def finished_before(self, before: float, *, after: str = "", limit: int = 500) -> Sequence[str]:
        """Ids of finished requests last modified before that time, in order of id, after an id."""

    def unfinished_before(
        self, before: float, *, status: Status, after: str = "", limit: int = 500
    ) -> Sequence[Request]:
        """Requests in one unfinished status, in order of id, after an id.

        Those that were created, or started over, before that time.
        """

    def results(
        self, *, after: tuple[float, str] = (0.0, ""), limit: int = 500
    ) -> Sequence[Staged]:
        """Results of finished requests, least recently modified first, after (modified_at, id)."""

    def forget_input(self, request_id: str, data: DataObject) -> bool:
        """Leave empty the name of a finished request's uploaded data: nobody will read them any more.

        Checksum and size stay, so that the same upload can be told from another one. False, and nothing
        written, if the request is unfinished (it may have been started over), has no such data, or is gone.
        """

    # --- the operators

    def find(
        self,
        wanted: Wanted,
        *,
        after: Request | None = None,
        newest_first: bool = False,
        limit: int = 25,
    ) -> Sequence[Request]:
        """Requests by time of creation, then id; the next page is after this one's last.

        An `after` that is gone from the store, or has changed, still works. The cost is that of the page,
        not of all that is stored; but where users are asked for, those of a user with another status or
        collection, and one look for each user that has any requests, come on top.
        """

    def counts(self, wanted: Wanted) -> Mapping[tuple[str, Status], int]:
        """How many requests there are by (collection, status), none left out but those with none."""

    def oldest(self, status: Status) -> Mapping[str, float]:
        """By collection, since when the request that has stood longest in an unfinished status does so.

        Of WAITING, only the next one of each user is looked at.
        """

    def holder_of(self, post: str) -> str | None:
        """Who holds a post at present, if anybody does."""

    def mark(self, mark: Mark, name: str, *, audit: AuditEntry) -> bool:
        """Mark something by its name; False, and nothing written, if it is marked already.

        The entry is kept as by `apply`, and with the mark.
        """

    def unmark(self, mark: Mark, name: str, *, audit: AuditEntry) -> bool:
        """Take a mark away; False, and nothing written, if there is none."""

    def marked(self, mark: Mark) -> Mapping[str, AuditEntry]:
        """The names that are marked so, each with the entry that came with it. Quick when there are none."""

    def attend(self, worker: str, *, slots: int, busy: int) -> bool:
        """Say that a worker is there; whether it is marked as draining.

        A hint, like `report`. Workers that were not seen for `FORGOTTEN_AFTER_S` are forgotten when a new
        one comes.
        """

    def leave(self, worker: str) -> None:
        """Forget a worker that has ended, and its marks."""

    def workers(self) -> Sequence[Attendance]:
        """All workers, by name, those that are silent included."""

    def note(self, entry: AuditEntry) -> None:
        """Keep an entry by itself: of a command that changed nothing."""

    def noted(self, *, target: str | None = None, limit: int = 50) -> Sequence[AuditEntry]:
        """The latest entries, about everything or one target, latest first. They are kept for ever."""

    # --- records of use

    def usage(self, *, after: UsageKey = (0.0, ""), limit: int = 500) -> Sequence[Usage]:
        """Records of use that nobody has forgotten yet, in order of their keys, after a key.

        The step that takes a request to PROCESSED or FAILED leaves exactly one, in the same atomic
        operation; nothing else leaves any. It stays until it is forgotten, whatever becomes of the request:
        removed, collected, or revoked. A failed request that starts over, and ends again, leaves another.

        A record may come to stand before those that were read already: who must miss none begins again at
        the beginning.
        """

    def forget_usage(self, keys: Collection[UsageKey]) -> None:
        """Forget these records; one that is not there is no error.

        Not all-or-nothing: a failure may leave any of them forgotten.
        """

    def usage_count(self) -> int:
        """How many records of use are kept. May be approximate."""

    # --- API keys

    def add_key(self, key: ApiKey, *, lifetime_s: float, max_keys: int) -> ApiKey:
        """Keep a new key, which expires so long after now, and return it as it will be found.

        Keys of anybody that have expired may be forgotten on the way. Ids and digests are unique: the caller
        has just made them at random.

        Raises:
            LimitReached: the user has `max_keys` keys that have not expired. Nothing was written.
        """

    def key(self, digest: str) -> ApiKey | None:
        """The key with that digest; None if there is none, or it has expired by the store's clock.

        Never out of a replica that may be behind: a key that was removed is not found any more.
        """

    def keys_of(self, user_id: str) -> Sequence[ApiKey]:
        """A user's keys that have not expired, by time of creation, then id."""

    def all_keys(self, *, after: str = "", limit: int = 500) -> Sequence[ApiKey]:
        """Everybody's keys that have not expired, in order of id, after an id."""

    def remove_key(
        self, key_id: str, *, user_id: str | None = None, audit: AuditEntry | None = None
    ) -> ApiKey:
        """Forget a key, and return what it was. With `user_id`, only if it is this user's.

        The entry is kept as by `apply`.

        Raises:
            KeyNotFound: it is gone, has expired, or is somebody else's.
        """

    # --- shared secrets of one deployment

    def shared_secret(self, name: str, proposal: str) -> str:
        """The secret of that name; *proposal* becomes it if there is none yet."""
