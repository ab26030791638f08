"""The queue itself: used as it is if it is there, made if it is not, and made anew if it is broken."""

import asyncio
import logging
from typing import Any, Final

from polytope_server.config.rabbitmq import RabbitMqSection
from polytope_server.errors import BackendUnavailable
from polytope_server.queue.rabbitmq.connection import (
    DIFFERENT,
    NOT_FOUND,
    Channel,
    ClosedByServer,
    Connection,
)
from polytope_server.queue.rabbitmq.kept import Kept

logger = logging.getLogger(__name__)

_TRIES: Final = 3
_DELETED_S: Final = 0.3
"""Before a queue that was deleted is made again: if that is done at once, RabbitMQ 3.10 confuses the two,
confirms messages that it drops, and does not tell consumers."""
_BROKEN_S: Final = 20.0
"""How long it may take for one message, while the server answers other questions, before it is made anew."""


class DeclaredQueue:
    """The queue of the messages. In the event loop only."""

    def __init__(self, config: RabbitMqSection) -> None:
        self.name = config.name
        self.timeout_s = config.timeout
        types = {"auto": ("quorum", "classic")}
        self._types = types.get(config.queue_type, (config.queue_type,))
        self._was_there = False
        self._examinations: dict[Connection, asyncio.Task[None]] = {}

    async def ready(self, connection: Connection) -> int:
        """Make it if it is not there; how many messages nobody has taken from it.

        Raises:
            BackendUnavailable: or the user may not.
        """
        error: BackendUnavailable | None = None
        for _ in range(_TRIES):
            if (found := await self.look(connection)) is not None:
                self._was_there = True
                return found
            if self._was_there:
                await asyncio.sleep(_DELETED_S)
            for kind in self._types:
                try:
                    await self._declare(connection, kind)
                except ClosedByServer as exc:
                    # Somebody else has just made another one, or there is no such type here.
                    error = exc
                    if exc.code == DIFFERENT or kind != self._types[-1]:
                        continue
                    raise
                logger.info("made the queue", extra={"queue": self.name, "type": kind})
                break
        if (found := await self.look(connection)) is not None:
            return found
        raise BackendUnavailable(f"The queue {self.name} cannot be made: {error}")

    async def look(self, connection: Connection) -> int | None:
        """How many messages nobody has taken from it; None if it is not there.

        Raises:
            BackendUnavailable
        """
        channel = await connection.channel()
        try:
            frame = await channel.call(channel.driver.queue_declare, self.name, passive=True)
        except ClosedByServer as exc:
            if exc.code == NOT_FOUND:
                return None
            raise
        finally:
            channel.close()
        return int(frame.method.message_count)

    async def _declare(self, connection: Connection, kind: str) -> None:
        channel = await connection.channel()
        try:
            await channel.call(
                channel.driver.queue_declare,
                self.name,
                durable=True,
                arguments={"x-queue-type": kind},
            )
        finally:
            channel.close()

    # --- broken

    def examine(self, connection: Connection) -> None:
        """Find out, meanwhile, why something about it was not answered, and put that right.

        In any case the connection is given up at the end, with what waits there for ever. If the queue
        answers on no other channel either, it has no leader: a quorum queue stays so for ever if its
        server was killed in the seconds after it was made. It holds no truth: it is deleted and made anew,
        and the broker publishes again.
        """
        if connection not in self._examinations and not connection.closed.done():
            task = asyncio.create_task(self._examine(connection))
            self._examinations[connection] = task
            task.add_done_callback(lambda _: self._examinations.pop(connection, None))

    async def _examine(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self.timeout_s):
                await self.look(connection)
        except (TimeoutError, BackendUnavailable):
            connection.drop("RabbitMQ does not answer any more")
            return
        if not await self._gives_messages(connection):
            await self._make_anew(connection)
        connection.drop("something was not answered")

    async def _make_anew(self, connection: Connection) -> None:
        logger.error(
            "the queue does not answer, and the server does: deleting it and making it anew",
            extra={"queue": self.name},
        )
        try:
            async with asyncio.timeout(3 * _BROKEN_S):
                channel = await connection.channel()
                try:
                    await channel.call(channel.driver.queue_delete, self.name)
                finally:
                    channel.close()
                await self.ready(connection)
        except (BackendUnavailable, TimeoutError) as exc:
            logger.warning("that failed", extra={"queue": self.name, "cause": str(exc)})

    async def _gives_messages(self, connection: Connection) -> bool:
        """Whether it answers who asks for one, which goes back at once; or cannot be asked."""
        try:
            async with asyncio.timeout(_BROKEN_S):
                channel = await connection.channel()
                try:
                    await channel.get(self.name)
                finally:
                    channel.close()
        except TimeoutError:
            return False
        except BackendUnavailable:
            return True
        return True


class Exchange:
    """Where the hints go to, by their topics."""

    def __init__(self, config: RabbitMqSection) -> None:
        self.name = f"{config.name}.hints"

    async def ready(self, connections: Kept[Connection]) -> Channel:
        """A channel on which it can be used; it is made if it is not there.

        Raises:
            BackendUnavailable: or the user may not.
        """
        connection = await connections.wait()
        channel = await connection.channel()
        try:
            await self._declare(channel, passive=True)
        except ClosedByServer as exc:
            if exc.code != NOT_FOUND:
                raise
            channel = await connection.channel()
            await self._declare(channel, passive=False)
        return channel

    async def _declare(self, channel: Channel, **options: Any) -> None:
        await channel.call(
            channel.driver.exchange_declare, self.name, "direct", durable=True, **options
        )
