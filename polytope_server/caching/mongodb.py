"""A cache in a collection of MongoDB."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any, Final

from bson.errors import BSONError
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.errors import (
    ConfigurationError as PyMongoConfigurationError,
)
from pymongo.errors import (
    DuplicateKeyError,
    InvalidName,
    InvalidURI,
    OperationFailure,
    PyMongoError,
)
from pymongo.write_concern import WriteConcern

from polytope_server.caching.remote import Refused, RemoteCache
from polytope_server.config.caching import MongoCacheSection
from polytope_server.errors import BackendUnavailable, ConfigurationError

logger = logging.getLogger(__name__)

_LOOK_S: Final = 600.0
"""How often the index that removes old values is looked after: somebody may have dropped the collection."""
_AUTHENTICATION_FAILED: Final = 18


class MongoCache(RemoteCache):
    """See `polytope_server.caching.Cache`."""

    Config = MongoCacheSection

    def __init__(self, config: MongoCacheSection) -> None:
        super().__init__(_Server(config), name="mongodb")


class _Server:
    """See `polytope_server.caching.remote.Server`.

    ``{_id, data, expires_at}``, with an index by which the server removes what is old, about once a
    minute; what is found before that says itself that it has ended.
    """

    def __init__(self, config: MongoCacheSection) -> None:
        self._values = _collection(config)
        self._lock = Lock()
        self._look_at = 0.0

    def ping(self) -> None:
        with _our_errors():
            self._values.database.command("ping")

    def read(self, key: str) -> bytes | None:
        with _our_errors():
            found = self._values.find_one({"_id": key}, {"data": True})
        data = found.get("data") if found else None
        return data if isinstance(data, bytes) else None

    def write(self, key: str, data: bytes, *, lifetime_s: float) -> None:
        self._look_after_index()
        expires_at = datetime.now(UTC) + timedelta(seconds=lifetime_s)
        document = {"_id": key, "data": data, "expires_at": expires_at}
        with _our_errors():
            try:
                self._values.replace_one({"_id": key}, document, upsert=True)
            except DuplicateKeyError:
                return  # another has put a value there in this moment: as if it had come after ours

    def remove(self, key: str) -> None:
        with _our_errors():
            self._values.delete_one({"_id": key})

    def _look_after_index(self) -> None:
        with self._lock:
            if time.monotonic() < self._look_at:
                return
            self._look_at = time.monotonic() + _LOOK_S
        try:
            with _our_errors():
                self._values.create_index("expires_at", expireAfterSeconds=0)
        except Refused as exc:
            logger.warning(
                "MongoDB does not remove old values of the cache: the collection will grow",
                extra={"collection": self._values.full_name, "cause": str(exc)},
            )
        except BackendUnavailable:
            self._look_at = 0.0
            raise


def _collection(config: MongoCacheSection) -> Collection[dict[str, Any]]:
    milliseconds = round(config.timeout * 1000)
    login: dict[str, Any] = {}
    if config.username is not None and config.password is not None:
        login = {
            "username": config.username,
            "password": config.password.get_secret_value(),
        }
    try:
        client: MongoClient[dict[str, Any]] = MongoClient(
            config.uri,
            connect=False,  # threads and connections would not survive a fork
            appname="polytope-server cache",
            timeoutMS=milliseconds,
            serverSelectionTimeoutMS=milliseconds,
            connectTimeoutMS=milliseconds,
            **login,
        )
        database = client[config.database]
        return database.get_collection(config.collection, write_concern=WriteConcern(w=1))
    except (InvalidURI, InvalidName, PyMongoConfigurationError, ValueError):
        # the text of the driver may hold a part of the address, and so a password
        raise ConfigurationError(
            "caching.mongodb: cannot be used; uri must be such as mongodb://host:27017 "
            "(special characters of a user's name or password escaped with %), database and "
            "collection names that MongoDB takes"
        ) from None


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except DuplicateKeyError:
        raise
    except OperationFailure as exc:
        if exc.code == _AUTHENTICATION_FAILED or exc.timeout:
            raise BackendUnavailable(f"caching.mongodb: {exc}") from exc
        raise Refused(str(exc)) from exc
    except BSONError as exc:  # of what somebody else has put there, such as text that is none
        raise Refused(str(exc)) from exc
    except PyMongoError as exc:
        raise BackendUnavailable(f"caching.mongodb: {exc}") from exc
