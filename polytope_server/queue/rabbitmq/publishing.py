"""What goes to the server: messages, each confirmed, and hints, which may get lost."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import pika

from polytope_server.errors import BackendUnavailable
from polytope_server.queue import Hint
from polytope_server.queue.rabbitmq.connection import Channel, Connection
from polytope_server.queue.rabbitmq.declaring import DeclaredQueue, Exchange
from polytope_server.queue.rabbitmq.kept import Kept

logger = logging.getLogger(__name__)

_HINTS: Final = 5000
"""So many are held while the server is away; the oldest are dropped first."""
_STALE_S: Final = 10.0
_BLOCKED_LOOK_S: Final = 0.5
_PERSISTENT: Final = pika.BasicProperties(content_type="application/json", delivery_mode=2)
_TRANSIENT: Final = pika.BasicProperties(content_type="text/plain", delivery_mode=1)


class _Batch:
    """Messages that were published together."""

    def __init__(self, tags: range) -> None:
        self.open = set(tags)
        self.refused = False
        self.unroutable = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, reason: "asyncio.Future[BackendUnavailable]") -> None:
        """Its channel was closed."""
        if not self.done.done():
            self.done.set_exception(reason.result())


class Publisher:
    """Publishes messages. In the event loop only."""

    def __init__(self, queue: DeclaredQueue, connections: Kept[Connection]) -> None:
        self._queue, self._connections = queue, connections
        self._channels = Kept("channel for publishing", self._open, below=connections)
        self._turn = asyncio.Lock()
        self._published = 0
        self._batch: _Batch | None = None

    async def publish(self, bodies: Sequence[bytes]) -> None:
        """Return when the server has them all on disk.

        Raises:
            BackendUnavailable: or it has no room, or the user may not.
        """
        async with self._turn:
            batch = await self._send(bodies)
            if batch.unroutable:  # deleted by hand; what comes twice does no harm
                await self._queue.ready(await self._connections.get())
                batch = await self._send(bodies)
        if batch.refused or batch.unroutable:
            raise BackendUnavailable(f"RabbitMQ does not take messages for {self._queue.name}.")

    async def _send(self, bodies: Sequence[bytes]) -> _Batch:
        channel = await self._channels.get()
        # Written while it is blocked, they would all arrive later, time after time.
        await channel.connection.unblocked.wait()
        self._batch = batch = _Batch(range(self._published + 1, self._published + len(bodies) + 1))
        self._published += len(bodies)
        try:
            for body in bodies:
                channel.send(
                    channel.driver.basic_publish,
                    "",
                    self._queue.name,
                    body,
                    _PERSISTENT,
                    mandatory=True,
                )
            channel.closed.add_done_callback(batch.end)
            await batch.done
        finally:
            channel.closed.remove_done_callback(batch.end)
            self._batch = None
        return batch

    async def _open(self) -> Channel:
        connection = await self._connections.wait()
        await self._queue.ready(connection)
        channel = await connection.channel()
        channel.driver.add_on_return_callback(self._on_return)
        self._published = 0
        self._batch = None
        await channel.call(channel.driver.confirm_delivery, self._on_confirm)
        return channel

    def _on_return(self, *_: Any) -> None:
        if self._batch is not None:
            self._batch.unroutable = True

    def _on_confirm(self, frame: Any) -> None:
        batch, method = self._batch, frame.method
        if batch is None:  # somebody has given up waiting
            return
        tag = method.delivery_tag
        confirmed = {each for each in batch.open if each <= tag} if method.multiple else {tag}
        if isinstance(method, pika.spec.Basic.Nack) and batch.open & confirmed:
            batch.refused = True
        batch.open -= confirmed
        if not batch.open and not batch.done.done():
            batch.done.set_result(None)


class _Outgoing(NamedTuple):
    """A hint, and when it was given to us."""

    since: float
    hint: Hint


class HintSender:
    """Sends hints. `put` from any thread, the rest in the event loop."""

    def __init__(
        self,
        exchange: Exchange,
        connections: Kept[Connection],
        soon: Callable[[Callable[[], None]], None],
    ) -> None:
        self._exchange, self._connections, self._soon = exchange, connections, soon
        self._channels: Kept[Channel] | None = None
        self._outgoing: deque[_Outgoing] = deque(maxlen=_HINTS)
        self._task: asyncio.Task[None] | None = None

    def put(self, hint: Hint) -> None:
        """Have it sent, as soon as that is possible and unless it is stale by then."""
        self._outgoing.append(_Outgoing(time.monotonic(), hint))
        self._soon(self._send)

    async def sent(self) -> None:
        """Wait until there is nothing more to send."""
        while self._outgoing:
            await asyncio.sleep(0.01)

    def _send(self) -> None:
        channel = self._channels.current if self._channels else None
        if channel is not None and channel.connection.unblocked.is_set():
            self._flush(channel)
        elif self._outgoing and self._task is None:
            self._task = asyncio.create_task(self._send_later())

    async def _send_later(self) -> None:
        try:
            if self._channels is None:
                self._channels = Kept(
                    "channel for hints to others", self._open, below=self._connections
                )
            while not (await self._channels.wait()).connection.unblocked.is_set():
                await asyncio.sleep(_BLOCKED_LOOK_S)
        finally:
            self._task = None
        self._send()

    def _flush(self, channel: Channel) -> None:
        stale = time.monotonic() - _STALE_S
        while self._outgoing:
            since, hint = self._outgoing.popleft()
            if since < stale:
                continue
            try:
                channel.send(
                    channel.driver.basic_publish,
                    self._exchange.name,
                    str(hint.topic),
                    hint.text.encode(),
                    _TRANSIENT,
                )
            except BackendUnavailable as exc:
                logger.debug("a hint was lost", extra={"cause": str(exc)})
                return

    async def _open(self) -> Channel:
        return await self._exchange.ready(self._connections)
