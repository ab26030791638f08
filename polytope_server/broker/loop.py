"""The broker's loop: asks the store, lets the scheduler decide, and tells store and queue."""

import logging
import os
import socket
import time
import uuid
from collections.abc import Collection, Mapping, Sequence

from polytope_server.broker.backlog import Backlog
from polytope_server.broker.scheduler import Limits, choose, take_turns
from polytope_server.config.model import BrokerSection
from polytope_server.errors import BackendUnavailable
from polytope_server.lifecycle import Stop
from polytope_server.observability.context import log_context
from polytope_server.observability.metrics import Metrics
from polytope_server.observability.tracing import NO_TRACES, Span, Traces, about
from polytope_server.queue import Hints, Message, Queue, Topic
from polytope_server.reloading import Current
from polytope_server.request import Request, Status, Step
from polytope_server.request_store import BROKER, Mark, RequestStore, Waiting, Wanted

logger = logging.getLogger(__name__)

POSITIONS = 100
"""So many of the next requests of a collection are told their exact place."""
_POSITIONS_EVERY_S = 1.0
_RECOVER_EVERY_S = 1.0
_GRACE_S = 5.0
_AGE_EVERY_S = 60.0
_BATCH = 100
_RECORDS = 25
"""Whole requests that are held at once: each may be as long as a frontend accepts."""


