"""What comes from the server to the workers: messages.

A thread that asks is answered by the server, so that None means that there is nothing. If it then waits for
hints, a consumer waits in its stead: the next message is sent to us at once and wakes one such thread. The
consumer takes one message at a time, and ends before that one is acknowledged if nobody else waits here: a
message is never held by a process that has no use for it.
"""

import asyncio
import contextlib
import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, NamedTuple

from polytope_server.errors import BackendUnavailable
from polytope_server.queue import Delivery, Hint, Message, Topic
from polytope_server.queue.rabbitmq.connection import NOT_FOUND, Channel, ClosedByServer, Connection
from polytope_server.queue.rabbitmq.declaring import DeclaredQueue
from polytope_server.queue.rabbitmq.kept import Kept
from polytope_server.queue.rabbitmq.listening import Listener

logger = logging.getLogger(__name__)

_TEND_S: Final = 0.25
"""How long a message may lie here, or the consumer be there, while nobody waits."""
_TRUST_S: Final = 5.0
"""After it, the server is asked although a consumer waits: one that waits while a quorum queue is deleted and
at once made again may be told nothing, and get nothing, for ever."""
_ID: Final = re.compile(r"[!-~]{1,200}", re.ASCII)
"""What may be asked a store for; no id of ours has anything else in it."""


class _Tag(NamedTuple):
    """Which message of which channel."""

    channel: Channel
    number: int


