"""Status polls: reads that share one call of the store, and polls that are held until something happens."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Collection, Iterator, Sequence

from polytope_server.errors import BackendUnavailable, RequestNotFound
from polytope_server.frontend.threads import Threads
from polytope_server.queue import Queue, Topic
from polytope_server.request import Request, Status
from polytope_server.request_store import Mark, RequestStore

logger = logging.getLogger(__name__)

_SAFETY_S = 1.0
"""Hints may get lost: all held requests are looked at so often anyway."""
_FOLLOW_UP_S = 0.2
"""A request that has just started is often done at once: such news is worth waiting a moment for."""
_POSITIONS_S = 1.0
_PAUSED_S = 1.0


class Reader:
    """Reads requests; reads that come while a call is under way share the next one."""

    def __init__(self, store: RequestStore, threads: Threads) -> None:
        self._store, self._threads = store, threads
        self._wanted: dict[str, list[asyncio.Future[Request | None]]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._positions: dict[str, tuple[float, Sequence[str]]] = {}
        self._paused: tuple[float, Collection[str]] = (0.0, ())

    async def get(self, request_id: str) -> Request:
        """Raises: RequestNotFound, BackendUnavailable."""
        future: asyncio.Future[Request | None] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(request_id, []).append(future)
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        request = await future
        if request is None:
            raise RequestNotFound(request_id)
        return request

    async def _read(self) -> None:
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            try:
                found = await self._threads.run(self._store.get_many, list(wanted))
            except Exception as exc:  # noqa: BLE001 -- raised again in each of those who wait
                for future in (future for futures in wanted.values() for future in futures):
                    if not future.done():
                        future.set_exception(exc)
                continue
            for request_id, futures in wanted.items():
                for future in futures:
                    if not future.done():
                        future.set_result(found.get(request_id))
        self._reading = None

    async def position(self, request: Request) -> int | None:
        """Place in the line of its collection, from 1; None if it is far back, or not known."""
        known_at, ids = self._positions.get(request.collection, (0.0, ()))
        if time.monotonic() - known_at > _POSITIONS_S:
            ids = await self._threads.run(self._store.positions, request.collection)
            self._positions[request.collection] = (time.monotonic(), ids)
        with contextlib.suppress(ValueError):
            return list(ids).index(request.id) + 1
        return None

    async def is_paused(self, collection: str) -> bool:
        """Whether operators have paused a collection; known a second late."""
        known_at, names = self._paused
        if time.monotonic() - known_at > _PAUSED_S:
            names = await self._threads.run(self._store.marked, Mark.PAUSED)
            self._paused = (time.monotonic(), names)
        return collection in names


class Watcher:
    """Holds polls of unfinished requests until their status changes: one watcher for all of them."""

    def __init__(self, reader: Reader, queue: Queue) -> None:
        self._reader, self._queue = reader, queue
        self._held: dict[str, set[asyncio.Event]] = {}
        self._closed = threading.Event()
        self._safety: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen; in the running event loop."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(loop,), name="watcher", daemon=True).start()
        self._safety = asyncio.create_task(self._wake_all())

    def close(self) -> None:
        """Answer all held polls now, and hold no more."""
        self._closed.set()
        if self._safety is not None:
            self._safety.cancel()
        for events in self._held.values():
            for event in events:
                event.set()

    @contextlib.contextmanager
    def watching(self, request_id: str) -> Iterator[asyncio.Event]:
        """Set at each change of a request from now on: what is read after this misses none."""
        event = asyncio.Event()
        self._held.setdefault(request_id, set()).add(event)
        try:
            yield event
        finally:
            events = self._held[request_id]
            events.discard(event)
            if not events:
                del self._held[request_id]

    async def changed(self, request: Request, event: asyncio.Event, *, at_most_s: float) -> Request:
        """The request once its status differs from what *request* shows, or as it is at the end.

        A store that is away is waited for, too.

        Args:
            event: from `watching`, begun before *request* was read.

        Raises:
            RequestNotFound: it was revoked meanwhile.
            BackendUnavailable: the store was still away at the end.
        """
        deadline = time.monotonic() + at_most_s
        latest = request
        away: BackendUnavailable | None = None
        while not latest.is_finished:
            if _shown(latest.status) != _shown(request.status):
                deadline = min(deadline, time.monotonic() + _FOLLOW_UP_S)
            left_s = deadline - time.monotonic()
            if left_s <= 0 or self._closed.is_set():
                if away is not None:
                    raise away
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), left_s)
            event.clear()
            try:
                latest, away = await self._reader.get(request.id), None
            except BackendUnavailable as exc:
                away = exc
        return latest

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._queue.listen(Topic.CHANGED, Topic.REVOKED) as hints:
            while not self._closed.is_set():
                # most are about requests that nobody here waits for
                ids = {hint.text for hint in hints.wait(_SAFETY_S) if hint.text in self._held}
                if ids:
                    with contextlib.suppress(RuntimeError):  # the loop has ended
                        loop.call_soon_threadsafe(self._wake, ids)

    def _wake(self, ids: set[str]) -> None:
        for request_id in ids:
            for event in self._held.get(request_id, ()):
                event.set()

    async def _wake_all(self) -> None:
        while True:
            await asyncio.sleep(_SAFETY_S)
            self._wake(set(self._held))


def _shown(status: Status) -> Status:
    return Status.QUEUED if status is Status.WAITING else status
