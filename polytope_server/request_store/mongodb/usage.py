"""Records of use: each lies in its request's document until it is forgotten, also when that is removed.

Nearly every document has one record at most, and an index has these in the order of their keys. One that
has failed, was started over, and has ended again before the first record was forgotten, has several: the
first of them is found by that index, the others by one that has only such documents.
"""

from collections.abc import Collection, Sequence
from functools import partial

from pymongo import ASCENDING, UpdateOne

from polytope_server.request_store import Usage, UsageKey
from polytope_server.request_store.mongodb.base import Base, pages
from polytope_server.request_store.mongodb.connection import Document
from polytope_server.request_store.mongodb.documents import GONE, KEPT_OF_GONE, date, usage_of
from polytope_server.request_store.mongodb.pipelines import WITHOUT_USAGE, usage_forgotten
from polytope_server.request_store.mongodb.schema import EPOCH

_FIELDS = dict.fromkeys(KEPT_OF_GONE, 1)


class UsageRecords(Base):
    """Read, and forget."""

    def usage(self, *, after: UsageKey = (0.0, ""), limit: int = 500) -> Sequence[Usage]:
        found = self._do(lambda: self._usage(after, limit))
        return sorted(found, key=lambda usage: usage.key)[:limit]

    def _usage(self, after: UsageKey, limit: int) -> list[Usage]:
        at, request_id = date(after[0]), after[1]
        found: list[Usage] = []
        for bounds in ({"usage_at": at, "_id": {"$gt": request_id}}, {"usage_at": {"$gt": at}}):
            if len(found) < limit:
                documents = self._db.requests.find(
                    bounds,
                    _FIELDS,
                    sort=[("usage_at", ASCENDING), ("_id", ASCENDING)],
                    limit=limit,
                    batch_size=limit,
                )
                found += [usage_of(document, document["usage"][0]) for document in documents]
        for document in self._db.requests.find({"usage_more_at": {"$gte": at}}, _FIELDS):
            further = [usage_of(document, record) for record in document["usage"][1:]]
            found += [usage for usage in further if usage.key > after]
        return found

    def forget_usage(self, keys: Collection[UsageKey]) -> None:
        for page in pages(keys):
            self._do(partial(self._forget, page))

    def _forget(self, keys: Sequence[UsageKey]) -> None:
        changes = []
        for finished_at, request_id in keys:
            at = date(finished_at)
            changes.append(
                UpdateOne({"_id": request_id, "usage.finished_at": at}, usage_forgotten(at))
            )
        self._db.requests.bulk_write(changes, ordered=False)
        these: Document = {"_id": {"$in": sorted({request_id for _, request_id in keys})}}
        self._db.requests.delete_many({**these, "state": GONE, **WITHOUT_USAGE})

    def usage_count(self) -> int:
        return self._do(lambda: self._db.requests.count_documents({"usage_at": {"$gte": EPOCH}}))
