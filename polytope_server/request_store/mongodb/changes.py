"""What becomes of a request: each change is one conditional update of one document.

An update tells how many documents it has changed, but not to a call whose answer was lost, and that comes a
second time. So each leaves the token of its call, and then the request is read: if the token is among
those of its last calls, the change was ours. An update that finds nothing to do is answered only when a
majority has all that was written before it, and so what it did not find.

(One command could change and return a document. But then its second answer is that there is nothing to do,
and servers that are not MongoDB take long over it.)

Removing is a change like the others, into a state that no question asks for. So it can be told by whom a
request was removed, and records of use that nobody has read stay where they are. Then the document is
deleted, or stripped to those records; what was left like this by somebody who died is done by the next
collector.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from bson import ObjectId
from pymongo import UpdateOne
from pymongo.errors import DuplicateKeyError

from polytope_server.audit import AuditEntry
from polytope_server.errors import RequestNotFound, StepLost
from polytope_server.request import FINISHED, DataObject, Lease, Request, Status, Step
from polytope_server.request_store import Forgotten
from polytope_server.request_store.mongodb.admission import Admission, claim_of
from polytope_server.request_store.mongodb.base import field_of, pages
from polytope_server.request_store.mongodb.connection import Document
from polytope_server.request_store.mongodb.documents import (
    GONE,
    REMOVED,
    STATES,
    a_request,
    date,
    is_there,
    not_after,
    object_of,
    token,
    unfinished,
    user_of,
)
from polytope_server.request_store.mongodb.pipelines import (
    LEFT_BEHIND,
    TOKENS,
    WITHOUT_USAGE,
    may_step,
    removed,
    renewed,
    stepped,
)

_FINISHED: Final = sorted(str(status) for status in FINISHED)
_SWEEP_EVERY_S: Final = 60.0
_LEFT_AFTER_S: Final = 60.0


class Changes(Admission):
    """Steps, leases, and removal."""

    _swept_at = -_SWEEP_EVERY_S

    def apply(self, step: Step) -> Request:
        call, entry_id = token(), ObjectId()
        return self._do(lambda: self._apply(step, call, entry_id))

    def apply_each(self, steps: Sequence[Step]) -> Sequence[Request | None]:
        taken: dict[int, Request | None] = {}
        together = [n for n, step in enumerate(steps) if _is_plain(step)]
        if len(together) > 1:
            for page in pages(together):
                calls = [token() for _ in page]
                some = [steps[n] for n in page]
                done = self._do(partial(self._apply_together, some, calls))
                taken.update(zip(page, done, strict=True))
        for n, step in enumerate(steps):
            if n not in taken:
                try:
                    taken[n] = self.apply(step)
                except (StepLost, RequestNotFound):
                    taken[n] = None
        return [taken[n] for n in range(len(steps))]

    def _apply(self, step: Step, call: str, entry_id: ObjectId) -> Request:
        with self._noted(step.audit, entry_id):
            expired_at = date(self._now()) if step.only_if_expired else None
            condition = may_step(step, call, expired_at=expired_at)
            if _gives_a_turn(step):
                self._take_in_turn(step, call, condition)
            else:
                self._db.requests.update_one(condition, stepped(step, call, turn=None, claim=None))
            document = self._db.latest.find_one({"_id": step.id})
            if document is None or not is_there(document):
                raise RequestNotFound(step.id)
            if call not in document["steps"]:
                raise StepLost(f"{step.id} does not stand in {step.source} any more")
        if step.target is Status.QUEUED:
            self._note_dispatched([document])
        return _as_left(step, call, document)

    def _take_in_turn(self, step: Step, call: str, condition: Document) -> None:
        """Take a step into the line, with the next turn of the user."""
        found = self._db.latest.find_one({"_id": step.id}, {"collection": 1, "user_id": 1})
        if found is None or not found.get("user_id"):
            return
        collection, user_id = found["collection"], found["user_id"]
        turn = self._next_turn(collection, user_id)
        refused = 0
        while True:
            change = stepped(step, call, turn=turn, claim=claim_of(collection, user_id, turn))
            try:
                self._db.requests.update_one(condition, change)
            except DuplicateKeyError as exc:
                if field_of(exc) != "claim":
                    raise
                refused += 1
                turn += refused
            else:
                return

    def _apply_together(self, steps: Sequence[Step], calls: Sequence[str]) -> list[Request | None]:
        """Steps without turns and entries, in one command; the tokens tell which of them were taken."""
        now = date(self._now()) if any(step.only_if_expired for step in steps) else None
        self._db.requests.bulk_write(
            [
                UpdateOne(
                    may_step(step, call, expired_at=now if step.only_if_expired else None),
                    stepped(step, call, turn=None, claim=None),
                )
                for step, call in zip(steps, calls, strict=True)
            ],
            ordered=False,
        )
        ids = sorted({step.id for step in steps})
        found = {
            document["_id"]: document
            for document in self._db.latest.find({"_id": {"$in": ids}}, batch_size=len(ids))
            if is_there(document)
        }
        taken: list[Request | None] = []
        queued: list[Document] = []
        for step, call in zip(steps, calls, strict=True):
            document = found.get(step.id)
            if document is None or call not in document["steps"]:
                taken.append(None)
                continue
            taken.append(_as_left(step, call, document))
            if step.target is Status.QUEUED:
                queued.append(document)
        self._note_dispatched(queued)
        return taken

    def _note_dispatched(self, queued: Iterable[Document]) -> None:
        """Remember how far the line has come, for the turn of users who come to it.

        A hint: while it is not written, a user who comes has a turn that is too early by a few.
        """
        furthest: Counter[str] = Counter()
        for document in queued:
            collection, turn = document["collection"], document["turn"]
            furthest[collection] = max(furthest[collection], turn)
        for collection, turn in furthest.items():
            note = partial(
                self._db.dispatched.update_one,
                {"_id": collection},
                {"$max": {"turn": turn}},
                upsert=True,
            )
            self._try("how far a line has come", note)

    # --- leases

    def renew(
        self, leases: Collection[tuple[str, Lease]], *, duration_s: float
    ) -> Collection[tuple[str, Lease]]:
        if not leases:
            return set()
        return self._do(lambda: self._renew(set(leases), duration_s))

    def _renew(
        self, leases: Collection[tuple[str, Lease]], duration_s: float
    ) -> Collection[tuple[str, Lease]]:
        change = renewed(duration_s)
        done = self._db.requests.bulk_write(
            [UpdateOne(_held(request_id, lease), change) for request_id, lease in leases],
            ordered=False,
        )
        if done.matched_count == len(leases):
            return set(leases)
        # Some do not hold any more. An attempt never comes again, so those that hold now held just before.
        ids = sorted({request_id for request_id, _ in leases})
        holding = {
            (document["_id"], Lease(holder=document["holder"], attempt=document["attempt"]))
            for document in self._db.latest.find(
                {"_id": {"$in": ids}, "state": str(Status.PROCESSING)}, {"holder": 1, "attempt": 1}
            )
        }
        return set(leases) & holding

    def report(self, request_id: str, lease: Lease, *, bytes_staged: int) -> None:
        self._do(
            lambda: self._db.hints.update_one(
                _held(request_id, lease), {"$set": {"bytes_staged": bytes_staged}}
            )
        )

    # --- what goes

    def remove(
        self,
        request_id: str,
        *,
        user_id: str | None = None,
        only_unfinished: bool = False,
        audit: AuditEntry | None = None,
    ) -> Request:
        call, entry_id = token(), ObjectId()
        condition: Document = {
            "_id": request_id,
            "state": {"$in": unfinished() if only_unfinished else STATES},
        }
        if user_id is not None:
            condition["user_id"] = user_id
        return self._do(lambda: self._remove(condition, call, audit, entry_id))

    def _remove(
        self, condition: Document, call: str, audit: AuditEntry | None, entry_id: ObjectId
    ) -> Request:
        request_id = condition["_id"]
        with self._noted(audit, entry_id):
            self._db.requests.update_one(condition, removed(call))
            document = self._db.latest.find_one({"_id": request_id, "removed.by": call})
            if document is None:
                raise RequestNotFound(request_id)
        self._tidy([request_id])
        return a_request(document)

    def remove_if_finished(self, ids: Collection[str], *, not_after: float) -> Sequence[Forgotten]:
        gone: list[Forgotten] = []
        for page in pages(ids):
            call = token()
            gone += self._do(partial(self._collect, page, not_after, call))
        if ids and time.monotonic() - self._swept_at > _SWEEP_EVERY_S:
            self._swept_at = time.monotonic()
            self._do(self._sweep)
        return gone

    def _collect(self, ids: list[str], until: float, call: str) -> list[Forgotten]:
        self._db.requests.update_many(
            {
                "_id": {"$in": ids},
                "state": {"$in": _FINISHED},
                "modified_at": {"$lte": not_after(until)},
            },
            removed(call),
        )
        ours = list(self._db.latest.find({"_id": {"$in": ids}, "removed.by": call}))
        self._tidy([document["_id"] for document in ours])
        return [_forgotten(document) for document in ours]

    def _tidy(self, ids: Sequence[str]) -> None:
        """Delete what was removed, but for records of use, which somebody may be forgetting meanwhile."""
        if not ids:
            return
        these: Document = {"_id": {"$in": list(ids)}}
        self._try(
            "tidying",
            lambda: self._db.hints.delete_many({**these, "state": REMOVED, **WITHOUT_USAGE}),
            lambda: self._db.hints.update_many({**these, "state": REMOVED}, LEFT_BEHIND),
            lambda: self._db.hints.delete_many({**these, "state": GONE, **WITHOUT_USAGE}),
        )

    def _sweep(self) -> None:
        """Tidy up after those who died before they could."""
        before = date(self._now() - _LEFT_AFTER_S)
        left = self._db.latest.find({"state": REMOVED}, {"removed.at": 1}, limit=10_000)
        for page in pages(
            document["_id"] for document in left if int(document["removed"]["at"]) < int(before)
        ):
            self._tidy(page)

    def forget_input(self, request_id: str, data: DataObject) -> bool:
        if not data.name:
            return False
        call = token()
        return self._do(lambda: self._forget_input(request_id, data.name, call))

    def _forget_input(self, request_id: str, name: str, call: str) -> bool:
        done = self._db.requests.update_one(
            {"_id": request_id, "state": {"$in": _FINISHED}, "input.name": name},
            {
                "$set": {"input.name": "", "needs_input": True},
                "$push": {"steps": {"$each": [call], "$slice": -TOKENS}},
            },
        )
        if done.matched_count:
            return True
        return self._db.latest.find_one({"_id": request_id, "steps": call}, {}) is not None


def _is_plain(step: Step) -> bool:
    return step.audit is None and not _gives_a_turn(step)


def _gives_a_turn(step: Step) -> bool:
    return step.source in (Status.UPLOADING, Status.FAILED) and step.target is Status.WAITING


def _as_left(step: Step, call: str, document: Document) -> Request:
    """The request as a step has left it, also if others have moved it on since."""
    request = a_request(document)
    if document["steps"][-1] == call:
        return request
    if step.target is Status.PROCESSING and step.lease is not None:
        return replace(
            request,
            status=step.target,
            holder=step.lease.holder,
            attempt=step.lease.attempt,
            lease_expires_at=request.modified_at,  # it is over
        )
    return replace(request, status=step.target, holder=None, lease_expires_at=None)


def _held(request_id: str, lease: Lease) -> dict[str, Any]:
    return {
        "_id": request_id,
        "state": str(Status.PROCESSING),
        "holder": lease.holder,
        "attempt": lease.attempt,
    }


def _forgotten(document: Document) -> Forgotten:
    both = (object_of(document.get("result")), object_of(document.get("input")))
    return Forgotten(
        id=document["_id"],
        user=user_of(document),
        objects=[data for data in both if data is not None and data.name],
    )
