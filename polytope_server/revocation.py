"""What is left of a request when its record has been removed: work that goes on, and data."""

import logging
from collections.abc import Callable

from polytope_server.errors import BackendUnavailable
from polytope_server.queue import Topic
from polytope_server.request import Request, Status
from polytope_server.staging import Staging

logger = logging.getLogger(__name__)


def clear_away(request: Request, *, hint: Callable[[Topic, str], None], staging: Staging) -> None:
    """Stop the work on a request that is not stored any more, and remove its data.

    Nobody finds the data any more; what we leave behind if we die here, or if staging is away, the
    collector removes.
    """
    if request.status is Status.PROCESSING:
        hint(Topic.REVOKED, request.id)
    else:
        hint(Topic.CHANGED, request.id)
    for data in (request.result, request.input):
        if data is not None and data.name:
            try:
                staging.delete(data.name)
            except BackendUnavailable as exc:
                logger.info(
                    "the collector will remove the data",
                    extra={"request_id": request.id, "cause": str(exc)},
                )
