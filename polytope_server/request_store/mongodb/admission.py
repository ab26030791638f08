"""How a request comes into the line: one for each idempotency key, no more than a user may have, in turn.

Each of these is about several requests at once, and MongoDB changes one document at a time. What it does
keep among all documents are unique indexes, so each is made a question of one:

- Of requests with one `idempotency_key` of one user the first is kept, and whoever comes later is refused
  and given that one.
- A user who may have *n* unfinished requests has *n* seats, with numbers. A request takes a seat that seems
  free, and of two that take the same one the later is refused and looks again. It leaves the seat in the
  step that finishes it. (What an operator starts over, limit or not, takes a seat without a number.)
- A turn is one more than the last in the user's line. Of two that were given the same turn at the same
  moment the later is refused, and takes the next one: the `claim` on it is given up when the request
  leaves the line. What comes back into the line brings its turn and needs no claim.

Nothing is written but the request itself. Whoever dies before that has done nothing, and after it
everything.
"""

import random
from collections.abc import Sequence
from typing import Final

from pymongo.errors import DocumentTooLarge, DuplicateKeyError

from polytope_server.errors import InvalidRequest, LimitReached
from polytope_server.request import Request, Status
from polytope_server.request_store.mongodb.base import PAGE, Base, field_of
from polytope_server.request_store.mongodb.connection import Document
from polytope_server.request_store.mongodb.documents import (
    a_request,
    document_of,
    is_there,
    seats_of,
    token,
)

_DIGITS: Final = 9


class Admission(Base):
    """New requests, and turns."""

    def add(
        self,
        request: Request,
        *,
        idempotency_key: str | None = None,
        max_unfinished: int | None = None,
    ) -> Request:
        call = token()
        return self._do(lambda: self._add(request, call, idempotency_key, max_unfinished))

    def _add(
        self, request: Request, call: str, idempotency_key: str | None, max_unfinished: int | None
    ) -> Request:
        user_id = request.user.id
        document = document_of(request, now=self._now(), call=call)
        key = None
        if idempotency_key is not None:
            key = document["idempotency_key"] = f"{user_id}/{idempotency_key}"
        others = self._unfinished(user_id, limit=max_unfinished)
        try:
            document["seat"] = _seat(request, others, max_unfinished)
        except LimitReached:
            earlier = self._by_key(key) if key is not None else self._added_before(request)
            if earlier is None:
                raise
            return earlier
        if request.status is Status.WAITING:
            document["line"] = request.collection
            _give(document, self._next_turn(request.collection, others))
        refused = 0
        while True:
            try:
                self._db.requests.insert_one(document)
            except DocumentTooLarge as exc:
                raise InvalidRequest(
                    "The request is too long: no more than about 16 MB of it can be kept."
                ) from exc
            except DuplicateKeyError as exc:
                if (before := self._added_before(request)) is not None:
                    return before  # whatever was refused first, it was in our own way
                refused += 1
                match field_of(exc):
                    case "seat":
                        others = self._unfinished(user_id, limit=max_unfinished)
                        document["seat"] = _seat(request, others, max_unfinished)
                    case "claim":
                        # the more there are at it, the farther they spread
                        _give(document, document["turn"] + 1 + random.randrange(refused))  # noqa: S311
                    case "idempotency_key":
                        if key is not None and (earlier := self._by_key(key)) is not None:
                            return earlier  # else it has just been removed
                    case _:
                        raise
            else:
                return a_request(document)

    def _added_before(self, request: Request) -> Request | None:
        """The request as it stands, if an attempt of ours has added it whose answer was lost."""
        found = self._db.latest.find_one({"_id": request.id, "user_id": request.user.id})
        return self._confirmed(found) if found is not None else None

    def _by_key(self, key: str) -> Request | None:
        found = self._db.latest.find_one({"idempotency_key": key})
        return self._confirmed(found) if found is not None and is_there(found) else None

    def _confirmed(self, found: Document) -> Request:
        """A request that another call has added, once it cannot be lost any more.

        Whoever added it may still wait for a majority to have it, and may never hear; what is written to it
        now is acknowledged only when they have all that came before as well.
        """
        self._db.requests.update_one({"_id": found["_id"]}, {"$set": {"confirmed_by": token()}})
        return a_request(found)

    def _unfinished(self, user_id: str, *, limit: int | None = None) -> Sequence[Document]:
        """Seat, line and turn of each of a user's unfinished requests."""
        if limit == 0:
            return []
        most = limit or 0
        found = self._db.latest.find(
            {"seat": seats_of(user_id)},
            {"_id": 0, "seat": 1, "line": 1, "turn": 1},
            limit=most,
            batch_size=most or PAGE,
        )
        return list(found)

    def _next_turn(self, collection: str, others: Sequence[Document]) -> int:
        dispatched = self._db.dispatched.find_one({"_id": collection})
        turns = [one["turn"] + 1 for one in others if one.get("line") == collection]
        return int(max([dispatched["turn"] if dispatched is not None else 0, *turns]))


def _seat(request: Request, others: Sequence[Document], max_unfinished: int | None) -> str:
    """A seat that is free, or was a moment ago.

    Raises: LimitReached.
    """
    user_id = request.user.id
    if max_unfinished is None:
        return f"{user_id}/~{request.id}"
    if len(others) >= max_unfinished:
        raise LimitReached(
            f"You have {len(others)} unfinished requests and may have {max_unfinished}; "
            "wait for some of them, or revoke them."
        )
    taken = {one["seat"] for one in others}
    free = [
        seat
        for number in range(max_unfinished)
        if (seat := f"{user_id}/{number:0{_DIGITS}}") not in taken
    ]
    # No more of them than may be taken, for some have seats without a number; and one at random, so that
    # those who come at the same moment do not all try the same one.
    return random.choice(free[: max_unfinished - len(taken)])  # noqa: S311


def claim_of(collection: str, user_id: str, turn: int) -> str:
    return f"{user_id}/{turn}/{collection}"


def _give(document: Document, turn: int) -> None:
    document["turn"] = turn
    document["claim"] = claim_of(document["collection"], document["user_id"], turn)
