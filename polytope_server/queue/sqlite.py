"""The embedded queue: a table of ids in a file of its own, and sockets for the hints."""

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

from polytope_server.config.embedded import SqliteQueueSection
from polytope_server.errors import ConfigurationError
from polytope_server.queue import Delivery, Hint, Hints, Message, Topic
from polytope_server.queue.hints import HintDirectory
from polytope_server.sqlite import Database

logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    visible_at REAL NOT NULL,
    UNIQUE (id, attempt)
);
"""

_RECEIVE = """
UPDATE messages SET visible_at = :hidden_until
WHERE seq = (SELECT seq FROM messages WHERE visible_at <= :now ORDER BY seq LIMIT 1)
RETURNING seq, id, attempt, visible_at
"""

HIDDEN_S = 20.0
"""How long a delivered message is nobody else's; a worker needs milliseconds to take a lease."""


class SqliteQueue:
    """See `polytope_server.queue.Queue`."""

    Config = SqliteQueueSection

    def __init__(self, config: SqliteQueueSection) -> None:
        self._database = Database(config.path, schema=[_SCHEMA], replaceable=True)
        directory = hints_directory(config)
        try:
            self._hints = HintDirectory(directory)
        except OSError as exc:
            raise ConfigurationError(
                f"queue.sqlite.hints_dir: {directory} cannot be used: {exc.strerror}"
            ) from exc

    def ping(self) -> None:
        self._database.ping()

    def publish(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        with self._database.transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO messages (id, attempt, visible_at) VALUES (?, ?, 0)",
                [(message.id, message.attempt) for message in messages],
            )
        self.hint(Topic.PUBLISHED)

    def receive(self) -> Delivery | None:
        now = time.time()
        with self._database.errors():
            # Idle workers look often; a read takes no lock that others would wait for.
            if (
                not self._database.connection()
                .execute("SELECT 1 FROM messages WHERE visible_at <= ? LIMIT 1", (now,))
                .fetchone()
            ):
                return None
        with self._database.transaction() as db:
            row = db.execute(_RECEIVE, {"now": now, "hidden_until": now + HIDDEN_S}).fetchone()
        if row is None:
            return None
        message = Message(id=row["id"], attempt=row["attempt"])
        return Delivery(message=message, tag=(row["seq"], row["visible_at"]))

    def acknowledge(self, delivery: Delivery) -> None:
        with self._database.transaction() as db:
            db.execute("DELETE FROM messages WHERE (seq, visible_at) = (?, ?)", _tag(delivery))

    def put_back(self, delivery: Delivery) -> None:
        with self._database.transaction() as db:
            db.execute(
                "UPDATE messages SET visible_at = 0 WHERE (seq, visible_at) = (?, ?)",
                _tag(delivery),
            )
        self.hint(Topic.PUBLISHED)

    def size(self) -> int:
        with self._database.errors():
            return int(
                self._database.connection().execute("SELECT count(*) FROM messages").fetchone()[0]
            )

    def hint(self, topic: Topic, text: str = "") -> None:
        try:
            self._hints.send(Hint(topic=topic, text=text))
        except OSError:
            logger.warning("a hint could not be sent", exc_info=True)

    def listen(self, *topics: Topic) -> AbstractContextManager[Hints]:
        return self._hints.listen(*topics)


def hints_directory(config: SqliteQueueSection) -> Path:
    """Where the wake-up sockets are."""
    return config.hints_dir or config.path.with_name(config.path.name + ".hints")


def _tag(delivery: Delivery) -> tuple[int, float]:
    """Which row, and which delivery of it: one that was delivered again is no longer ours."""
    seq, visible_at = cast(tuple[int, float], delivery.tag)
    return seq, visible_at
