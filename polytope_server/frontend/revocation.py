"""Revoking requests: the record first, then the work, then the data."""

import logging
import time

from polytope_server.errors import RequestNotFound
from polytope_server.observability.metrics import REVOKED, Metrics
from polytope_server.queue import Queue
from polytope_server.request import Request
from polytope_server.request_store import RequestStore
from polytope_server.revocation import clear_away
from polytope_server.staging import Staging
from polytope_server.user import User

logger = logging.getLogger(__name__)


class Revoke:
    """Removes requests of one user. Blocking; safe between threads."""

    def __init__(
        self, *, store: RequestStore, queue: Queue, staging: Staging, metrics: Metrics
    ) -> None:
        self._store, self._queue, self._staging = store, queue, staging
        self._metrics = metrics

    def one(self, user: User, request_id: str) -> None:
        """Whatever its status.

        Raises:
            RequestNotFound: no such request, or another user's.
        """
        self._clear_away(self._store.remove(request_id, user_id=user.id))

    def all_unfinished(self, user: User) -> int:
        """All that are not finished; how many there were."""
        count = 0
        for request_id in self._store.unfinished_ids(user.id):
            try:
                request = self._store.remove(request_id, user_id=user.id, only_unfinished=True)
            except RequestNotFound:
                continue  # it was just finished, or revoked by another call
            self._clear_away(request)
            count += 1
        return count

    def _clear_away(self, request: Request) -> None:
        logger.info("revoked", extra={"request_id": request.id, "status": request.status})
        self._metrics.request_entered(collection=request.collection, status=REVOKED)
        if not request.is_finished:
            self._metrics.request_left(
                collection=request.collection,
                status=request.status,
                duration_s=time.time() - request.modified_at,
            )
        clear_away(request, hint=self._queue.hint, staging=self._staging)
