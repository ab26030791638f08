"""The worker: takes requests off the queue, runs them in slot processes, and watches over them."""

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from polytope_server.config.model import WorkerSection
from polytope_server.errors import (
    BackendUnavailable,
    DatasourceFailed,
    RequestNotFound,
    StepLost,
    StorageFull,
)
from polytope_server.lifecycle import Stop, Stopped, patiently
from polytope_server.observability.context import log_context
from polytope_server.observability.metrics import Metrics
from polytope_server.observability.tracing import NO_TRACES, Span, Traces, about
from polytope_server.queue import Delivery, Hints, Queue, Topic
from polytope_server.reloading import Current
from polytope_server.request import (
    DataObject,
    Lease,
    Request,
    Status,
    Step,
    Verb,
    stood_since,
)
from polytope_server.request_store import RequestStore
from polytope_server.staging import Staging
from polytope_server.worker import transfer
from polytope_server.worker.frames import Job
from polytope_server.worker.run import Reason, Run
from polytope_server.worker.slot_process import SlotDied, SlotProcess

logger = logging.getLogger(__name__)

_WATCH_S = 0.2
"""How often time and memory of running requests are looked at."""
_OWNERSHIP_S = 1.0
"""How often the store is asked whether they are still ours, besides being woken."""
_UNKNOWN_S = 2.0
"""How long a request whose datasource is not here is kept before it is handed on."""
_UNKNOWN_LOOK_S = 0.1
_AWAY_LOG_S = 10.0
"""Between two lines of the log that say that a back-end is away."""
_CUT_S = 10.0
"""How long what was cut off may take to end: a server that does not answer may hold it for longer."""
_HANDED_ON = "Handed on to another worker"
_RETRY_FIRST_S = 1.0
_RETRY_LONGEST_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A datasource as the configuration has it: its type and its options."""

    type: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """All datasources, by the names of a collection and of a datasource in it, and how slots log."""

    by_name: Mapping[tuple[str, str], Source]
    log_level: str

    def outdates(self, known: "Sources") -> bool:
        """Whether something that a process has known is another thing now."""
        return self.log_level != known.log_level or any(
            known.by_name.get(name, source) != source for name, source in self.by_name.items()
        )

    def added_to(self, known: "Sources") -> "Sources":
        """What a process knows that has known those and goes on by these; what has gone is remembered."""
        return replace(self, by_name={**known.by_name, **self.by_name})


_SLOT_END: Final[Mapping[Reason | None, str]] = {
    Reason.LOST: "revoked",
    Reason.DRAIN: "drained",
    Reason.TIMEOUT: "timeout",
    Reason.MEMORY: "memory",
    None: "crashed",
}
"""What the metrics call it when a slot's process was killed; None is by nobody of us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ends in the store."""

    target: Status
    message: str
    result: DataObject | None = None


class _Unknown(Exception):
    """A request's datasource is not here; it may be so only because we have not heard of it yet."""


