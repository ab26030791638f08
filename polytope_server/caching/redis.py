"""A cache on Redis, or on what speaks its protocol."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import ConnectionError as RedisConnectionError
from redis import Redis, RedisError, ResponseError
from redis.backoff import NoBackoff
from redis.retry import Retry

from polytope_server.caching.remote import MAX_BYTES, Refused, RemoteCache
from polytope_server.config.caching import RedisCacheSection
from polytope_server.errors import BackendUnavailable


class RedisCache(RemoteCache):
    """See `polytope_server.caching.Cache`."""

    Config = RedisCacheSection

    def __init__(self, config: RedisCacheSection) -> None:
        super().__init__(_Server(config), name="redis", prefix=config.prefix)


class _Server:
    """See `polytope_server.caching.remote.Server`."""

    def __init__(self, config: RedisCacheSection) -> None:
        self._client = Redis(
            host=config.host,
            port=config.port,
            db=config.db,
            username=config.username,
            password=config.password.get_secret_value() if config.password else None,
            socket_timeout=config.timeout,
            socket_connect_timeout=config.timeout,
            socket_keepalive=True,
            # a pooled connection may be of a server that has been started again since; but a server
            # that hangs is not asked twice
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            **_tls(config),
        )

    def ping(self) -> None:
        with _our_errors():
            self._client.ping()

    def read(self, key: str) -> bytes | None:
        with _our_errors():
            # never more than a value of ours can be, whatever somebody has put there
            found: Any = self._client.getrange(key, 0, MAX_BYTES)
        return found or None

    def write(self, key: str, data: bytes, *, lifetime_s: float) -> None:
        with _our_errors():
            self._client.set(key, data, px=max(1, round(lifetime_s * 1000)))

    def remove(self, key: str) -> None:
        with _our_errors():
            self._client.delete(key)


def _tls(config: RedisCacheSection) -> dict[str, Any]:
    if not config.tls:
        return {}
    return {
        "ssl": True,
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_certs": config.ca_file and str(config.ca_file),
    }


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except ResponseError as exc:
        raise Refused(str(exc)) from exc
    except (RedisError, OSError) as exc:
        raise BackendUnavailable(f"caching.redis: {exc}") from exc
