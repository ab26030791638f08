"""How a deployment stands, at a glance."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from polytope_server.admin.deployment import Deployment
from polytope_server.audit import AuditEntry
from polytope_server.errors import BackendUnavailable
from polytope_server.request import ACTIVE, Status
from polytope_server.request_store import BROKER, Attendance, Mark, RequestStore, Wanted

SILENT_S = 10.0
"""A worker says once a second that it is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionState:
    """A collection that is configured or has requests, or both.

    Limits are None where there is none; `most_by_one_user` are active requests. Of what waits,
    `oldest_waiting_s` is the age.
    """

    name: str
    is_configured: bool
    counts: Mapping[Status, int]
    oldest_waiting_s: float | None
    active: int
    limit_total: int | None
    limit_per_user: int | None
    most_by_one_user: int
    paused: AuditEntry | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A worker and how it is: working, draining, drained, or silent."""

    name: str
    slots: int
    busy: int
    seen_s: float
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Everything at one moment, more or less. `queue_size` is None if the queue does not answer."""

    at: float
    broker: str | None
    queue_size: int | None
    collections: Sequence[CollectionState]
    workers: Sequence[WorkerState]


def overview(deployment: Deployment) -> Overview:
    """Ask store and queue for all of it.

    Raises:
        BackendUnavailable: the store does not answer.
    """
    store = deployment.store
    now = store.now()
    return Overview(
        at=now,
        broker=store.holder_of(BROKER),
        queue_size=_queue_size(deployment),
        collections=list(_collections(deployment, now)),
        workers=workers(store),
    )


def workers(store: RequestStore) -> Sequence[WorkerState]:
    """All workers, those that are silent included."""
    now, draining = store.now(), store.marked(Mark.DRAINING)
    return [_worker(each, now=now, draining=draining) for each in store.workers()]


def _worker(each: Attendance, *, now: float, draining: Collection[str]) -> WorkerState:
    seen_s = max(0.0, now - each.seen_at)
    if seen_s > SILENT_S:
        state = "silent"
    elif each.name in draining:
        state = "draining" if each.busy else "drained"
    else:
        state = "working"
    return WorkerState(name=each.name, slots=each.slots, busy=each.busy, seen_s=seen_s, state=state)


def _queue_size(deployment: Deployment) -> int | None:
    try:
        return deployment.queue.size()
    except BackendUnavailable:
        return None


def _collections(deployment: Deployment, now: float) -> Iterator[CollectionState]:
    store = deployment.store
    by_collection: dict[str, dict[Status, int]] = {}
    for (name, status), number in store.counts(Wanted()).items():
        by_collection.setdefault(name, {})[status] = number
    active = Counter(store.active_counts())
    paused = store.marked(Mark.PAUSED)
    for name in sorted({*deployment.collections, *by_collection, *paused}):
        configured = deployment.collections.get(name)
        counts = by_collection.get(name, {})
        users = [number for (collection, _), number in active.items() if collection == name]
        yield CollectionState(
            name=name,
            is_configured=configured is not None,
            counts=counts,
            oldest_waiting_s=_oldest_s(store, name, now) if counts.get(Status.WAITING) else None,
            active=sum(counts.get(status, 0) for status in ACTIVE),
            limit_total=configured.limits.total if configured else None,
            limit_per_user=(configured.limits.per_user or None) if configured else None,
            most_by_one_user=max(users, default=0),
            paused=paused.get(name),
        )


def _oldest_s(store: RequestStore, collection: str, now: float) -> float | None:
    wanted = Wanted(statuses={Status.WAITING}, collection=collection)
    for oldest in store.find(wanted, limit=1):
        return max(0.0, now - oldest.created_at)
    return None
