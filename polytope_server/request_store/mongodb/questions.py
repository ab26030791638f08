"""What is asked of the store. Every question has an index whose order is that of its answer.

A page that goes on after a request is read as two ranges of an index, one of equal times and greater ids, the
other of later times: a server that is asked for both at once may not see that an index has the order.
Where more is asked than an index holds, `Range.rest` has it: it comes in a stage of its own, and is applied
to what the index finds.
"""

import heapq
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Final

from bson.datetime_ms import DatetimeMS
from pymongo import ASCENDING, DESCENDING

from polytope_server.request import FINISHED, Request, Status
from polytope_server.request_store import Staged, Waiting, Wanted
from polytope_server.request_store.mongodb.base import Base, pages
from polytope_server.request_store.mongodb.connection import Document
from polytope_server.request_store.mongodb.documents import (
    a_request,
    date,
    is_there,
    not_after,
    not_before,
    request_of,
    seats_of,
    seconds,
    text_bytes,
    user_of,
)
from polytope_server.user import User

_LINES: Final = 100
"""So many users' lines are read as one: MongoDB merges up to 200 ranges of an index in its order."""
_READ_AHEAD: Final = 100
_IN_LINE: Final = ("turn", "created_at", "_id")


@dataclass(frozen=True, slots=True)
class Range:
    """A part of an index, and what is wanted of it."""

    bounds: Document
    rest: Document = field(default_factory=dict)

    @property
    def stages(self) -> list[Document]:
        return [{"$match": self.bounds}, *([{"$match": self.rest}] if self.rest else [])]


