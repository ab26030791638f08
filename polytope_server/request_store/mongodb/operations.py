"""What is kept beside the requests: posts, positions, workers, marks, entries, secrets."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from bson import ObjectId
from pymongo import DESCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError

from polytope_server.audit import AuditEntry
from polytope_server.request_store import FORGOTTEN_AFTER_S, Attendance, Mark
from polytope_server.request_store.mongodb.base import Base
from polytope_server.request_store.mongodb.connection import Document
from polytope_server.request_store.mongodb.documents import date, entry_of, seconds, token
from polytope_server.request_store.mongodb.pipelines import attending, post_taken


class _NotDone(Exception):
    """What an entry was kept for turned out not to be there to do."""


class Operations(Base):
    """Everything that is not about one request."""

    # --- the broker

    def put_positions(self, collection: str, ids: Sequence[str]) -> None:
        self._do(
            lambda: self._db.positions.update_one(
                {"_id": collection}, {"$set": {"ids": list(ids)}}, upsert=True
            )
        )

    def positions(self, collection: str) -> Sequence[str]:
        found = self._do(lambda: self._db.positions.find_one({"_id": collection}))
        return list(found["ids"]) if found is not None else []

    def take_post(self, post: str, holder: str, *, duration_s: float) -> bool:
        def take() -> Document:
            found = self._db.posts.find_one_and_update(
                {"_id": post},
                post_taken(holder, duration_s=duration_s),
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
            return found or {}

        def take_or_see() -> Document:
            try:
                return take()
            except DuplicateKeyError:  # somebody has made it at the same moment
                return take()

        return bool(self._do(take_or_see).get("holder") == holder)

    def leave_post(self, post: str, holder: str) -> None:
        self._do(lambda: self._db.posts.delete_one({"_id": post, "holder": holder}))

    def holder_of(self, post: str) -> str | None:
        def ask() -> str | None:
            found = self._db.posts.find_one({"_id": post})
            if found is None or seconds(found["expires_at"]) < self._now():
                return None
            return str(found["holder"])

        return self._do(ask)

    # --- marks

    def mark(self, mark: Mark, name: str, *, audit: AuditEntry) -> bool:
        call, entry_id = token(), ObjectId()
        return self._do(lambda: self._mark(mark, name, audit, call, entry_id))

    def _mark(
        self, mark: Mark, name: str, audit: AuditEntry, call: str, entry_id: ObjectId
    ) -> bool:
        mark_id = _mark_id(mark, name)

        def change() -> bool:
            record = json.dumps(replace(audit, at=self._now()).as_json())
            made: Document = {"kind": str(mark), "name": name, "on": True, "by": call}
            try:
                # One that is there and on does not fit, and cannot be made a second time.
                self._db.marks.update_one(
                    {"_id": mark_id, "on": {"$ne": True}},
                    {"$set": {**made, "record": record}},
                    upsert=True,
                )
            except DuplicateKeyError:
                return self._is_by(mark_id, call, on=True)
            return True

        return self._done_and_noted(audit, entry_id, change)

    def unmark(self, mark: Mark, name: str, *, audit: AuditEntry) -> bool:
        call, entry_id = token(), ObjectId()
        mark_id = _mark_id(mark, name)

        def change() -> bool:
            # Turned off, not deleted, so that it can be told by whom.
            done = self._db.marks.update_one(
                {"_id": mark_id, "on": True}, {"$set": {"on": False, "by": call}}
            )
            return done.matched_count > 0 or self._is_by(mark_id, call, on=False)

        return self._do(lambda: self._done_and_noted(audit, entry_id, change))

    def _done_and_noted(self, audit: AuditEntry, entry_id: ObjectId, change: Any) -> bool:
        with suppress(_NotDone):
            with self._noted(audit, entry_id):
                if not change():
                    raise _NotDone
            return True
        return False

    def _is_by(self, mark_id: str, call: str, *, on: bool) -> bool:
        found = self._db.marks.find_one({"_id": mark_id})
        return found is not None and found["by"] == call and found["on"] is on

    def marked(self, mark: Mark) -> Mapping[str, AuditEntry]:
        def ask() -> list[Document]:
            return list(self._db.marks.find({"kind": str(mark), "on": True}, sort=[("name", 1)]))

        return {document["name"]: entry_of(document) for document in self._do(ask)}

    # --- workers

    def attend(self, worker: str, *, slots: int, busy: int) -> bool:
        def say() -> bool:
            done = self._db.workers.update_one(
                {"_id": worker}, attending(slots=slots, busy=busy), upsert=True
            )
            if done.upserted_id is not None:
                self._forget_workers()
            return (
                self._db.marks.find_one({"_id": _mark_id(Mark.DRAINING, worker), "on": True})
                is not None
            )

        return self._do(say)

    def _forget_workers(self) -> None:
        """Forget those that have not been seen for long, and the marks of all that are not there."""
        before = date(self._now() - FORGOTTEN_AFTER_S)
        self._db.workers.delete_many({"seen_at": {"$lt": before}})
        names = [document["_id"] for document in self._db.workers.find({}, {"_id": 1})]
        self._db.marks.delete_many({"kind": str(Mark.DRAINING), "name": {"$nin": names}})

    def leave(self, worker: str) -> None:
        def go() -> None:
            self._db.workers.delete_one({"_id": worker})
            self._db.marks.delete_one({"_id": _mark_id(Mark.DRAINING, worker)})

        self._do(go)

    def workers(self) -> Sequence[Attendance]:
        found = self._do(lambda: list(self._db.workers.find({}, sort=[("_id", 1)])))
        return [
            Attendance(
                name=document["_id"],
                slots=document["slots"],
                busy=document["busy"],
                seen_at=seconds(document["seen_at"]),
            )
            for document in found
        ]

    # --- entries

    def note(self, entry: AuditEntry) -> None:
        entry_id = ObjectId()
        self._do(lambda: self._note(entry, entry_id))

    def noted(self, *, target: str | None = None, limit: int = 50) -> Sequence[AuditEntry]:
        # Ids of entries that one process has made in one millisecond are in their order.
        latest_first = [("at", DESCENDING), ("_id", DESCENDING)]
        about = {} if target is None else {"target": target}
        found = self._do(lambda: list(self._db.audit.find(about, sort=latest_first, limit=limit)))
        return [entry_of(document) for document in found]

    # --- shared secrets of one deployment

    def shared_secret(self, name: str, proposal: str) -> str:
        def agree() -> Document | None:
            with suppress(DuplicateKeyError):  # another proposal has come at the same moment
                # a name by which our log knows a secret: the driver may log commands and answers
                self._db.secrets.update_one(
                    {"_id": name}, {"$setOnInsert": {"secret": proposal}}, upsert=True
                )
            return self._db.secrets.find_one({"_id": name})

        found = self._do(agree)
        if found is None:
            raise KeyError(name)
        return str(found["secret"])


def _mark_id(mark: Mark, name: str) -> str:
    return f"{mark}/{name}"
