"""The collector: one pass after another over the store and the staging, a page at a time."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice

from polytope_server.config.model import GarbageCollectorSection
from polytope_server.errors import BackendUnavailable
from polytope_server.garbage_collector.policies import Ours, old_enough, ours, surplus
from polytope_server.lifecycle import Stop
from polytope_server.observability.context import log_context
from polytope_server.observability.metrics import Metrics
from polytope_server.observability.tracing import NO_TRACES, Span, Traces
from polytope_server.queue import Queue, Topic
from polytope_server.reloading import Current
from polytope_server.request import Request, Status, Step
from polytope_server.request_store import Forgotten, RequestStore, Staged
from polytope_server.staging import Staging, StoredObject

logger = logging.getLogger(__name__)

_PAGE = 500
"""Ids, names and the like that are held at once."""
_RECORDS = 25
"""Whole requests that are held at once: each may be as long as a frontend accepts."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What one pass has removed, or would have."""

    old: int = 0
    surplus: int = 0
    stale_uploads: int = 0
    inputs: int = 0
    dangling: int = 0
    size_bytes: int = 0

    def counts(self) -> dict[str, int]:
        """How many of what, by name."""
        names = (each.name for each in fields(self) if each.name != "size_bytes")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        return (
            f"{self.old} old requests, {self.surplus} requests over the threshold, {self.stale_uploads} "
            f"requests without their data, {self.inputs} uploads of finished requests, {self.dangling} "
            f"objects of no request; {self.size_bytes} bytes"
        )


