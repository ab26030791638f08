"""The queue on RabbitMQ.

Two connections, each opened when it is first needed: one for what we publish, which the server stops reading
when it runs out of memory or disk, and one for everything else.
"""

import asyncio
import atexit
import contextlib
import json
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, TypeVar

from polytope_server.config.rabbitmq import RabbitMqSection
from polytope_server.errors import BackendUnavailable
from polytope_server.queue import Delivery, Hint, Hints, Message, Topic
from polytope_server.queue.rabbitmq.connection import Connection, connect
from polytope_server.queue.rabbitmq.consuming import Consumer
from polytope_server.queue.rabbitmq.declaring import DeclaredQueue, Exchange
from polytope_server.queue.rabbitmq.kept import Kept
from polytope_server.queue.rabbitmq.listening import HintReceiver
from polytope_server.queue.rabbitmq.parameters import parameters
from polytope_server.queue.rabbitmq.publishing import HintSender, Publisher
from polytope_server.queue.rabbitmq.thread import LoopThread

T = TypeVar("T")

_FAREWELL_S: Final = 1.0


class RabbitMqQueue:
    """See `polytope_server.queue.Queue`."""

    Config = RabbitMqSection

    def __init__(self, config: RabbitMqSection) -> None:
        # It tells every fault as an error, with traceback, also those that we wait for.
        logging.getLogger("pika").setLevel(logging.CRITICAL)
        self._timeout_s = config.timeout
        self._thread = LoopThread()
        outgoing, incoming = (parameters(config, use=use) for use in ("publishing", "consuming"))
        self._outgoing = Kept("connection to RabbitMQ for publishing", partial(connect, outgoing))
        self._incoming = Kept("connection to RabbitMQ", partial(connect, incoming))
        self._queue = DeclaredQueue(config)
        exchange = Exchange(config)
        self._publisher = Publisher(self._queue, self._outgoing)
        self._sender = HintSender(exchange, self._outgoing, self._thread.soon)
        self._consumer = Consumer(self._queue, self._incoming, self._thread.soon)
        self._receiver = HintReceiver(exchange, self._incoming, self._consumer, prefix=config.name)
        atexit.register(self.close)

    def close(self) -> None:
        """Send what hints there are, if that is quick, and end all connections. Done at exit."""
        atexit.unregister(self.close)
        self._thread.close(self._farewell)

    def ping(self) -> None:
        self._call(self._ping, self._incoming)

    def publish(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        bodies = [
            json.dumps({"id": message.id, "attempt": message.attempt}).encode()
            for message in messages
        ]
        self._call(lambda: self._publisher.publish(bodies), self._outgoing)
        self.hint(Topic.PUBLISHED)

    def receive(self) -> Delivery | None:
        delivery, certain = self._consumer.at_hand()
        if delivery is None and not certain:
            delivery = self._call(self._consumer.get, self._incoming)
            if delivery is None:
                self._consumer.tell_none()
        return delivery

    def acknowledge(self, delivery: Delivery) -> None:
        self._consumer.settle(delivery, done=True)

    def put_back(self, delivery: Delivery) -> None:
        self._consumer.settle(delivery, done=False)
        self.hint(Topic.PUBLISHED)

    def size(self) -> int:
        return self._consumer.held() + self._call(self._ready, self._incoming)

    def hint(self, topic: Topic, text: str = "") -> None:
        self._sender.put(Hint(topic=topic, text=text))

    def listen(self, *topics: Topic) -> AbstractContextManager[Hints]:
        return self._receiver.listening(
            topics, lambda: self._call(self._receiver.bound, self._incoming)
        )

    # --- in the event loop

    def _call(
        self, action: Callable[[], Coroutine[Any, Any, T]], connections: Kept[Connection]
    ) -> T:
        """What it gives, in bounded time.

        Raises:
            BackendUnavailable
        """
        return self._thread.call(lambda: self._bounded(action, connections))

    async def _bounded(
        self, action: Callable[[], Coroutine[Any, Any, T]], connections: Kept[Connection]
    ) -> T:
        connections.begin()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await action()
        except TimeoutError as exc:
            connection = connections.current
            if connection is not None and not connection.unblocked.is_set():
                raise _blocked() from exc
            if connection is not None:
                self._queue.examine(connection)
            raise BackendUnavailable(
                f"RabbitMQ has not answered within {self._timeout_s:g} s."
            ) from exc

    async def _ping(self) -> None:
        await self._queue.look(await self._incoming.get())
        if self._outgoing.is_wanted:
            connection = await self._outgoing.get()
            if not connection.unblocked.is_set():
                raise _blocked()

    async def _ready(self) -> int:
        return await self._queue.ready(await self._incoming.get())

    async def _farewell(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await self._sender.sent()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # what is closed now is not to be opened again
        for connection in (self._outgoing.current, self._incoming.current):
            if connection is not None:
                await connection.end()


def _blocked() -> BackendUnavailable:
    return BackendUnavailable("RabbitMQ takes no messages now: it has run out of memory or disk.")