class Questions(Base):
    """Everything that only reads requests."""

    def get(self, request_id: str) -> Request:
        return request_of(
            self._do(lambda: self._db.requests.find_one({"_id": request_id})), request_id
        )

    def get_many(self, ids: Collection[str]) -> Mapping[str, Request]:
        found: dict[str, Request] = {}
        for page in pages(ids):
            documents = self._do(partial(self._these, page))
            found |= {
                document["_id"]: a_request(document) for document in documents if is_there(document)
            }
        return found

    def _these(self, ids: list[str]) -> list[Document]:
        return list(self._db.requests.find({"_id": {"$in": ids}}, batch_size=len(ids)))

    # --- a user's own

    def unfinished_ids(self, user_id: str) -> Sequence[str]:
        def ask() -> list[Document]:
            return list(
                self._db.requests.find(
                    {"seat": seats_of(user_id)}, {"created_at": 1}, batch_size=10_000
                )
            )

        found = self._do(ask)
        found.sort(key=lambda document: (int(document["created_at"]), document["_id"]))
        return [document["_id"] for document in found]

    def requests_of(
        self,
        user_id: str,
        *,
        collection: str | None = None,
        after: Request | None = None,
        limit: int = 1000,
        max_bytes: int = 1 << 20,
    ) -> Sequence[Request]:
        rest: Document = {} if collection is None else {"collection": collection}
        last = (date(after.created_at), after.id) if after is not None else None
        ranges = [Range({"user_id": user_id, **part}, rest) for part in _created(Wanted(), last)]

        def ask() -> list[Request]:
            page: list[Request] = []
            size_bytes = 0
            for document in islice(self._in_order(ranges, limit=limit), limit):
                page.append(a_request(document))
                size_bytes += text_bytes(document)
                if size_bytes >= max_bytes:
                    break
            return page

        return self._do(ask)

    def count(self, user_id: str) -> int:
        return self._do(lambda: self._db.requests.count_documents({"user_id": user_id}))

    # --- the broker

    def active_counts(self) -> Mapping[tuple[str, str], int]:
        counted = self._grouped(
            Range({"active": {"$gte": ""}}), {"collection": "$active", "user_id": "$user_id"}
        )
        return {(key["collection"], key["user_id"]): n for key, n in counted}

    def queued_count(self) -> int:
        return self._do(lambda: self._db.requests.count_documents({"state": str(Status.QUEUED)}))

    def waiting_collections(self) -> Sequence[str]:
        return sorted(self._do(lambda: self._db.requests.distinct("line", {"line": {"$gte": ""}})))

    def next_waiting(
        self, collection: str, *, leaving_out: Collection[str], limit: int
    ) -> Sequence[Waiting]:
        def ask() -> list[Document]:
            if not leaving_out:
                return self._first_in_line({"line": collection}, limit)
            # An index that has each user's line by itself: the lines of the others are not touched.
            everybody = self._db.requests.distinct("user_id", {"line": collection})
            users = sorted(set(everybody) - set(leaving_out))
            lines = [
                self._first_in_line(
                    {"line": collection, "user_id": {"$in": users[n : n + _LINES]}}, limit
                )
                for n in range(0, len(users), _LINES)
            ]
            return list(islice(heapq.merge(*lines, key=_place), limit))

        return [
            Waiting(
                id=document["_id"],
                user=user_of(document),
                attempt=document["attempt"],
                since=seconds(document["modified_at"]),
            )
            for document in self._do(ask)
        ]

    def _first_in_line(self, line: Document, limit: int) -> list[Document]:
        return list(
            self._db.requests.find(
                line,
                dict.fromkeys((*_IN_LINE, "user", "attempt", "modified_at"), 1),
                sort=[(name, ASCENDING) for name in _IN_LINE],
                limit=limit,
                batch_size=limit,
            )
        )

    def queued_since(self, before: float, *, limit: int) -> Sequence[tuple[str, int]]:
        def ask() -> list[Document]:
            return list(
                self._db.requests.aggregate(
                    [
                        *Range(
                            {"state": str(Status.QUEUED)},
                            {"modified_at": {"$lte": not_after(before)}},
                        ).stages,
                        {"$sort": {"modified_at": 1, "_id": 1}},  # of no more than may be queued
                        {"$limit": limit},
                        {"$project": {"attempt": 1}},
                    ],
                    batchSize=limit,
                )
            )

        return [(document["_id"], document["attempt"]) for document in self._do(ask)]

    def expired_leases(self, *, limit: int) -> Sequence[Request]:
        def ask() -> list[Document]:
            return list(
                self._db.requests.find(
                    {"lease_expires_at": {"$lt": date(self._now())}},
                    sort=[("lease_expires_at", ASCENDING)],
                    limit=limit,
                )
            )

        return [a_request(document) for document in self._do(ask)]

    # --- the collector

    def finished_before(self, before: float, *, after: str = "", limit: int = 500) -> Sequence[str]:
        rest = {"modified_at": {"$lt": not_before(before)}}
        ranges = [Range({"state": str(status), "_id": {"$gt": after}}, rest) for status in FINISHED]

        def ask() -> list[str]:
            lines = [
                [document["_id"] for document in self._by_id(one, limit, {"_id": 1})]
                for one in ranges
            ]
            return list(islice(heapq.merge(*lines), limit))

        return self._do(ask)

    def unfinished_before(
        self, before: float, *, status: Status, after: str = "", limit: int = 500
    ) -> Sequence[Request]:
        wanted = Range(
            {"state": str(status), "_id": {"$gt": after}},
            {"begun_at": {"$lt": not_before(before)}},
        )
        return [a_request(document) for document in self._do(lambda: self._by_id(wanted, limit))]

    def _by_id(self, wanted: Range, limit: int, fields: Document | None = None) -> list[Document]:
        stages = [*wanted.stages, {"$sort": {"_id": 1}}, {"$limit": limit}]
        if fields is not None:
            stages.append({"$project": fields})
        return list(self._db.requests.aggregate(stages, batchSize=limit))

    def results(
        self, *, after: tuple[float, str] = (0.0, ""), limit: int = 500
    ) -> Sequence[Staged]:
        at, request_id = date(after[0]), after[1]
        ranges = [
            Range({"staged_at": at, "_id": {"$gt": request_id}}),
            Range({"staged_at": {"$gt": at}}),
        ]

        def ask() -> list[Document]:
            found = self._in_order(
                ranges,
                by="staged_at",
                limit=limit,
                fields={"staged_at": 1, "result.name": 1, "result.size_bytes": 1},
            )
            return list(islice(found, limit))

        return [
            Staged(
                id=document["_id"],
                name=document["result"]["name"],
                size_bytes=document["result"]["size_bytes"],
                modified_at=seconds(document["staged_at"]),
            )
            for document in self._do(ask)
        ]

    # --- the operators

    def find(
        self,
        wanted: Wanted,
        *,
        after: Request | None = None,
        newest_first: bool = False,
        limit: int = 25,
    ) -> Sequence[Request]:
        last = (date(after.created_at), after.id) if after is not None else None
        parts = _created(wanted, last, newest_first=newest_first)

        def ask() -> list[Document]:
            lines = [
                self._in_order(
                    [Range({**line.bounds, **part}, line.rest) for part in parts],
                    limit=limit,
                    newest_first=newest_first,
                )
                for line in self._lines(wanted)
            ]
            merged = heapq.merge(*lines, key=_creation, reverse=newest_first)
            return list(islice(merged, limit))

        return [a_request(document) for document in self._do(ask)]

    def counts(self, wanted: Wanted) -> Mapping[tuple[str, Status], int]:
        found: Counter[tuple[str, Status]] = Counter()
        for part in _created(wanted, None):
            for line in self._do(lambda: list(self._lines(wanted))):
                counted = self._grouped(
                    Range({**line.bounds, **part}, line.rest),
                    {"collection": "$collection", "state": "$state"},
                )
                for key, n in counted:
                    found[key["collection"], Status(key["state"])] += n
        return found

    def oldest(self, status: Status) -> Mapping[str, float]:
        line = {"$match": {"line": {"$gte": ""}}}
        if status is Status.WAITING:
            # In the order of an index, so that the server leaps from one collection to the next.
            stages: list[Document] = [
                line,
                {"$sort": {"line": 1, "modified_at": 1}},
                {"$group": {"_id": "$line", "since": {"$first": "$modified_at"}}},
            ]
        else:
            stages = [
                {"$match": {"state": str(status)}},
                {"$group": {"_id": "$collection", "since": {"$min": "$modified_at"}}},
            ]
        found = self._do(lambda: list(self._db.requests.aggregate(stages)))
        return {document["_id"]: seconds(document["since"]) for document in found}

    def _lines(self, wanted: Wanted) -> Iterator[Range]:
        """Parts of what is wanted, each in order of creation in an index, each request in one of them."""
        statuses = sorted(str(status) for status in set(wanted.statuses))
        rest: Document = {}
        if wanted.worker is not None:
            statuses = [status for status in statuses if status == Status.PROCESSING]
            slots = f"^{re.escape(wanted.worker)}(/|$)"
            rest = {"holder": {"$regex": slots}}
        place = {} if wanted.collection is None else {"collection": wanted.collection}
        if not statuses:
            return
        if wanted.username is None and wanted.realm is None:
            for status in statuses:
                yield Range({"state": status, **place}, rest)
            return
        rest = {**rest, **place, "state": {"$in": statuses}}
        if wanted.username is None:
            yield Range({"user.realm": wanted.realm}, rest)
            return
        realms = [wanted.realm] if wanted.realm is not None else self._realms()
        for realm in realms:
            yield Range({"user_id": User(username=wanted.username, realm=realm).id}, rest)

    def _realms(self) -> list[str]:
        return sorted(self._db.requests.distinct("user.realm", {"user.realm": {"$gte": ""}}))

    def _in_order(
        self,
        ranges: Sequence[Range],
        *,
        limit: int,
        by: str = "created_at",
        newest_first: bool = False,
        fields: Document | None = None,
    ) -> Iterator[Document]:
        """Up to *limit* documents of each of the ranges, one after the other, by a time, then id."""
        direction = DESCENDING if newest_first else ASCENDING
        for one in ranges:
            stages: list[Document] = [
                *one.stages,
                {"$sort": {by: direction, "_id": direction}},
                {"$limit": limit},
            ]
            if fields is not None:
                stages.append({"$project": fields})
            with self._db.requests.aggregate(stages, batchSize=min(limit, _READ_AHEAD)) as cursor:
                yield from cursor

    def _grouped(self, wanted: Range, by: Document) -> list[tuple[Document, int]]:
        """How many there are of each."""
        stages = [*wanted.stages, {"$group": {"_id": by, "n": {"$sum": 1}}}]
        found = self._do(lambda: list(self._db.requests.aggregate(stages, batchSize=10_000)))
        return [(document["_id"], document["n"]) for document in found]


