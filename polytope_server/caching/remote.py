"""What caches on a server have in common: the form of keys and values, and patience while it is away."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn, Protocol, TypeVar

from polytope_server.circuit_breaker import CircuitBreaker
from polytope_server.errors import BackendUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BYTES: Final = 1_000_000
"""Of one value as it is stored; memcached takes 1 MiB with all that belongs to it."""
MAX_LIFETIME_S: Final = 29 * 86400.0
"""memcached takes more than 30 days for a date."""
PAUSE_S: Final = 5.0
"""How long a server that has failed is not asked again."""

_SCHEMA: Final = 1


class Refused(Exception):
    """The server is there and answers, but does not do this."""


class Server(Protocol):
    """What the driver of one kind of server does. Keys are printable ASCII below 250 bytes.

    Every method may raise `BackendUnavailable`, after a time-out at the latest, or `Refused`.
    """

    def ping(self) -> None:
        """Return if it answers."""

    def read(self, key: str) -> bytes | None:
        """What is there; other people's data may be of any size, and any part of it will do."""

    def write(self, key: str, data: bytes, *, lifetime_s: float) -> None:
        """Keep the bytes at least so long; they say themselves when they end."""

    def remove(self, key: str) -> None:
        """Remove what may be there."""


class RemoteCache:
    """See `polytope_server.caching.Cache`.

    Keys are hashed, under a prefix. What is found is looked at with suspicion: a shared server may hold
    what others, or other versions of us, have written. It counts only if it is ours and of this schema.

    Args:
        name: of the kind of server, for the log.
        clock: Unix seconds; the machines that share a cache should agree about them.
    """

    def __init__(
        self,
        server: Server,
        *,
        name: str,
        prefix: str = "",
        pause_s: float = PAUSE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._server = server
        self._name = name
        self._prefix = f"{prefix}{_SCHEMA}:"
        self._clock = clock
        self._breaker = CircuitBreaker(f"caching.{name}", pause_s=pause_s)
        self._keeps = True

    def ping(self) -> None:
        try:
            self._server.ping()
        except Refused as exc:
            raise BackendUnavailable(f"caching.{self._name}: {exc}") from exc
        except BackendUnavailable as exc:
            self._breaker.failed(exc)
            raise
        self._breaker.succeeded()

    def get(self, key: str) -> Any | None:
        name = self._named(key)
        try:
            data = self._asked(lambda: self._server.read(name))
        except Refused as exc:
            logger.debug("The cache does not give a value", extra={"cause": str(exc)})
            return None
        return None if data is None else self._opened(data, name)

    def put(self, key: str, value: Any, *, lifetime_s: float) -> None:
        name = self._named(key)
        lifetime_s = min(lifetime_s, MAX_LIFETIME_S)
        data = _closed(value, name, ends_at=self._clock() + lifetime_s)
        if lifetime_s <= 0 or len(data) > MAX_BYTES:
            self.delete(key)
            return
        try:
            self._asked(lambda: self._server.write(name, data, lifetime_s=lifetime_s))
        except Refused as exc:
            if self._keeps:
                self._keeps = False
                logger.warning(
                    "The cache does not keep values",
                    extra={"server": f"caching.{self._name}", "cause": str(exc)},
                )
            self.delete(key)
            return
        self._keeps = True

    def delete(self, key: str) -> None:
        name = self._named(key)
        try:
            self._asked(lambda: self._server.remove(name))
        except Refused as exc:
            logger.debug("The cache does not remove a value", extra={"cause": str(exc)})

    def _named(self, key: str) -> str:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self._prefix}{digest}"

    def _asked(self, action: Callable[[], T]) -> T | None:
        """What the server answers; None, soon, if it is away.

        Raises: Refused.
        """
        if not self._breaker.lets_through():
            return None
        try:
            answer = action()
        except BackendUnavailable as exc:
            self._breaker.failed(exc)
            return None
        except Refused:
            self._breaker.succeeded()
            raise
        self._breaker.succeeded()
        return answer

    def _opened(self, data: bytes, name: str) -> Any | None:
        if len(data) > MAX_BYTES:
            return None
        try:
            envelope = json.loads(data, parse_constant=_no_json)
        except (ValueError, RecursionError):
            return None
        match envelope:
            case {"schema": int(schema), "key": str(key), "ends_at": int() | float() as ends_at}:
                # the key as well, so that an answer to another question is never taken for ours
                if schema == _SCHEMA and key == name and self._clock() < ends_at:
                    return envelope.get("value")
        return None


def _closed(value: Any, name: str, *, ends_at: float) -> bytes:
    envelope = {"schema": _SCHEMA, "key": name, "ends_at": ends_at, "value": value}
    return json.dumps(envelope, separators=(",", ":"), allow_nan=False).encode()


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