class Collector:
    """Removes what nobody needs any more. May be killed at any line.

    A record goes before its data: nobody is ever told of a result that is not there, and what we leave
    behind if we die in between belongs to no request, and so goes with a later pass.

    Args:
        settings: each pass works by one value.
        say: told, one line each, of what a dry run would remove.
    """

    def __init__(
        self,
        *,
        store: RequestStore,
        staging: Staging,
        queue: Queue,
        settings: Current[GarbageCollectorSection],
        metrics: Metrics,
        say: Callable[[str], None],
        traces: Traces = NO_TRACES,
    ) -> None:
        self._store, self._staging, self._queue = store, staging, queue
        self._latest_settings, self._settings = settings, settings.value
        self._metrics, self._say, self._traces = metrics, say, traces

    def run(self, stop: Stop) -> None:
        """One pass after another until asked to stop; a back-end that is away ends only the pass."""
        while not stop.requested:
            begin = time.monotonic()
            outcome = "failed"
            try:
                report = self.collect(stop=stop)
            except BackendUnavailable as exc:
                outcome = "away"
                logger.warning("a back-end is away; trying again later", extra={"cause": str(exc)})
            except Exception:
                # The next pass may well succeed, and nobody else cleans up.
                logger.exception("a pass failed")
            else:
                outcome = "done"
                seconds = round(time.monotonic() - begin, 3)
                level = logging.INFO if report != Report() else logging.DEBUG
                logger.log(level, "collected", extra={"report": str(report), "seconds": seconds})
            self._metrics.pass_ended(outcome, duration_s=time.monotonic() - begin, now=time.time())
            stop.wait(self._settings.interval)

    def collect(self, *, dry_run: bool = False, stop: Stop | None = None) -> Report:
        """One pass, or as much of it as there is time for before the end is asked for.

        Raises:
            BackendUnavailable: one is away; what was done until then is done.
        """
        report = Report()
        try:
            self._collect(report, stop or Stop(), dry_run=dry_run)
        finally:
            if not dry_run:
                self._metrics.collected(report.counts(), size_bytes=report.size_bytes)
        return report

    def _collect(self, report: Report, stop: Stop, *, dry_run: bool) -> None:
        self._settings = self._latest_settings.value
        before = self._store.now() - self._settings.age
        self._old_requests(report, before, stop, dry_run=dry_run)
        self._stale_uploads(report, stop, dry_run=dry_run)
        self._objects(report, before, stop, dry_run=dry_run)
        if stop.requested:
            return
        used_bytes = self._surplus(report, before, stop, dry_run=dry_run)
        if not stop.requested and not dry_run:
            self._staging.remove_stale_uploads(age_s=self._settings.dangling_age)
            self._metrics.staging(used_bytes=used_bytes, free_bytes=self._staging.free_bytes())

    # --- requests

    def _old_requests(self, report: Report, before: float, stop: Stop, *, dry_run: bool) -> None:
        """Remove requests that finished before then."""
        after = ""
        while not stop.requested:
            ids = self._store.finished_before(before, after=after, limit=_PAGE)
            if not ids:
                break
            after = ids[-1]
            with self._traced("old", dry_run=dry_run) as removed:
                for gone in self._forget(ids, not_after=before, dry_run=dry_run):
                    report.old += 1
                    why = "finished and old"
                    report.size_bytes += self._remove_data(gone, why=why, dry_run=dry_run)
                    removed.append(gone.id)

    def _forget(
        self, ids: Sequence[str], *, not_after: float, dry_run: bool
    ) -> Iterator[Forgotten]:
        """Remove the records, all of them before any data; in a dry run only say which they are."""
        if not dry_run:
            yield from self._store.remove_if_finished(ids, not_after=not_after)
            return
        for start in range(0, len(ids), _RECORDS):
            for request in self._store.get_many(ids[start : start + _RECORDS]).values():
                objects = [data for data in (request.result, request.input) if data and data.name]
                yield Forgotten(id=request.id, user=request.user, objects=objects)

    def _stale_uploads(self, report: Report, stop: Stop, *, dry_run: bool) -> None:
        before = self._store.now() - self._settings.upload_age
        hours = self._settings.upload_age / 3600
        after = ""
        while not stop.requested:
            page = self._store.unfinished_before(
                before, status=Status.UPLOADING, after=after, limit=_RECORDS
            )
            if not page:
                return
            after = page[-1].id
            if dry_run:
                report.stale_uploads += len(page)
                for request in page:
                    self._say(f"would fail request {request.id}: its data never came")
                continue
            message = f"The data did not arrive within {hours:g} hours; submit the request again."
            steps = [
                Step(id=r.id, source=Status.UPLOADING, target=Status.FAILED, message=message)
                for r in page
            ]
            for upload, failed in zip(page, self._store.apply_each(steps), strict=True):
                if failed is not None:
                    report.stale_uploads += 1
                    with log_context(request_id=failed.id, user=failed.user.username):
                        logger.info("failed: its data never came")
                    self._metrics.request_moved(
                        failed, source=Status.UPLOADING, since=upload.modified_at
                    )
                    self._queue.hint(Topic.CHANGED, failed.id)

    def _surplus(self, report: Report, before: float, stop: Stop, *, dry_run: bool) -> int:
        """Remove the oldest results while there are too many; how many bytes the others take."""
        # only what can go is measured: no result goes in vain for uploads that wait, or are dangling
        total_bytes = sum(staged.size_bytes for staged in self._results(before))
        too_much = surplus(
            self._results(before), total_bytes=total_bytes, limit_bytes=self._settings.threshold
        )
        why = "the oldest, and results take more than the threshold"
        while not stop.requested and (batch := list(islice(too_much, _PAGE))):
            ids = [staged.id for staged in batch]
            with self._traced("surplus", dry_run=dry_run) as removed:
                for gone in self._forget(ids, not_after=batch[-1].modified_at, dry_run=dry_run):
                    report.surplus += 1
                    gone_bytes = self._remove_data(gone, why=why, dry_run=dry_run)
                    report.size_bytes += gone_bytes
                    total_bytes -= gone_bytes
                    removed.append(gone.id)
        return total_bytes

    @contextmanager
    def _traced(self, reason: str, *, dry_run: bool) -> Iterator[list[str]]:
        """A list for the ids of requests that are removed meanwhile, for their traces."""
        start = time.time()
        removed: list[str] = []
        try:
            yield removed
        finally:
            if removed and not dry_run:
                attributes = {"polytope.reason": reason}
                span = Span(name="remove", start=start, end=time.time(), attributes=attributes)
                self._traces.removed(removed, span)

    def _results(self, since: float) -> Iterator[Staged]:
        """All but those that are old, for these are gone, or in a dry run counted already."""
        after = (since, "")
        while page := self._store.results(after=after, limit=_PAGE):
            after = (page[-1].modified_at, page[-1].id)
            yield from page

    # --- objects

    def _objects(self, report: Report, before: float, stop: Stop, *, dry_run: bool) -> None:
        """Remove objects that nobody needs."""
        now = self._store.now()
        after = ""
        while not stop.requested:
            page = self._staging.list("", after=after, limit=_PAGE)
            if not page:
                break
            after = page[-1].name
            candidates = list(old_enough(ours(page), now=now, age_s=self._settings.dangling_age))
            for each, request in self._expendable(candidates):
                if dry_run and request is not None and request.modified_at < before:
                    continue  # counted with its request
                if not dry_run and not self._may_go(request):
                    continue  # it was started over, and will read its data again
                report.size_bytes += each.object.size_bytes
                if request is None:
                    report.dangling += 1
                    self._remove_object(each.object, "belongs to no request", dry_run=dry_run)
                else:
                    report.inputs += 1
                    self._remove_object(each.object, "its request is finished", dry_run=dry_run)

    def _may_go(self, request: Request | None) -> bool:
        """Whether the upload of what was a finished request is its own no more, from now on."""
        if request is None or request.input is None:
            return True
        return self._store.forget_input(request.id, request.input)

    def _expendable(self, candidates: list[Ours]) -> Iterator[tuple[Ours, Request | None]]:
        """Objects of no request, and uploads of finished requests, which come with theirs.

        An unfinished request may own more than it has announced, and is not asked whether it does. Status
        and names are read at once: a request that finishes meanwhile is seen before, or with its result.
        """
        for start in range(0, len(candidates), _RECORDS):
            yield from self._expendable_of(candidates[start : start + _RECORDS])

    def _expendable_of(self, candidates: list[Ours]) -> Iterator[tuple[Ours, Request | None]]:
        requests = self._store.get_many({each.request_id for each in candidates})
        for each in candidates:
            request = requests.get(each.request_id)
            if request is None:
                yield each, None
            elif request.is_finished:
                name = each.object.name
                if request.input is not None and request.input.name == name:
                    yield each, request
                elif request.result is None or request.result.name != name:
                    yield each, None

    def _remove_data(self, gone: Forgotten, *, why: str, dry_run: bool) -> int:
        """Remove the data of a request whose record is gone; how many bytes they had."""
        size_bytes = sum(data.size_bytes for data in gone.objects)
        if dry_run:
            self._say(f"would remove request {gone.id}, {size_bytes} bytes: {why}")
            return size_bytes
        for data in gone.objects:
            self._staging.delete(data.name)
        self._queue.hint(Topic.CHANGED, gone.id)
        with log_context(request_id=gone.id, user=gone.user.username):
            logger.info("removed", extra={"why": why, "bytes": size_bytes})
        return size_bytes

    def _remove_object(self, stored: StoredObject, why: str, *, dry_run: bool) -> None:
        if dry_run:
            self._say(f"would remove object {stored.name}, {stored.size_bytes} bytes: {why}")
            return
        self._staging.delete(stored.name)
        logger.info("removed an object", extra={"object": stored.name, "why": why})