class Consumer:
    """Hands messages to threads. What begins with ``_on`` or is a coroutine runs in the event loop."""

    def __init__(
        self,
        queue: DeclaredQueue,
        connections: Kept[Connection],
        soon: Callable[..., None],
    ) -> None:
        self._queue, self._connections, self._soon = queue, connections, soon
        self._channels = Kept("channel for messages", self._open, below=connections)
        self._told_none = threading.local()
        self._lock = threading.Lock()
        self._wanting: dict[Listener, None] = {}  # in the order in which they came
        self._left = 0.0
        self._buffer: deque[tuple[float, Delivery]] = deque()
        self._open_tags: dict[_Tag, bool] = {}
        self._consuming: str | None = None
        self._confirmed = False
        self._trusted_until = 0.0
        self._arming: asyncio.Task[None] | None = None

    # --- for threads

    def at_hand(self) -> tuple[Delivery | None, bool]:
        """A message that is here; else whether it is certain that the server has none for us."""
        with self._lock:
            delivery = self._popped()
            certain = self._is_served() and time.monotonic() < self._trusted_until
        self._told_none.flag = delivery is None and certain
        return delivery, certain

    def tell_none(self) -> None:
        """Remember that the current thread was told that there is nothing."""
        self._told_none.flag = True

    @contextlib.contextmanager
    def waiting(self, listener: Listener) -> Iterator[None]:
        """See `Wanting`. Who has not asked just before, as when draining, waits for something else."""
        wants = Topic.PUBLISHED in listener.topics and getattr(self._told_none, "flag", False)
        self._told_none.flag = False
        if not wants:
            yield
            return
        with self._lock:
            self._wanting[listener] = None
            if self._buffer:
                self._wake_one()
            must_arm = self._consuming is None
        if must_arm:
            self._soon(self._on_wanted)
        try:
            yield
        finally:
            with self._lock:
                self._wanting.pop(listener, None)
                self._left = time.monotonic()

    def announced(self) -> Collection[Listener]:
        """See `Wanting`. While the consumer has its hands full, one of those who wait may ask the server."""
        with self._lock:
            waiting = frozenset(self._wanting)
            if not self._is_served():
                self._wake_one()
            return waiting

    def settle(self, delivery: Delivery, *, done: bool) -> None:
        """Acknowledge a message, or have it given to somebody else. Nothing if it is not ours any more."""
        self._soon(self._on_settled, delivery.tag, done)

    def held(self) -> int:
        """How many messages are ours, and not acknowledged."""
        with self._lock:
            return len(self._open_tags)

    def _is_served(self) -> bool:
        return self._confirmed and not any(self._open_tags.values())

    def _popped(self) -> Delivery | None:
        if not self._buffer:
            return None
        _, delivery = self._buffer.popleft()
        if not self._wanting:
            # Before this one is acknowledged, or another comes that nobody here has use for.
            self._soon(self._on_unwanted)
        return delivery

    def _wake_one(self) -> None:
        for listener in self._wanting:
            del self._wanting[listener]
            listener.tell(Hint(topic=Topic.PUBLISHED, text=""))
            return

    # --- in the event loop

    async def get(self) -> Delivery | None:
        """The next message, or None if the server has none.

        Raises:
            BackendUnavailable
        """
        while True:
            channel = await self._channels.get()
            with self._lock:
                if delivery := self._popped():
                    return delivery
                waits = self._is_served() and time.monotonic() >= self._trusted_until
            try:
                found = await channel.get(self._queue.name)
            except ClosedByServer as exc:
                if exc.code != NOT_FOUND:
                    raise
                # Deleted by hand: it is made again with the next channel.
                await self._queue.ready(channel.connection)
                continue
            except BackendUnavailable:
                if channel.connection.closed.done():
                    raise
                continue  # another thread has had the channel closed
            if found is None:
                with self._lock:
                    self._trusted_until = time.monotonic() + _TRUST_S
                return None
            number, body = found
            if waits:
                # To no avail. A new channel knows nothing of the old queue; the message goes back by itself.
                logger.warning("the consumer was given nothing; opening another channel")
                channel.close()
                continue
            delivery = self._received(_Tag(channel, number), body, by_consumer=False)
            if delivery is not None:
                with self._lock:
                    self._wake_one()  # where there was one, there may be more
                return delivery

    async def _open(self) -> Channel:
        connection = await self._connections.wait()
        await self._queue.ready(connection)
        channel = await connection.channel()
        await channel.call(channel.driver.basic_qos, prefetch_count=1)
        channel.driver.add_on_cancel_callback(lambda _: channel.close())  # the queue was deleted
        channel.closed.add_done_callback(self._on_closed)
        return channel

    def _on_closed(self, _reason: Any) -> None:
        """What was ours goes to somebody else."""
        with self._lock:
            self._buffer.clear()
            self._open_tags.clear()
            self._consuming, self._confirmed = None, False
            wanted = bool(self._wanting)
        if wanted:
            self._on_wanted()

    def _on_wanted(self) -> None:
        if self._consuming is None and self._arming is None:
            self._arming = asyncio.create_task(self._arm())
            self._arming.add_done_callback(self._on_armed)

    async def _arm(self) -> None:
        channel = await self._channels.wait()
        with self._lock:
            if not self._wanting:
                return  # who comes now asks for it again
        self._consuming = tag = f"{self._queue.name}.{id(channel):x}.{time.monotonic_ns():x}"

        def on_message(_channel: Any, method: Any, _properties: Any, body: bytes) -> None:
            if not channel.closed.done():
                self._on_message(_Tag(channel, method.delivery_tag), body)

        def consume(*, callback: Callable[[Any], None]) -> None:
            def on_consuming(frame: Any) -> None:
                with self._lock:  # before the first message is handed out
                    self._confirmed = self._consuming == tag
                    self._trusted_until = time.monotonic() + _TRUST_S
                callback(frame)

            channel.driver.basic_consume(
                self._queue.name, on_message, consumer_tag=tag, callback=on_consuming
            )

        asyncio.get_running_loop().call_later(_TEND_S, self._on_tend, tag)
        try:
            async with asyncio.timeout(self._queue.timeout_s):
                await channel.call(consume)
        except TimeoutError:
            # As when the queue was deleted in that moment: then nothing on this channel is answered.
            self._queue.examine(channel.connection)

    def _on_armed(self, task: "asyncio.Task[None]") -> None:
        self._arming = None
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, BackendUnavailable):
            logger.info("could not wait for messages", extra={"cause": str(error)})
            asyncio.get_running_loop().call_later(_TEND_S, self._on_wanted)
        elif error is not None:
            logger.error("waiting for messages failed", exc_info=error)

    def _on_message(self, tag: _Tag, body: bytes) -> None:
        delivery = self._received(tag, body, by_consumer=True)
        if delivery is None:
            return
        with self._lock:
            self._buffer.append((time.monotonic(), delivery))
            self._trusted_until = time.monotonic() + _TRUST_S
            self._wake_one()

    def _received(self, tag: _Tag, body: bytes, *, by_consumer: bool) -> Delivery | None:
        """What it says; None if that is nothing, and then it is gone."""
        message = parsed(body)
        with self._lock:
            self._open_tags[tag] = by_consumer
        if message is None:
            logger.warning("dropped what is no message of ours", extra={"bytes": len(body)})
            self._on_settled(tag, True)
            return None
        return Delivery(message=message, tag=tag)

    def _on_settled(self, tag: _Tag, done: bool) -> None:
        with self._lock:
            if self._open_tags.pop(tag, None) is None:
                return  # settled before, or its channel is gone and somebody else gets it
        driver = tag.channel.driver
        with contextlib.suppress(BackendUnavailable):  # just as harmless
            if done:
                tag.channel.send(driver.basic_ack, tag.number)
            else:
                tag.channel.send(driver.basic_nack, tag.number, requeue=True)

    def _on_unwanted(self) -> None:
        """End the consumer, unless somebody waits by now."""
        with self._lock:
            tag, channel = self._consuming, self._channels.current
            if tag is None or channel is None or self._wanting or not self._confirmed:
                return
            self._consuming, self._confirmed = None, False
            unwanted = [delivery.tag for _, delivery in self._buffer]
            self._buffer.clear()
        with contextlib.suppress(BackendUnavailable):
            # The driver forgets one that was ended only if it is told so.
            channel.send(channel.driver.basic_cancel, tag, callback=lambda _: None)
        for each in unwanted:
            assert isinstance(each, _Tag)  # noqa: S101 - we have made it
            self._on_settled(each, False)

    def _on_tend(self, tag: str) -> None:
        """Look whether the consumer is of use, as long as it is there."""
        if self._consuming != tag:
            return
        asyncio.get_running_loop().call_later(_TEND_S, self._on_tend, tag)
        now = time.monotonic()
        with self._lock:
            if self._wanting:
                if self._buffer and now - self._buffer[0][0] > _TEND_S:
                    self._wake_one()  # the one that was woken has not come
                return
            if now - self._left < _TEND_S or (self._buffer and now - self._buffer[0][0] < _TEND_S):
                return
        self._on_unwanted()


def parsed(body: bytes) -> Message | None:
    """``{id, attempt}``, or ``{id}`` of an older broker; None if it is neither."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    match value:
        case {"id": str(request_id), "attempt": int(attempt)}:
            is_ours = not isinstance(attempt, bool) and 0 < attempt < 1 << 31
        case {"id": str(request_id)} if "attempt" not in value:
            attempt, is_ours = 1, True
        case _:
            return None
    if not is_ours or not _ID.fullmatch(request_id):
        return None
    return Message(id=request_id, attempt=attempt)
