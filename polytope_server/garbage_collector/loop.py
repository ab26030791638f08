"""The collector: one pass after another over the store and the staging, a page at a time."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from polytope_server.config.model import GarbageCollectorSection
from polytope_server.errors import BackendUnavailable
from polytope_server.garbage_collector.policies import Ours, old_enough, ours, surplus
from polytope_server.lifecycle import Stop
from polytope_server.observability.context import log_context
from polytope_server.observability.metrics import Metrics
from polytope_server.queue import Queue, Topic
from polytope_server.request import DataObject, Request, Status, Step
from polytope_server.request_store import RequestStore, Staged
from polytope_server.staging import Staging, StoredObject

logger = logging.getLogger(__name__)

_PAGE = 500


@dataclass(slots=True, kw_only=True)
class Report:
    """What one pass has removed, or would have."""

    old: int = 0
    surplus: int = 0
    stale_uploads: int = 0
    inputs: int = 0
    dangling: int = 0
    size_bytes: int = 0

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
        say: told of each thing that is, or in a dry run would be, removed.
    """

    def __init__(
        self,
        *,
        store: RequestStore,
        staging: Staging,
        queue: Queue,
        settings: GarbageCollectorSection,
        metrics: Metrics,
        say: Callable[[str], None],
    ) -> None:
        self._store, self._staging, self._queue = store, staging, queue
        self._settings, self._metrics, self._say = settings, metrics, say

    def run(self, stop: Stop) -> None:
        """One pass after another until asked to stop; a back-end that is away ends only the pass."""
        while not stop.requested:
            begin = time.monotonic()
            try:
                report = self.collect()
            except BackendUnavailable as exc:
                logger.warning("a back-end is away; trying again later", extra={"cause": str(exc)})
            except Exception:
                # The next pass may well succeed, and nobody else cleans up.
                logger.exception("a pass failed")
            else:
                seconds = round(time.monotonic() - begin, 3)
                level = logging.INFO if report != Report() else logging.DEBUG
                logger.log(level, "collected", extra={"report": str(report), "seconds": seconds})
            stop.wait(self._settings.interval)

    def collect(self, *, dry_run: bool = False) -> Report:
        """One pass.

        Raises:
            BackendUnavailable: one is away; what was done until then is done.
        """
        report = Report()
        self._old_requests(report, dry_run=dry_run)
        self._stale_uploads(report, dry_run=dry_run)
        total_bytes = self._objects(report, dry_run=dry_run)
        self._surplus(report, total_bytes, dry_run=dry_run)
        if not dry_run:
            self._staging.remove_stale_uploads(age_s=self._settings.dangling_age)
        return report

    # --- requests

    def _old_requests(self, report: Report, *, dry_run: bool) -> None:
        before = self._store.now() - self._settings.age
        after = ""
        while ids := self._store.finished_before(before, after=after, limit=_PAGE):
            after = ids[-1]
            for request_id in ids:
                if dry_run:
                    self._say(f"would remove request {request_id}: finished and old")
                    report.old += 1
                elif request := self._store.remove_if_finished(request_id, not_after=before):
                    report.old += 1
                    report.size_bytes += self._remove_data(request, why="finished and old")

    def _stale_uploads(self, report: Report, *, dry_run: bool) -> None:
        before = self._store.now() - self._settings.upload_age
        hours = self._settings.upload_age / 3600
        after = ""
        while page := self._store.unfinished_before(
            before, status=Status.UPLOADING, after=after, limit=_PAGE
        ):
            after = page[-1].id
            report.stale_uploads += len(page)
            if dry_run:
                for request in page:
                    self._say(f"would fail request {request.id}: its data never came")
                continue
            message = f"The data did not arrive within {hours:g} hours; submit the request again."
            steps = [
                Step(id=r.id, source=Status.UPLOADING, target=Status.FAILED, message=message)
                for r in page
            ]
            for failed in self._store.apply_each(steps):
                if failed is not None:
                    with log_context(request_id=failed.id, user=failed.user.username):
                        logger.info("failed: its data never came")
                    self._metrics.request_entered(
                        collection=failed.collection, status=failed.status
                    )
                    self._queue.hint(Topic.CHANGED, failed.id)

    def _surplus(self, report: Report, total_bytes: int, *, dry_run: bool) -> None:
        too_much = surplus(
            self._results(), total_bytes=total_bytes, limit_bytes=self._settings.threshold
        )
        for staged in too_much:
            why = "the oldest, and results take more than the threshold"
            if dry_run:
                self._say(f"would remove request {staged.id}, {staged.size_bytes} bytes: {why}")
                report.surplus += 1
                report.size_bytes += staged.size_bytes
            elif request := self._store.remove_if_finished(staged.id, not_after=staged.modified_at):
                report.surplus += 1
                report.size_bytes += self._remove_data(request, why=why)

    def _results(self) -> Iterator[Staged]:
        after = (0.0, "")
        while page := self._store.results(after=after, limit=_PAGE):
            after = (page[-1].modified_at, page[-1].id)
            yield from page

    # --- objects

    def _objects(self, report: Report, *, dry_run: bool) -> int:
        """Remove objects that nobody needs; how many bytes all the others of ours take."""
        total_bytes = 0
        now = self._store.now()
        after = ""
        while page := self._staging.list("", after=after, limit=_PAGE):
            after = page[-1].name
            known = list(ours(page))
            total_bytes += sum(each.object.size_bytes for each in known)
            candidates = list(old_enough(known, now=now, age_s=self._settings.dangling_age))
            for each, request in self._expendable(candidates):
                total_bytes -= each.object.size_bytes
                report.size_bytes += each.object.size_bytes
                if request is None:
                    report.dangling += 1
                    self._remove_object(each.object, "belongs to no request", dry_run=dry_run)
                else:
                    report.inputs += 1
                    self._remove_object(each.object, "its request is finished", dry_run=dry_run)
                    if not dry_run and request.input is not None:
                        self._store.forget_input(request.id, request.input)
        return total_bytes

    def _expendable(self, candidates: list[Ours]) -> Iterator[tuple[Ours, Request | None]]:
        """Objects of no request, and uploads of finished requests, which come with theirs.

        An unfinished request may own more than it has announced.
        """
        if not candidates:
            return
        ids = {each.request_id for each in candidates}
        requests = self._store.get_many(ids)
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

    def _remove_data(self, request: Request, *, why: str) -> int:
        """Remove the data of a request whose record is gone; how many bytes they had."""
        self._queue.hint(Topic.CHANGED, request.id)
        found: list[DataObject] = [d for d in (request.result, request.input) if d and d.name]
        for data in found:
            self._staging.delete(data.name)
        size = sum(data.size_bytes for data in found)
        with log_context(request_id=request.id, user=request.user.username):
            logger.info("removed", extra={"why": why, "bytes": size})
        return size

    def _remove_object(self, stored: StoredObject, why: str, *, dry_run: bool) -> None:
        if dry_run:
            self._say(f"would remove object {stored.name}, {stored.size_bytes} bytes: {why}")
            return
        self._staging.delete(stored.name)
        logger.info("removed an object", extra={"object": stored.name, "why": why})