class Worker:
    """A supervisor with a number of slots. Runs until asked to stop, then drains.

    Args:
        sources: each request is run by what it was when the request was taken.
        grace_s: age up to which a request whose datasource is not here is handed on instead of failed.
            Frontends may have read of a new one before we do.
    """

    def __init__(
        self,
        *,
        store: RequestStore,
        queue: Queue,
        staging: Staging,
        sources: Current[Sources],
        settings: WorkerSection,
        metrics: Metrics,
        grace_s: float,
        traces: Traces = NO_TRACES,
    ) -> None:
        self._store, self._queue, self._staging = store, queue, staging
        self._sources, self._settings, self._metrics = sources, settings, metrics
        self._grace_s, self._traces = grace_s, traces
        self._name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._runs: set[Run] = set()
        self._draining = False
        self._lock = threading.Lock()
        self._told_away_at = float("-inf")
        self._abandon = Stop()

    def run(self, stop: Stop) -> bool:
        """Work until asked to stop; then let what runs end, or hand it back.

        Returns:
            Whether all threads have ended, as they do unless a server does not answer.
        """
        self._metrics.slots(busy=0, total=self._settings.slots)
        slots = [
            threading.Thread(
                target=self._slot, args=(number, stop), name=f"slot {number}", daemon=True
            )
            for number in range(self._settings.slots)
        ]
        finished = Stop()
        watcher = threading.Thread(
            target=self._watch, args=(finished,), name="watcher", daemon=True
        )
        for thread in (watcher, *slots):
            thread.start()
        logger.info("worker started", extra={"holder": self._name, "slots": len(slots)})
        while not stop.wait(3600):
            pass
        have_ended = False
        try:
            have_ended = self._drain(slots)
            finished.request()
            watcher.join()
            self._store.leave(self._name)
        except BackendUnavailable:
            logger.info("could not take leave; the store forgets this worker by itself")
        finally:
            finished.request()
        logger.info("worker stopped")
        return have_ended

    def _drain(self, slots: list[threading.Thread]) -> bool:
        """Wait for them; whether all have ended.

        Raises:
            BackendUnavailable: what could not end was not handed on either.
        """
        logger.info("draining", extra={"running": len(self._runs)})
        if not _joined(slots, timeout_s=self._settings.drain_timeout):
            self._abandon.request()
            for run in self._running():
                run.cut(Reason.DRAIN)
            if not _joined(slots, timeout_s=_CUT_S):
                self._hand_back(self._running())
                return False
        return True

    def _hand_back(self, runs: Sequence[Run]) -> None:
        """Let other workers have what threads of ours hold that wait for staging."""
        steps = [
            Step(
                id=run.request.id,
                source=Status.PROCESSING,
                target=Status.WAITING,
                lease=run.lease,
                # what our thread still writes has the name of this attempt, and must not meet the next one's
                count_attempt=True,
                message=_HANDED_ON,
            )
            for run in runs
        ]
        for request in self._store.apply_each(steps):
            if request is not None:
                self._queue.hint(Topic.CHANGED, request.id)
                with log_context(request_id=request.id, user=request.user.username):
                    logger.info("handed on, although staging has not answered yet")

    # --- a slot

    def _slot(self, number: int, stop: Stop) -> None:
        slot = _Slot(
            holder=f"{self._name}/{number}",
            settings=self._settings,
            sources=self._sources,
            metrics=self._metrics,
        )
        with (
            self._queue.listen(Topic.PUBLISHED) as hints,
            stop.calling(hints.interrupt),
            contextlib.closing(slot),
        ):
            while not stop.requested:
                try:
                    slot.ready_process()
                    if self._draining:
                        hints.wait(min(self._settings.poll_interval, _OWNERSHIP_S))
                    else:
                        self._next(slot, hints)
                except BackendUnavailable as exc:
                    self._tell_away(exc)
                    stop.wait(1.0)
                except Exception:
                    # Whatever went wrong with one request, the slot is there for the next one.
                    logger.exception("a slot's turn failed")
                    slot.discard()
                    stop.wait(1.0)

    def _tell_away(self, cause: BackendUnavailable) -> None:
        """Once for all slots, and from time to time while it lasts."""
        now = time.monotonic()
        if now - self._told_away_at >= _AWAY_LOG_S:
            self._told_away_at = now
            logger.warning("a back-end is away", extra={"cause": str(cause)})

    def _next(self, slot: "_Slot", hints: Hints) -> None:
        delivery = self._queue.receive()
        if delivery is None:
            hints.wait(self._settings.poll_interval)
            return
        lease = Lease(holder=slot.holder, attempt=delivery.message.attempt)
        request = self._take(delivery, lease)
        try:
            self._queue.acknowledge(delivery)
        except BackendUnavailable as exc:
            logger.info("could not acknowledge; it will come again", extra={"cause": str(exc)})
        self._queue.hint(Topic.TAKEN, delivery.message.id)
        if request is None:
            return
        self._queue.hint(Topic.CHANGED, request.id)
        self._tell_taken(request)
        run = Run(request, lease)
        with self._lock:
            superseded = [other for other in self._runs if other.request.id == request.id]
            self._runs.add(run)
        for other in superseded:  # taken from us while we could not renew it
            other.cut(Reason.LOST)
        slot.run = run
        self._metrics.slots(busy=len(self._runs), total=self._settings.slots)
        try:
            with log_context(request_id=request.id, user=request.user.username):
                self._work(run, slot)
        finally:
            slot.run = None
            with self._lock:
                self._runs.discard(run)
            self._metrics.slots(busy=len(self._runs), total=self._settings.slots)
        if run.reason is Reason.LOST:
            self._tell_cancelled(run, time.monotonic())

    def _take(self, delivery: Delivery, lease: Lease) -> Request | None:
        """Take the lease; None if the request is not to be had (any more)."""
        request_id = delivery.message.id
        step = Step(
            id=request_id,
            source=Status.QUEUED,
            target=Status.PROCESSING,
            lease=lease,
            lease_s=self._settings.lease,
            message="",
        )
        try:
            return self._store.apply(step)
        except (StepLost, RequestNotFound):
            logger.info("dropped a message of the past", extra={"request_id": request_id})
            return None
        except BackendUnavailable:
            # It may have happened: then the lease is ours, and nobody else will do the work.
            with contextlib.suppress(RequestNotFound, BackendUnavailable):
                request = self._store.get(request_id)
                if request.status is Status.PROCESSING and request.lease == lease:
                    return request
            self._queue.put_back(delivery)
            raise

    # --- one request

    def _work(self, run: Run, slot: "_Slot") -> None:
        request = run.request
        logger.info(
            "started",
            extra={
                "collection": request.collection,
                "datasource": request.datasource,
                "attempt": run.lease.attempt,
            },
        )
        outcome = self._outcome(run, slot)
        if outcome is None:
            logger.info("stopped: the request was revoked or is somebody else's by now")
            return
        moved = self._finish(run, outcome)
        elapsed_s = time.monotonic() - run.started
        if moved is None:
            self._unstage(outcome)
            logger.info("the request was revoked or taken over before it was finished")
            return
        self._queue.hint(Topic.CHANGED, request.id)
        self._tell_moved(run, moved)
        log = logger.warning if outcome.target is Status.FAILED else logger.info
        log(
            "finished",
            extra={
                "status": outcome.target,
                "seconds": round(elapsed_s, 3),
                "bytes": run.bytes_staged,
                "reason": outcome.message,
            },
        )
        if outcome.target is Status.PROCESSED and request.input and request.input.name:
            self._drop_input(request, request.input)

    def _outcome(self, run: Run, slot: "_Slot") -> Outcome | None:
        """Run to the end; None if nothing may be written about it any more."""
        try:
            result = self._run_patiently(run, slot, self._source(run))
        except _Unknown:
            return Outcome(target=Status.WAITING, message=_HANDED_ON)
        except DatasourceFailed as exc:
            return Outcome(target=Status.FAILED, message=str(exc))
        except SlotDied as exc:
            return self._after_cut(run, how=str(exc))
        except (BackendUnavailable, Stopped) as exc:
            if run.reason is not None or isinstance(exc, Stopped):
                return self._after_cut(run, how=str(exc))
            logger.warning("staging stayed away", extra={"cause": str(exc)})
            return Outcome(target=Status.FAILED, message=_no_room(run, exc))
        except Exception as exc:
            if run.reason is not None:
                return self._after_cut(run, how=repr(exc))
            # Nobody else would tell the user before the lease has run out, time after time.
            logger.exception("running it failed")
            slot.discard()
            return Outcome(
                target=Status.FAILED,
                message="The server failed over this request. This is not your fault; "
                f"please quote {run.request.id}.",
            )
        finally:
            run.on(None)
        return Outcome(target=Status.PROCESSED, message="Success", result=result)

    def _source(self, run: Run) -> Source:
        """Where the request's data come from.

        Raises:
            DatasourceFailed: it was taken away.
            _Unknown: it is not here (yet).
            Stopped: the request was revoked meanwhile, or the worker is to end.
        """
        request = run.request
        name = (request.collection, request.datasource)
        source = self._sources.value.by_name.get(name)
        if source is not None:
            return source
        now = patiently(self._store.now, stop=self._abandon, what="request_store")
        if now - request.created_at >= self._grace_s:
            raise DatasourceFailed(
                f"The datasource of this request is not offered in collection "
                f"{request.collection} any more; submit it again."
            )
        logger.info("the datasource is not known here", extra={"datasource": request.datasource})
        end = time.monotonic() + _UNKNOWN_S
        while time.monotonic() < end:
            if run.reason is not None or self._abandon.wait(_UNKNOWN_LOOK_S):
                raise Stopped
            if source := self._sources.value.by_name.get(name):
                return source
        raise _Unknown

    def _run_patiently(self, run: Run, slot: "_Slot", source: Source) -> DataObject | None:
        """Run it, again and again while staging has no room or is away, for some minutes at most."""
        deadline = time.monotonic() + self._settings.storage_retry
        pause_s = _RETRY_FIRST_S
        while True:
            run.attempted = time.monotonic()
            try:
                return self._run_once(run, slot, source)
            except BackendUnavailable as exc:
                slot.discard()
                if run.reason is not None or time.monotonic() + pause_s > deadline:
                    raise
                logger.warning("staging cannot take the result now", extra={"cause": str(exc)})
            end = time.monotonic() + pause_s
            while run.reason is None and time.monotonic() < end:
                if self._abandon.wait(min(_WATCH_S, pause_s)):
                    raise Stopped
            if run.reason is not None:
                raise BackendUnavailable("cut off while waiting for staging")
            pause_s = min(_RETRY_LONGEST_S, 2 * pause_s)

    def _run_once(self, run: Run, slot: "_Slot", source: Source) -> DataObject | None:
        request = run.request
        job = Job(
            id=request.id,
            user=request.user,
            verb=request.verb,
            datasource=source.type,
            options=source.options,
            request=request.coerced_request,
            text=request.user_request,
        )
        process = slot.ready_process()
        run.on(process)
        try:
            if request.verb is Verb.ARCHIVE:
                transfer.archive(run, job, process, self._staging, directory=self._settings.tmp_dir)
                return None
            return transfer.retrieve(
                run,
                job,
                process,
                self._staging,
                max_bytes=self._settings.max_result,
                staged=self._metrics.staged,
            )
        finally:
            name = (request.collection, request.datasource)
            is_outdated = self._sources.value.by_name.get(name) != source
            # of no use to the next request
            if is_outdated or not process.is_idle or not process.is_alive():
                slot.discard()

    def _after_cut(self, run: Run, *, how: str) -> Outcome | None:
        reason = run.reason or (Reason.DRAIN if self._abandon.requested else None)
        self._metrics.slot_ended(_SLOT_END[reason])
        match run.reason:
            case Reason.LOST:
                return None
            case Reason.DRAIN:
                return Outcome(target=Status.WAITING, message=_HANDED_ON)
            case Reason.TIMEOUT:
                return Outcome(
                    target=Status.FAILED,
                    message=f"The datasource did not deliver within {self._settings.timeout:g} "
                    "seconds and was stopped; ask for less in one request.",
                )
            case Reason.MEMORY:
                return Outcome(
                    target=Status.FAILED,
                    message="The request needed more memory than it may have and was stopped; "
                    "ask for less in one request.",
                )
        if self._abandon.requested:
            return Outcome(target=Status.WAITING, message=_HANDED_ON)
        logger.error("the datasource crashed", extra={"how": how})
        return Outcome(
            target=Status.FAILED,
            message=f"The datasource crashed ({how}). This is not your fault; "
            f"please quote {run.request.id}.",
        )

    def _finish(self, run: Run, outcome: Outcome) -> Request | None:
        """Write the outcome; None if the request is not ours any more."""
        step = Step(
            id=run.request.id,
            source=Status.PROCESSING,
            target=outcome.target,
            lease=run.lease,
            message=outcome.message,
            result=outcome.result,
        )
        try:
            return patiently(
                lambda: self._store.apply(step), stop=self._abandon, what="request_store"
            )
        except RequestNotFound:
            return None
        except StepLost:
            return self._was_ours(step)
        except Stopped:
            logger.warning("ended without writing the outcome; the lease will run out")
            return None

    def _was_ours(self, step: Step) -> Request | None:
        """The request, if a step that seems lost is one of ours whose answer got lost on its way."""
        try:
            request = patiently(
                lambda: self._store.get(step.id), stop=self._abandon, what="request_store"
            )
        except (RequestNotFound, Stopped):
            return None
        was_ours = (
            request.status is step.target
            and request.result == step.result
            and (step.lease is not None and request.attempt == step.lease.attempt)
        )
        return request if was_ours else None

    def _unstage(self, outcome: Outcome) -> None:
        if outcome.result is not None:
            try:
                self._staging.delete(outcome.result.name)
            except BackendUnavailable as exc:
                logger.info("the collector will remove the result", extra={"cause": str(exc)})

    def _drop_input(self, request: Request, data: DataObject) -> None:
        try:
            self._staging.delete(data.name)
            self._store.forget_input(request.id, data)
        except BackendUnavailable as exc:
            logger.info("the collector will remove the input", extra={"cause": str(exc)})

    # --- what is told of it

    def _tell_taken(self, request: Request) -> None:
        since = stood_since(request, Status.QUEUED)
        self._metrics.request_moved(request, source=Status.QUEUED, since=since)
        if since is not None and self._traces.wants(request.id):
            attributes = about(request, attempt=request.attempt)
            span = Span(name="queued", start=since, end=request.modified_at, attributes=attributes)
            self._traces.add(request.id, span)

    def _tell_moved(self, run: Run, moved: Request) -> None:
        self._metrics.request_moved(moved, source=Status.PROCESSING, since=run.request.modified_at)
        failed = moved.status is Status.FAILED
        self._trace_processing(run, end=moved.modified_at, to=moved.status, failed=failed)

    def _trace_processing(self, run: Run, *, end: float, to: str, failed: bool = False) -> None:
        request = run.request
        if self._traces.wants(request.id):
            span = Span(
                name="processing",
                start=request.modified_at,
                end=end,
                attributes=about(request, to=to, attempt=request.attempt, bytes=run.bytes_staged),
                failed=failed,
                parts=run.parts.noted,
            )
            self._traces.add(request.id, span)

    def _tell_cancelled(self, run: Run, freed: float) -> None:
        """How long a revoked request still had its slot. The record is gone, and with it the very moment.

        It is that of the hint, which is sent right after; without one it is the latest moment at which the
        request was still there, so that what is told is rather too long than too short.
        """
        if run.told_revoked is None:
            try:
                self._store.get(run.request.id)
            except RequestNotFound:
                self._metrics.cancelled(noticed="check", duration_s=freed - run.known_good)
            except BackendUnavailable as exc:
                logger.info("Was it revoked, or taken over?", extra={"cause": str(exc)})
                return
            else:
                return  # somebody else has it
        else:
            self._metrics.cancelled(noticed="hint", duration_s=freed - run.told_revoked)
        self._trace_processing(run, end=time.time(), to="cancelled")

    # --- the watcher

    def _running(self) -> list[Run]:
        with self._lock:
            return list(self._runs)

    def _watch(self, finished: Stop) -> None:
        due = 0.0
        with (
            self._queue.listen(Topic.REVOKED, Topic.MARKED) as hints,
            finished.calling(hints.interrupt),
        ):
            while not finished.requested:
                told = {hint.text for hint in hints.wait(_WATCH_S)}
                runs = self._running()
                for run in runs:
                    if run.request.id in told:
                        run.told_revoked = time.monotonic()
                concerned = {self._name, *(run.request.id for run in runs)}
                try:
                    self._check_limits(runs)
                    if time.monotonic() >= due or told & concerned:
                        due = time.monotonic() + _OWNERSHIP_S
                        self._check_ownership(runs)
                        self._attend(len(runs))
                except BackendUnavailable as exc:
                    # What runs goes on: nobody can take it over from us while the store is away.
                    logger.warning("leases could not be renewed", extra={"cause": str(exc)})
                except Exception:
                    # The leases of all other requests depend on this thread.
                    logger.exception("watching failed")

    def _check_limits(self, runs: list[Run]) -> None:
        for run in runs:
            if time.monotonic() - run.attempted > self._settings.timeout:
                run.cut(Reason.TIMEOUT)
            process = run.process
            if process and process.resident_bytes() > self._settings.memory_limit:
                run.cut(Reason.MEMORY)

    def _check_ownership(self, runs: list[Run]) -> None:
        """Renew all leases in one call; what could not be renewed is not ours any more.

        A request that was taken from us may be ours again, in another slot and for another attempt.
        """
        leases = {(run.request.id, run.lease): run for run in runs}
        asked = time.monotonic()
        ours = self._store.renew(leases.keys(), duration_s=self._settings.lease)
        for lease, run in leases.items():
            if lease not in ours:
                if run in self._running():  # else it has just ended, and given up its lease
                    run.cut(Reason.LOST)
                continue
            run.known_good = asked
            if run.bytes_staged != run.bytes_reported:
                run.bytes_reported = run.bytes_staged
                self._store.report(run.request.id, run.lease, bytes_staged=run.bytes_reported)

    def _attend(self, busy: int) -> None:
        """Say that we are there, and do as an operator wishes."""
        draining = self._store.attend(self._name, slots=self._settings.slots, busy=busy)
        if draining != self._draining:
            self._draining = draining
            logger.info("takes nothing new" if draining else "takes requests again")


