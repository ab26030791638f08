"""A cache on memcached."""

import math
from collections.abc import Callable
from typing import Any, Final, TypeVar

from pymemcache import MemcacheError, MemcacheServerError, MemcacheUnexpectedCloseError
from pymemcache.client.base import PooledClient

from polytope_server.caching.remote import Refused, RemoteCache
from polytope_server.config.caching import MemcachedCacheSection
from polytope_server.errors import BackendUnavailable

T = TypeVar("T")

_BROKEN: Final = (MemcacheUnexpectedCloseError, ConnectionResetError, BrokenPipeError)


class MemcachedCache(RemoteCache):
    """See `polytope_server.caching.Cache`."""

    Config = MemcachedCacheSection

    def __init__(self, config: MemcachedCacheSection) -> None:
        super().__init__(_Server(config), name="memcached", prefix=config.prefix)


class _Server:
    """See `polytope_server.caching.remote.Server`."""

    def __init__(self, config: MemcachedCacheSection) -> None:
        self._client = PooledClient(
            (config.host, config.port),
            connect_timeout=config.timeout,
            timeout=config.timeout,
            no_delay=True,
            default_noreply=False,  # else nobody hears that something was not kept
        )

    def ping(self) -> None:
        self._asked(self._client.version)

    def read(self, key: str) -> bytes | None:
        found: Any = self._asked(lambda: self._client.get(key))
        return found if isinstance(found, bytes) else None

    def write(self, key: str, data: bytes, *, lifetime_s: float) -> None:
        # in whole seconds of a clock that ticks once a second: one more, not to end too early
        seconds = math.ceil(lifetime_s) + 1
        if not self._asked(lambda: self._client.set(key, data, expire=seconds)):
            raise Refused("not stored")

    def remove(self, key: str) -> None:
        self._asked(lambda: self._client.delete(key))

    def _asked(self, action: Callable[[], T]) -> T:
        try:
            try:
                return action()
            except _BROKEN:
                # a pooled connection may be of a server that has been started again since
                self._client.close()
                return action()
        except MemcacheUnexpectedCloseError as exc:
            raise BackendUnavailable(f"caching.memcached: {exc}") from exc
        except MemcacheServerError as exc:
            raise Refused(str(exc)) from exc
        except (MemcacheError, OSError) as exc:
            raise BackendUnavailable(f"caching.memcached: {exc or type(exc).__name__}") from exc
