"""What comes from the server to those who listen: hints."""

import contextlib
import logging
import os
import select
import threading
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, Protocol

from polytope_server.errors import BackendUnavailable
from polytope_server.queue import Hint, Topic
from polytope_server.queue.rabbitmq.connection import Channel, Connection
from polytope_server.queue.rabbitmq.declaring import Exchange
from polytope_server.queue.rabbitmq.kept import Kept

logger = logging.getLogger(__name__)

_HELD: Final = 5000
"""So many hints wait for a listener, and on the server for a process; the oldest are dropped first."""
_TOPICS: Final = frozenset(Topic)


class Wanting(Protocol):
    """Who hands out messages: told of threads that wait for one."""

    @contextlib.contextmanager
    def waiting(self, listener: "Listener") -> Iterator[None]:
        """The current thread waits meanwhile; it may be for a message."""

    def announced(self) -> "Collection[Listener]":
        """There is a message somewhere: who waits for one here, and is woken without being told of it."""


class Listener:
    """See `polytope_server.queue.Hints`. `tell` from any thread; nothing here ever waits for a lock."""

    def __init__(self, topics: frozenset[Topic], messages: Wanting) -> None:
        self.topics, self._messages = topics, messages
        self._told: deque[Hint] = deque(maxlen=_HELD)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wait(self, timeout_s: float) -> Sequence[Hint]:
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        with self._messages.waiting(self):
            poll.poll(max(0.0, timeout_s) * 1000)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        return list(self._taken())

    def interrupt(self) -> None:
        os.eventfd_write(self._bell, 1)

    def tell(self, hint: Hint) -> None:
        self._told.append(hint)
        self.interrupt()

    def close(self) -> None:
        os.close(self._bell)

    def _taken(self) -> Iterator[Hint]:
        with contextlib.suppress(IndexError):
            while True:
                yield self._told.popleft()


class HintReceiver:
    """One queue on the server for the hints of all listeners of this process; it goes with the connection."""

    def __init__(
        self, exchange: Exchange, connections: Kept[Connection], messages: Wanting, *, prefix: str
    ) -> None:
        self._exchange, self._connections, self._messages = exchange, connections, messages
        self._name = f"{prefix}.hints.{uuid.uuid4().hex}"
        self._lock = threading.Lock()
        self._listeners: set[Listener] = set()
        self._bound: set[Topic] = set()
        self._channels: Kept[Channel] | None = None

    @contextlib.contextmanager
    def listening(self, topics: Sequence[Topic], begin: Callable[[], None]) -> Iterator[Listener]:
        """A listener, from now on.

        Args:
            begin: has `bound` run in the event loop, and waits for it.
        """
        listener = Listener(frozenset(topics), self._messages)
        with self._lock:
            self._listeners.add(listener)
        try:
            try:
                begin()
            except BackendUnavailable as exc:
                logger.debug("nobody tells us anything for now", extra={"cause": str(exc)})
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)
                listener.close()

    async def bound(self) -> None:
        """Return when the server sends us what anybody listens to. In the event loop.

        Raises:
            BackendUnavailable: it will, as soon as it is there.
        """
        if self._channels is None:
            self._channels = Kept("channel for hints to us", self._open, below=self._connections)
        await self._bind(await self._channels.get())

    async def _bind(self, channel: Channel) -> None:
        with self._lock:
            topics = frozenset[Topic]().union(*(each.topics for each in self._listeners))
        for topic in topics - self._bound:
            await channel.call(
                channel.driver.queue_bind, self._name, self._exchange.name, str(topic)
            )
            self._bound.add(topic)

    async def _open(self) -> Channel:
        channel = await self._exchange.ready(self._connections)
        self._bound.clear()
        # What a connection has left behind that we gave up would be in the way.
        self._name = f"{self._name.rpartition('.')[0]}.{uuid.uuid4().hex}"
        await channel.call(
            channel.driver.queue_declare,
            self._name,
            exclusive=True,
            auto_delete=True,
            arguments={"x-max-length": _HELD, "x-queue-type": "classic"},
        )
        channel.driver.add_on_cancel_callback(lambda _: channel.close())  # it was deleted by hand
        await self._bind(channel)
        await channel.call(
            channel.driver.basic_consume, self._name, self._on_hint, auto_ack=True, exclusive=True
        )
        return channel

    def _on_hint(self, _channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        if method.routing_key not in _TOPICS:
            return  # of another version
        hint = Hint(topic=Topic(method.routing_key), text=body.decode(errors="replace"))
        served = self._messages.announced() if hint.topic is Topic.PUBLISHED else ()
        with self._lock:  # which keeps them from being closed
            for listener in self._listeners:
                if hint.topic in listener.topics and listener not in served:
                    listener.tell(hint)