def _created(
    wanted: Wanted, last: tuple[DatetimeMS, str] | None, *, newest_first: bool = False
) -> list[Document]:
    """Ranges of `created_at`, one after the other, of what is wanted and comes after the last one."""
    bounds: Document = {}
    if not math.isinf(wanted.created_after):
        bounds["$gt"] = not_after(wanted.created_after)
    if not math.isinf(wanted.created_before):
        bounds["$lt"] = not_before(wanted.created_before)
    if last is None:
        return [{"created_at": bounds}] if bounds else [{}]
    at, request_id = last
    inner, outer = ("$lt", "$gt") if newest_first else ("$gt", "$lt")
    if inner in bounds and _is_beyond(bounds[inner], at, newest_first=newest_first):
        return [{"created_at": bounds}]
    if outer in bounds and _is_beyond(at, bounds[outer], newest_first=newest_first):
        return []
    return [
        {"created_at": at, "_id": {inner: request_id}},
        {"created_at": {**bounds, inner: at}},
    ]


def _is_beyond(one: DatetimeMS, other: DatetimeMS, *, newest_first: bool) -> bool:
    return int(one) <= int(other) if newest_first else int(one) >= int(other)


def _creation(document: Document) -> tuple[Any, ...]:
    return int(document["created_at"]), document["_id"]


def _place(document: Document) -> tuple[Any, ...]:
    return document["turn"], int(document["created_at"]), document["_id"]
