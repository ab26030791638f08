"""What the parts of the store have in common."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

from bson import ObjectId
from pymongo.errors import DuplicateKeyError, PyMongoError

from polytope_server.audit import AuditEntry
from polytope_server.config.mongodb import MongoStoreSection
from polytope_server.errors import BackendUnavailable
from polytope_server.request_store.mongodb.connection import Connection
from polytope_server.request_store.mongodb.documents import date, seconds
from polytope_server.request_store.mongodb.schema import CODEC, Collections, is_whole, prepare

logger = logging.getLogger(__name__)

T = TypeVar("T")

PAGE: Final = 500
"""Most ids in one command."""


class Base:
    """The server, and the few things that every part does.

    Every method of the store hands one action to `_do`. It may be run twice (see `Connection.run`), and the
    driver may send each of its writes twice: so each write is one that does nothing the second time, or
    shows by the token of its call that it has happened.
    """

    def __init__(self, config: MongoStoreSection) -> None:
        self._config = config
        self._connection = Connection(config)
        self._db = Collections.of(self._connection.client, config, in_replica_set=False)
        self._connection.open(self._prepare)

    def close(self) -> None:
        """Close all connections."""
        self._connection.close()

    def ping(self) -> None:
        """Looks as well whether we may write, and whether somebody has dropped what we have made."""
        if not self._do(lambda: is_whole(self._db)):
            logger.error(
                "The request store has been emptied or has lost indexes; it is made ready again",
                extra={"collection": self._db.requests.full_name},
            )
            self._connection.prepare_again()
            self._connection.ready(self._prepare)

    def now(self) -> float:
        return self._do(self._now)

    def _prepare(self) -> None:
        client = self._connection.client
        in_replica_set = prepare(
            client, self._db, where=self._connection.where, timeout_s=self._config.timeout
        )
        self._db = Collections.of(client, self._config, in_replica_set=in_replica_set)

    def _do(self, action: Callable[[], T]) -> T:
        return self._connection.run(action, self._prepare)

    def _now(self) -> float:
        """The clock of the primary: of the server that the dates of all writes are from."""
        hello = self._connection.client.admin.command("hello", codec_options=CODEC)
        return seconds(hello["localTime"])

    @staticmethod
    def _try(what: str, *actions: Callable[[], Any]) -> None:
        """Do what need not be done now, for somebody will do it later, or that is only a hint."""
        try:
            for action in actions:
                action()
        except PyMongoError as exc:
            logger.debug("left for later", extra={"what": what, "cause": str(exc)})

    # --- entries of operators' commands

    @contextmanager
    def _noted(self, entry: AuditEntry | None, entry_id: ObjectId) -> Iterator[None]:
        """Keep an entry while something is done, and after it, but not if it turns out not to have been done.

        It is written before: whoever dies in between leaves an entry of something that did not happen, and
        never the other way round. If nobody knows whether it has happened, it stays.
        """
        if entry is None:
            yield
            return
        self._note(entry, entry_id)
        try:
            yield
        except (BackendUnavailable, PyMongoError):
            raise
        except Exception:
            self._db.audit.delete_one({"_id": entry_id})
            raise

    def _note(self, entry: AuditEntry, entry_id: ObjectId) -> None:
        now = self._now()
        document = {
            "_id": entry_id,
            "at": date(now),
            "target": entry.target,
            "record": json.dumps(replace(entry, at=now).as_json()),
        }
        with suppress(DuplicateKeyError):  # our own first attempt
            self._db.audit.insert_one(document)


def pages(items: Iterable[T]) -> Iterator[list[T]]:
    everything = list(items)
    for start in range(0, len(everything), PAGE):
        yield everything[start : start + PAGE]


def field_of(error: DuplicateKeyError) -> str:
    """Which of our unique fields another document has already."""
    pattern = (error.details or {}).get("keyPattern") or {}
    return next(iter(pattern), "_id")
