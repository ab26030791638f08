"""Accepting a request: what the body says, and everything that can be refused at once."""

import json
import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from polytope_server.collection import Collection
from polytope_server.errors import (
    BackendUnavailable,
    CollectionNotFound,
    InvalidRequest,
    NotAuthorized,
)
from polytope_server.frontend.bodies import json_object, short
from polytope_server.language.text import parse
from polytope_server.observability.metrics import Metrics
from polytope_server.observability.tracing import Span, Traces, about
from polytope_server.queue import Queue, Topic
from polytope_server.request import Request, Status, Verb
from polytope_server.request_store import RequestStore
from polytope_server.staging import Staging
from polytope_server.user import User

logger = logging.getLogger(__name__)

KEY_LENGTH = 255
_ROOM_S = 5.0
"""How long an answer about free room is good for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What a client posts: a verb, and a request as text or as an object."""

    verb: Verb
    request: str | Mapping[str, Any]
    url: str = ""

    @property
    def text(self) -> str:
        """The request as the user wrote it, or as JSON."""
        if isinstance(self.request, str):
            return self.request
        return json.dumps(self.request, ensure_ascii=False)

    @classmethod
    def from_body(cls, body: bytes) -> "Submission":
        """Raises: InvalidRequest."""
        fields = json_object(body)
        verb = fields.get("verb")
        if verb not in ("retrieve", "archive"):
            said = "no 'verb'" if verb is None else f"the verb {short(verb)}"
            raise InvalidRequest(f"The request body has {said}; use retrieve or archive.")
        request = fields.get("request")
        if not isinstance(request, str | Mapping) or not request:
            said = "no 'request'" if request is None else f"a 'request' that is {short(request)}"
            raise InvalidRequest(
                f"The request body has {said}; it must be a text or an object, and not empty."
            )
        url = fields.get("url")
        if url is not None and not isinstance(url, str):
            raise InvalidRequest("The 'url' of a request must be a text.")
        return cls(verb=Verb(verb), request=request, url=url or "")


def usable(collections: Mapping[str, Collection], user: User, name: str) -> Collection:
    """The collection of that name, if the user may have something from it.

    Raises:
        CollectionNotFound, NotAuthorized
    """
    collection = collections.get(name)
    if collection is None:
        raise CollectionNotFound(f"Collection {short(name)} not found")
    if not collection.may_use(user):
        raise NotAuthorized(f"User {user.username} may not use collection {name}.")
    return collection


class Submit:
    """Everything between a body and a stored request. Blocking; safe between threads."""

    def __init__(
        self,
        *,
        store: RequestStore,
        queue: Queue,
        staging: Staging,
        max_unfinished: int,
        min_free: int,
        metrics: Metrics,
        traces: Traces,
    ) -> None:
        self._store, self._queue, self._staging = store, queue, staging
        self._max_unfinished, self._min_free = max_unfinished, min_free
        self._metrics, self._traces = metrics, traces
        self._free: int | None = None
        self._ask_again_at = 0.0

    def __call__(
        self,
        user: User,
        collection: Collection,
        body: bytes,
        *,
        idempotency_key: str | None,
        began: float,
    ) -> Request:
        """Keep a request that some datasource of the collection, which the user may use, takes.

        Args:
            began: when the user began to submit it, in Unix seconds.

        Raises:
            InvalidRequest, LimitReached
            BackendUnavailable: nothing was stored.
        """
        submission = Submission.from_body(body)
        if idempotency_key is not None and not 0 < len(idempotency_key) <= KEY_LENGTH:
            raise InvalidRequest(f"An Idempotency-Key has 1 to {KEY_LENGTH} characters.")
        if submission.url:
            raise InvalidRequest(
                "This server does not fetch data from a 'url'; leave it empty and upload the data."
            )
        routed = collection.route(
            user=user,
            verb=submission.verb,
            parsed=parse(submission.request),
            now=datetime.now(UTC),
        )
        self._expect_room()
        awaits_data = submission.verb is Verb.ARCHIVE
        request_id = str(uuid.uuid4())
        request = self._store.add(
            Request(
                id=request_id,
                user=user,
                verb=submission.verb,
                collection=collection.name,
                datasource=routed.datasource,
                user_request=submission.text,
                coerced_request=routed.request,
                status=Status.UPLOADING if awaits_data else Status.WAITING,
            ),
            idempotency_key=idempotency_key,
            max_unfinished=self._max_unfinished,
        )
        if request.status is Status.WAITING:
            self._queue.hint(Topic.SUBMITTED, request.id)
        if request.id == request_id:  # not an earlier one of the same key
            self._tell(request, began)
        logger.info(
            "accepted",
            extra={
                "request_id": request.id,
                "collection": collection.name,
                "verb": submission.verb,
                "datasource": routed.datasource,
            },
        )
        return request

    def _tell(self, request: Request, began: float) -> None:
        self._metrics.request_entered(collection=request.collection, status=request.status)
        if self._traces.wants(request.id):
            span = Span(name="submit", start=began, end=time.time(), attributes=about(request))
            self._traces.submitted(request.id, span)

    def _expect_room(self) -> None:
        """Raises: BackendUnavailable: what is asked for would find no room."""
        if time.monotonic() >= self._ask_again_at:
            self._ask_again_at = time.monotonic() + _ROOM_S
            try:
                self._free = self._staging.free_bytes()
            except BackendUnavailable:
                self._free = None  # it may be back when the data come
            self._ask_again_at = time.monotonic() + _ROOM_S
        if self._free is not None and self._free < self._min_free:
            raise BackendUnavailable(f"staging has only {self._free} bytes left")
