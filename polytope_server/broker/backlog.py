"""What waits, told to the metrics: counted in a thread of its own, so that no scheduling waits for it."""

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Final

from polytope_server.errors import BackendUnavailable
from polytope_server.observability.metrics import Metrics
from polytope_server.queue import Queue
from polytope_server.request import UNFINISHED, Status
from polytope_server.request_store import RequestStore, Wanted

logger = logging.getLogger(__name__)

EVERY_S: Final = 10.0
_AGED: Final = (Status.WAITING, Status.QUEUED)


class Backlog:
    """Counts every `EVERY_S` while this broker is the active one, and serves nothing while it is not.

    Args:
        collections: served as 0 if they have nothing.
    """

    def __init__(
        self,
        *,
        store: RequestStore,
        queue: Queue,
        collections: Callable[[], Collection[str]],
        metrics: Metrics,
    ) -> None:
        self._store, self._queue = store, queue
        self._collections, self._metrics = collections, metrics

    @contextmanager
    def told(self, is_active: Callable[[], bool]) -> Iterator[None]:
        """Keep telling meanwhile, as long as this broker is active."""
        ended = Event()
        thread = Thread(target=self._run, args=(is_active, ended), name="backlog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()

    def _run(self, is_active: Callable[[], bool], ended: Event) -> None:
        pause_s = 0.0
        while not ended.wait(pause_s):
            pause_s = EVERY_S
            if not is_active():
                self._metrics.backlog_unknown()
                pause_s = 1.0  # it may become the active one
                continue
            try:
                self.tell()
            except BackendUnavailable as exc:
                self._metrics.backlog_unknown()
                logger.debug("The backlog is not known", extra={"cause": str(exc)})
            except Exception:
                # The next time may do, and nobody else would try.
                self._metrics.backlog_unknown()
                logger.exception("Counting the backlog failed")

    def tell(self) -> None:
        """Count once.

        Raises:
            BackendUnavailable
        """
        names = self._collections()
        counts: dict[tuple[str, ...], float] = {}
        ages_s: dict[tuple[str, ...], float] = {}
        counts |= {(name, status): 0 for name in names for status in UNFINISHED}
        counted = self._store.counts(Wanted(statuses=UNFINISHED))
        counts |= {(name, status): count for (name, status), count in counted.items()}
        now = self._store.now()
        for status in _AGED:
            ages_s |= {(name, status): 0.0 for name in names}
            oldest = self._store.oldest(status)
            ages_s |= {(name, status): max(0.0, now - since) for name, since in oldest.items()}
        self._metrics.backlog(counts=counts, ages_s=ages_s, messages=self._queue.size())
