"""What becomes of a request: each change is one conditional update of one document.

A change is tried by the token of its call. Where the update finds nothing to do, the request is read, and
if the token is among those of its last calls, the change was ours and only its answer was lost. The update
that found nothing has made sure that a majority has what it did not find: that is how MongoDB
acknowledges a write that changes nothing.

Removing is a change like the others, into a state that no question asks for. So it can be told by whom a
request was removed, and records of use that nobody has read stay where they are. Then the document is
deleted, or stripped to those records; what was left like this by somebody who died is done by the next
collector.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any, Final

from bson import ObjectId
from pymongo import ReturnDocument, UpdateOne
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
            document = self._take(step, call)
        if step.target is Status.QUEUED:
            self._note_dispatched([document])
        return a_request(document)

    def _take(self, step: Step, call: str) -> Document:
        """Raises: RequestNotFound, StepLost."""
        expired_at = date(self._now()) if step.only_if_expired else None
        condition = may_step(step, call, expired_at=expired_at)
        if not _gives_a_turn(step):
            change = stepped(step, call, turn=None, claim=None)
            document = self._db.requests.find_one_and_update(
                condition, change, return_document=ReturnDocument.AFTER
            )
        else:
            document = self._take_in_turn(step, call, condition)
        return document if document is not None else self._was_ours(step, call)

    def _take_in_turn(self, step: Step, call: str, condition: Document) -> Document | None:
        """Take a step into the line, with the next turn of the user."""
        found = self._db.latest.find_one({"_id": step.id}, {"collection": 1, "user_id": 1})
        if found is None or "user_id" not in found:
            return None
        collection, user_id = found["collection"], found["user_id"]
        turn = self._next_turn(collection, user_id)
        refused = 0
        while True:
            change = stepped(step, call, turn=turn, claim=claim_of(collection, user_id, turn))
            try:
                return self._db.requests.find_one_and_update(
                    condition, change, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError as exc:
                if field_of(exc) != "claim":
                    raise
                refused += 1
                turn += refused

    def _was_ours(self, step: Step, call: str) -> Document:
        """The request, if this very call has taken the step before.

        Raises: RequestNotFound, StepLost.
        """
        found = self._db.latest.find_one({"_id": step.id})
        if found is None or not is_there(found):
            raise RequestNotFound(step.id)
        if call not in found["steps"]:
            raise StepLost(f"{step.id} does not stand in {step.source} any more")
        return found

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
        taken = [
            (step, document)
            if (document := found.get(step.id)) is not None and call in document["steps"]
            else None
            for step, call in zip(steps, calls, strict=True)
        ]
        self._note_dispatched(
            [one[1] for one in taken if one is not None and one[0].target is Status.QUEUED]
        )
        return [a_request(one[1]) if one is not None else None for one in taken]

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
            document = self._db.requests.find_one_and_update(
                condition, removed(call), return_document=ReturnDocument.BEFORE
            )
            if document is None:
                document = self._db.latest.find_one({"_id": request_id, "removed.by": call})
            if document is None or "schema" not in document:
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
