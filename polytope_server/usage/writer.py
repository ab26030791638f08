"""Takes records of use out of the request store: into a file, or away when they are old."""

import contextlib
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Final

from polytope_server.config.model import UsageSection
from polytope_server.errors import BackendUnavailable
from polytope_server.lifecycle import Stop
from polytope_server.request_store import RequestStore, Usage
from polytope_server.usage.file import REMEMBERED, UsageFile

logger = logging.getLogger(__name__)

POST: Final = "usage"

_BATCH: Final = REMEMBERED // 4
_POST_LEAST_S: Final = 1.0
_POST_INTERVALS: Final = 3
_LONGEST_PAUSE_S: Final = 60.0
_END_S: Final = 10.0


class Writer:
    """One of all the collectors of a deployment writes; may be killed at any line.

    Records are appended, synced, and then forgotten by the store. Whoever dies before the last of these
    leaves records that are in the file already, and the next one sees that they are.

    Raises:
        ConfigurationError: there is to be a file, and it cannot be used.
    """

    def __init__(self, *, store: RequestStore, settings: UsageSection) -> None:
        self._store, self._settings = store, settings
        self._file = UsageFile(settings.path) if settings.path else None
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._post_s = max(_POST_LEAST_S, _POST_INTERVALS * settings.interval)
        self._trouble: str | None = None

    def ping(self) -> None:
        """Return if the last attempt went well, or none was made yet."""
        if self._trouble is not None:
            raise BackendUnavailable(self._trouble)

    @contextlib.contextmanager
    def running(self, stop: Stop) -> Iterator[None]:
        """Work in a thread of its own meanwhile, until asked to stop."""
        thread = threading.Thread(target=self.run, args=(stop,), name="usage", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.request()
            thread.join(_END_S)

    def run(self, stop: Stop) -> None:
        """Work until asked to stop; what is away or full is waited for."""
        pause_s = self._settings.interval
        while not stop.requested:
            try:
                self.turn(stop)
            except BackendUnavailable as exc:
                pause_s = min(max(_LONGEST_PAUSE_S, self._settings.interval), 2 * pause_s)
                self._trouble = str(exc)
                logger.warning(
                    "records of use cannot be written now; the request store keeps them",
                    extra={"cause": str(exc)},
                )
            except Exception:
                # The next turn may well succeed; and the collector goes on.
                logger.exception("writing records of use failed")
            else:
                pause_s = self._settings.interval
                if self._trouble is not None:
                    logger.info("records of use are written again")
                self._trouble = None
            stop.wait(pause_s)
        self.leave()

    def leave(self) -> None:
        """Let another one write, now."""
        with contextlib.suppress(BackendUnavailable):  # then the post ends by itself
            self._store.leave_post(POST, self._holder)

    def turn(self, stop: Stop) -> int:
        """Do all that there is to do, a page at a time; how many records have left the store.

        Raises:
            BackendUnavailable: the store or the file is away, or has no room.
        """
        if self._file is None:
            return self._drop(stop)
        return self._write(self._file, stop)

    def _write(self, file: UsageFile, stop: Stop) -> int:
        count = 0
        while records := self._page(stop):
            file.append(records)
            self._forget(records)
            count += len(records)
        return count

    def _drop(self, stop: Stop) -> int:
        count = 0
        before = self._store.now() - self._settings.keep
        surplus = self._store.usage_count() - self._settings.max_kept
        oldest = self._store.usage(limit=1)
        if not oldest or (surplus <= 0 and oldest[0].finished_at > before):
            return 0
        while records := self._page(stop):
            old = [u for n, u in enumerate(records) if n < surplus or u.finished_at <= before]
            self._forget(old)
            surplus -= len(old)
            count += len(old)
            if len(old) < len(records):
                break
        return count

    def _page(self, stop: Stop) -> Sequence[Usage]:
        """The next records, if there are any and it is for us to take them."""
        if stop.requested or not self._store.usage(limit=1):
            return []  # mostly so, and then nothing is written to the store
        if not self._store.take_post(POST, self._holder, duration_s=self._post_s):
            return []
        return self._store.usage(limit=_BATCH)

    def _forget(self, records: Sequence[Usage]) -> None:
        self._store.forget_usage([usage.key for usage in records])