class Broker:
    """Schedules requests while it holds the post; stands by while another one does.

    Everything it does may be done twice or be cut off at any line: each step is a compare-and-set, and
    what was queued but not published is published again.

    Args:
        limits: of all collections by name; each cycle works by one value, and a new one begins a cycle.
        grace_s: age up to which a request is kept although its collection is not known. Frontends may
            have read of a new one before we do.
    """

    def __init__(
        self,
        *,
        store: RequestStore,
        queue: Queue,
        limits: Current[Mapping[str, Limits]],
        settings: BrokerSection,
        metrics: Metrics,
        grace_s: float,
        traces: Traces = NO_TRACES,
    ) -> None:
        self._store, self._queue, self._latest_limits = store, queue, limits
        self._limits = limits.value
        self._settings, self._metrics, self._traces = settings, metrics, traces
        self._grace_s = grace_s
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._active = False
        self._post_until = 0.0
        self._due: dict[str, float] = {}
        self._positions: dict[str, Sequence[str]] = {}
        self._rotation = 0

    def run(self, stop: Stop) -> None:
        """Work until asked to stop; a back-end that is away is waited for."""
        backlog = Backlog(
            store=self._store,
            queue=self._queue,
            collections=lambda: self._limits,
            metrics=self._metrics,
        )
        with (
            backlog.told(self._is_active),
            self._queue.listen(Topic.SUBMITTED, Topic.TAKEN, Topic.CHANGED, Topic.MARKED) as hints,
            stop.calling(hints.interrupt),
            self._latest_limits.calling(hints.interrupt),
        ):
            pause_s = 0.0
            while not stop.requested:
                try:
                    self.turn()
                    pause_s = 0.0
                except BackendUnavailable as exc:
                    pause_s = min(10.0, 2 * pause_s or 0.2)
                    logger.warning("a back-end is away", extra={"cause": str(exc)})
                    self._metrics.broker_active(is_active=self._is_active())
                    # Workers could not renew their leases either: let them do that first.
                    self._due["recover"] = time.monotonic() + pause_s + _GRACE_S
                    stop.wait(pause_s)
                    continue
                except Exception:
                    # One bad turn must not end the scheduling of everybody else's requests.
                    logger.exception("a scheduling cycle failed")
                    stop.wait(1.0)
                    continue
                self._sleep(hints)
        if self._active:
            try:
                self._store.leave_post(BROKER, self._holder)
            except BackendUnavailable:
                logger.info("could not give up the post; it ends by itself")

    def _sleep(self, hints: Hints) -> None:
        longest_s = min(self._settings.interval, self._settings.lease / 3)
        if not self._active:
            # Hints are for whoever is active: a standby looks only whether the post is free.
            end = time.monotonic() + longest_s
            while (left := end - time.monotonic()) > 0 and hints.wait(left):
                pass
            return
        hints.wait(longest_s)

    def turn(self) -> None:
        """One cycle: everything that is due now."""
        if not self._hold_post():
            return
        self._limits = self._latest_limits.value
        if self._is_due("recover", _RECOVER_EVERY_S):
            self._recover()
            self._fail_removed_collections()
        begin = time.monotonic()
        self._schedule()
        self._metrics.cycle(time.monotonic() - begin)
        if self._is_due("republish", self._settings.republish_after):
            self._republish(older_than_s=self._settings.republish_after)
        if self._is_due("age", _AGE_EVERY_S):
            self._fail_too_old()
        if self._is_due("positions", _POSITIONS_EVERY_S):
            self._tell_positions()

    def _is_due(self, job: str, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(job, 0.0):
            return False
        self._due[job] = now + every_s
        return True

    def _is_active(self) -> bool:
        """Whether the post is ours; not, if the store has been away for so long that another may have it."""
        return self._active and time.monotonic() < self._post_until

    def _hold_post(self) -> bool:
        now = time.monotonic()
        if self._active and now < self._post_until - self._settings.lease * 2 / 3:
            return True
        was_active = self._active
        self._active = self._store.take_post(BROKER, self._holder, duration_s=self._settings.lease)
        self._post_until = now + self._settings.lease
        self._metrics.broker_active(is_active=self._active)
        if self._active and not was_active:
            logger.info("this broker is active now", extra={"holder": self._holder})
            self._positions.clear()
            self._republish(older_than_s=0.0)
        elif was_active and not self._active:
            logger.warning("another broker has taken over; standing by")
        return self._active

    # --- what goes forward

    def _schedule(self) -> None:
        paused = self._store.marked(Mark.PAUSED)
        self._take_back(paused)
        free = self._settings.max_queued - self._store.queued_count()
        if free <= 0:
            return
        names = [
            name
            for name in self._store.waiting_collections()
            if name in self._limits and name not in paused
        ]
        if not names:
            return
        self._rotation += 1
        first = self._rotation % len(names)
        active = self._store.active_counts()
        lines = [
            self._line(name, _of_collection(active, name), free)
            for name in (*names[first:], *names[:first])
        ]
        chosen = list(take_turns(lines, free=free))
        taken = self._store.apply_each(
            [Step(id=w.id, source=Status.WAITING, target=Status.QUEUED) for w in chosen]
        )
        queued = [
            (request, waiting.since)
            for request, waiting in zip(taken, chosen, strict=True)
            if request is not None
        ]
        self._queue.publish([Message(id=r.id, attempt=r.attempt) for r, _ in queued])
        for request, since in queued:
            self._tell_move(request, Status.WAITING, since)
            with log_context(request_id=request.id, user=request.user.username):
                logger.info("queued", extra={"collection": request.collection})

    def _line(self, collection: str, active: Mapping[str, int], free: int) -> Sequence[Waiting]:
        """Up to *free* requests of one collection that its limits allow now."""
        limits = self._limits[collection]
        counts = dict(active)
        line: list[Waiting] = []
        full: set[str] = set()
        while len(line) < free:
            seen = {waiting.id for waiting in line}
            waiting = self._store.next_waiting(collection, leaving_out=full, limit=free + len(seen))
            fresh = [candidate for candidate in waiting if candidate.id not in seen]
            choice = choose(fresh, limits=limits, active=counts, free=free - len(line))
            line.extend(choice.chosen)
            for candidate in choice.chosen:
                counts[candidate.user.id] = counts.get(candidate.user.id, 0) + 1
            if not choice.saturated - full or len(waiting) < free + len(seen):
                break
            full |= choice.saturated
        return line

    def _republish(self, *, older_than_s: float) -> None:
        """Put on the queue again what is queued but not there: messages are allowed to get lost."""
        if self._queue.size() >= self._store.queued_count():
            return
        lost = self._store.queued_since(
            self._store.now() - older_than_s, limit=max(_BATCH, 2 * self._settings.max_queued)
        )
        if lost:
            logger.info("publishing again what may have got lost", extra={"messages": len(lost)})
            self._metrics.republished(len(lost))
            self._queue.publish([Message(id=i, attempt=attempt) for i, attempt in lost])

    # --- what goes back, or ends

    def _take_back(self, paused: Collection[str]) -> None:
        """Let what is queued of paused collections wait again; what runs goes on."""
        for name in paused:
            queued = self._store.find(
                Wanted(statuses={Status.QUEUED}, collection=name), limit=_BATCH
            )
            taken = self._store.apply_each(
                [Step(id=r.id, source=Status.QUEUED, target=Status.WAITING) for r in queued]
            )
            for before, request in zip(queued, taken, strict=True):
                if request is not None:
                    self._tell_move(request, Status.QUEUED, before.modified_at)
                    with log_context(request_id=request.id, user=request.user.username):
                        logger.info("waits again: its collection is paused")

    def _recover(self) -> None:
        while expired := self._store.expired_leases(limit=_BATCH):
            taken = self._store.apply_each([self._after_death(request) for request in expired])
            for before, request in zip(expired, taken, strict=True):
                if request is not None:
                    self._metrics.lease_expired()
                    self._tell(request, Status.PROCESSING, before.modified_at)
            if not any(taken):
                return

    def _after_death(self, request: Request) -> Step:
        last = request.tries >= self._settings.max_attempts
        message = (
            f"The worker was lost while it ran this request, {request.tries} times in a row; "
            f"it was not tried again. Please quote {request.id}."
            if last
            else f"The worker was lost; this is attempt {request.tries + 1}."
        )
        return Step(
            id=request.id,
            source=Status.PROCESSING,
            target=Status.FAILED if last else Status.WAITING,
            lease=request.lease,
            message=message,
            count_attempt=not last,
            only_if_expired=True,
        )

    def _fail_removed_collections(self) -> None:
        for name in self._store.waiting_collections():
            if name in self._limits:
                continue
            for _ in range(_BATCH // _RECORDS):
                if not self._fail_old_of(name):
                    break

    def _fail_old_of(self, removed: str) -> bool:
        """Fail the next waiting requests of a collection that is not here; whether all were old enough."""
        waiting = self._store.next_waiting(removed, leaving_out=(), limit=_RECORDS)
        found = self._store.get_many([w.id for w in waiting])
        before = self._store.now() - self._grace_s
        old = [request for request in found.values() if request.created_at <= before]
        self._fail(old, Status.WAITING, f"The collection {removed} is not offered any more.")
        return 0 < len(waiting) == len(old)

    def _fail_too_old(self) -> None:
        before = self._store.now() - self._settings.max_age
        days = self._settings.max_age / 86400
        message = f"This request did not finish within {days:g} days and was given up."
        for status in (Status.WAITING, Status.QUEUED):
            old = self._store.unfinished_before(before, status=status, limit=_BATCH)
            self._fail(old, status, message)

    def _fail(self, requests: Sequence[Request], source: Status, message: str) -> None:
        steps = [
            Step(id=r.id, source=source, target=Status.FAILED, message=message) for r in requests
        ]
        for before, request in zip(requests, self._store.apply_each(steps), strict=True):
            if request is not None:
                self._tell(request, source, before.modified_at)

    def _tell(self, request: Request, source: Status, since: float | None) -> None:
        with log_context(request_id=request.id, user=request.user.username):
            logger.warning(
                request.message or "moved on",
                extra={"collection": request.collection, "status": request.status},
            )
        self._tell_move(request, source, since)
        self._queue.hint(Topic.CHANGED, request.id)

    def _tell_move(self, request: Request, source: Status, since: float | None) -> None:
        """Tell metrics and traces that a request was taken out of *source*, where it stood since then."""
        self._metrics.request_moved(request, source=source, since=since)
        if since is not None and self._traces.wants(request.id):
            span = Span(
                name=source,
                start=since,
                end=request.modified_at,
                attributes=about(request, to=str(request.status)),
                failed=request.status is Status.FAILED or source is Status.PROCESSING,
            )
            self._traces.add(request.id, span)

    def _tell_positions(self) -> None:
        waiting = self._store.waiting_collections()
        for name in {*waiting, *self._positions}:
            line = self._store.next_waiting(name, leaving_out=(), limit=POSITIONS)
            ids = [candidate.id for candidate in line]
            if ids != self._positions.get(name):
                self._store.put_positions(name, ids)
                self._positions[name] = ids


def _of_collection(active: Mapping[tuple[str, str], int], name: str) -> Mapping[str, int]:
    return {user_id: count for (collection, user_id), count in active.items() if collection == name}