class _Slot:
    """A thread's place and its process, which is made again when needed.

    Also when datasources have changed: libraries may remember what they were once opened with.
    """

    def __init__(
        self,
        *,
        holder: str,
        settings: WorkerSection,
        sources: Current[Sources],
        metrics: Metrics,
    ) -> None:
        self.holder = holder
        self.run: Run | None = None
        self._settings, self._sources, self._metrics = settings, sources, metrics
        self._process: SlotProcess | None = None
        self._latest = self._known = sources.value

    def ready_process(self) -> SlotProcess:
        """A process that is alive, not worn out, and knows no datasource as it was."""
        process = self._process
        latest, self._latest = self._latest, self._sources.value
        if process is not None and not process.is_alive():
            self._metrics.slot_ended("crashed")
            self.discard()
        elif process is not None and (
            process.jobs_done >= self._settings.recycle_after
            or process.resident_bytes() > self._settings.recycle_memory
            or (latest is not self._latest and self._latest.outdates(self._known))
        ):
            self._metrics.slot_ended("recycled")
            self.discard()
        if self._process is None:
            self._known = self._latest
            self._process = SlotProcess(
                environment=self._settings.environment,
                memory_limit=self._settings.memory_limit,
                log_level=self._latest.log_level,
                context=self._log_context,
            )
        elif latest is not self._latest:
            self._known = self._latest.added_to(self._known)
        return self._process

    def discard(self) -> None:
        """Kill the process; the next job gets a new one."""
        if self._process is not None:
            self._process.close()
            self._process = None

    close = discard

    def _log_context(self) -> contextlib.AbstractContextManager[None]:
        run = self.run
        if run is None:
            return contextlib.nullcontext()
        return log_context(request_id=run.request.id, user=run.request.user.username)


def _no_room(run: Run, cause: Exception) -> str:
    is_archive = run.request.verb is Verb.ARCHIVE
    what = "The data were not archived" if is_archive else "The result could not be kept"
    why = "had no room" if isinstance(cause, StorageFull) else "could not be reached"
    return (
        f"{what}: the server's storage {why} for some time. "
        f"Submit the request again later; please quote {run.request.id}."
    )


def _joined(threads: Sequence[threading.Thread], *, timeout_s: float) -> bool:
    """Whether all of them have ended, by then at the latest."""
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(timeout=max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)
