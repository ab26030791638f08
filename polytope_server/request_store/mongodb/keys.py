"""API keys. A user who may have *n* has *n* seats; see admission.py."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from polytope_server.audit import AuditEntry
from polytope_server.errors import KeyNotFound, LimitReached
from polytope_server.request_store import ApiKey
from polytope_server.request_store.mongodb.base import Base, field_of
from polytope_server.request_store.mongodb.connection import Document
from polytope_server.request_store.mongodb.documents import date, seconds, token

_UNEXPIRED: Final[Document] = {
    "$match": {"$expr": {"$gt": [{"$toLong": "$expires_at"}, {"$toLong": "$$NOW"}]}}
}


class Keys(Base):
    """Made, found, removed.

    A removal takes the key's digest away before its document is deleted, so that it can be told by whom it
    was removed. One that is left without a digest is deleted with those that have expired.
    """

    def add_key(self, key: ApiKey, *, lifetime_s: float, max_keys: int) -> ApiKey:
        return self._do(lambda: self._add_key(key, lifetime_s, max_keys))

    def _add_key(self, key: ApiKey, lifetime_s: float, max_keys: int) -> ApiKey:
        now = date(self._now())
        expires_at = date(seconds(now) + lifetime_s)
        made = replace(key, created_at=seconds(now), expires_at=seconds(expires_at))
        user_id = key.user.id
        document = {
            "_id": key.id,
            "digest": key.digest,
            "user_id": user_id,
            "created_at": now,
            "expires_at": expires_at,
            "record": json.dumps(made.as_json()),
        }
        self._db.keys.delete_many({"expires_at": {"$lte": now}})
        while True:
            document["seat"] = self._key_seat(user_id, max_keys)
            try:
                self._db.keys.insert_one(document)
            except DuplicateKeyError as exc:
                if field_of(exc) == "seat":
                    continue
                before = self._db.keys.find_one({"_id": key.id, "digest": key.digest})
                if before is None:
                    raise
                return _key_of(before)  # our own first attempt
            return _key_of(document)

    def _key_seat(self, user_id: str, max_keys: int) -> str:
        """Raises: LimitReached."""
        found = self._db.keys.find({"user_id": user_id}, {"_id": 0, "seat": 1})
        taken = {document["seat"] for document in found}
        free = [seat for number in range(max_keys) if (seat := f"{user_id}/{number}") not in taken]
        if not free or len(taken) >= max_keys:
            raise LimitReached(
                f"You have {len(taken)} API keys and may have {max_keys}; revoke one that you do not need."
            )
        return random.choice(free)  # noqa: S311 -- so that two who come at once do not take the same

    def key(self, digest: str) -> ApiKey | None:
        found = self._ask({"digest": digest})
        return found[0] if found else None

    def keys_of(self, user_id: str) -> Sequence[ApiKey]:
        return self._ask({"user_id": user_id}, {"$sort": {"created_at": 1, "_id": 1}})

    def all_keys(self, *, after: str = "", limit: int = 500) -> Sequence[ApiKey]:
        return self._ask({"_id": {"$gt": after}}, {"$sort": {"_id": 1}}, {"$limit": limit})

    def _ask(self, which: Document, *then: Document) -> list[ApiKey]:
        stages: list[Any] = [{"$match": which}, _UNEXPIRED, *then]
        found = self._do(lambda: list(self._db.keys.aggregate(stages)))
        return [_key_of(document) for document in found]

    def remove_key(
        self, key_id: str, *, user_id: str | None = None, audit: AuditEntry | None = None
    ) -> ApiKey:
        call, entry_id = token(), ObjectId()
        return self._do(lambda: self._remove_key(key_id, user_id, audit, call, entry_id))

    def _remove_key(
        self,
        key_id: str,
        user_id: str | None,
        audit: AuditEntry | None,
        call: str,
        entry_id: ObjectId,
    ) -> ApiKey:
        now = date(self._now())
        which: Document = {"_id": key_id, "expires_at": {"$gt": now}}
        if user_id is not None:
            which["user_id"] = user_id
        gone = {"expires_at": date(0), "user_id": "", "digest": call, "seat": call, "by": call}
        with self._noted(audit, entry_id):
            self._db.keys.update_one(which, {"$set": gone})
            found = self._db.keys.find_one({"_id": key_id, "by": call})
            if found is None:
                raise KeyNotFound("There is no such API key of yours.")
        self._try("deleting a key", lambda: self._db.keys.delete_one({"_id": key_id, "by": call}))
        return _key_of(found)


def _key_of(document: Document) -> ApiKey:
    return ApiKey.from_json(json.loads(document["record"]))
