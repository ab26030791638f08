"""The caches on servers: the contract, strangers' data, and servers that are away, each a real one."""

import contextlib
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson
import pytest
import redis as redis_driver
from pymemcache import Client as MemcachedDriver
from pymongo import MongoClient
from services.base import Server, free_port
from services.certificates import Certificates
from services.fixtures import started
from services.memcached import Memcached
from services.mongodb import MongoDb
from services.redis import Redis

from polytope_server.caching import Cache
from polytope_server.caching import mongodb as mongodb_module
from polytope_server.caching.remote import MAX_BYTES, Refused, RemoteCache
from polytope_server.errors import BackendUnavailable, ConfigurationError
from polytope_server.registry import open_backend
from polytope_server.testing.caching import CacheContract

PREFIX = "polytope:1:"
MONGO_PREFIX = "1:"
BACKENDS_PAGE = Path(__file__).parents[3] / "docs" / "backends.md"


def redis_cache(port: int, **options: Any) -> Cache:
    cache: Cache = open_backend("caching", "redis", {"host": "127.0.0.1", "port": port, **options})
    return cache


def memcached_cache(port: int, **options: Any) -> Cache:
    options = {"host": "127.0.0.1", "port": port, **options}
    cache: Cache = open_backend("caching", "memcached", options)
    return cache


def mongo_cache(port: int, **options: Any) -> Cache:
    options = {"uri": f"mongodb://127.0.0.1:{port}/?directConnection=true", **options}
    cache: Cache = open_backend("caching", "mongodb", options)
    return cache


def name_of(key: str, prefix: str = PREFIX) -> str:
    """What a value is called on the server."""
    return prefix + hashlib.sha256(key.encode()).hexdigest()


def envelope(name: str, **changed: Any) -> bytes:
    """What is kept of the value 7 under a name, or something like it."""
    whole = {"schema": 1, "key": name, "ends_at": time.time() + 60, "value": 7}
    return json.dumps({**whole, **changed}).encode()


STRANGERS: tuple[Callable[[str], bytes], ...] = (
    lambda _: b"",
    lambda _: b"text",
    lambda _: b"\x80\x04\x95",  # a pickle, as older servers have left
    lambda _: b"\xff\xfe",
    lambda _: b"7",
    lambda _: b"[]",
    lambda _: b"{}",
    lambda _: b"[" * 100_000,
    lambda _: b'{"schema": 1, "value": NaN}',
    lambda _: b"9" * 5000,
    lambda name: envelope(name, schema=2),
    lambda name: envelope(name, schema="1"),
    lambda name: envelope(name, schema=None),
    lambda name: envelope(name, key=name_of("another")),
    lambda name: envelope(name, ends_at=time.time() - 1),
    lambda name: envelope(name, ends_at="never"),
    lambda name: envelope(name, ends_at=None),
    lambda name: b" " * MAX_BYTES + envelope(name),
)
"""By the name under which they stand."""


class Strangers:
    """What others may put into a shared server; `plant` and `held` go past our code."""

    PREFIX = PREFIX

    def name_of(self, key: str) -> str:
        return name_of(key, self.PREFIX)

    @pytest.mark.parametrize("data", STRANGERS, ids=range(len(STRANGERS)))
    def test_what_is_not_ours_is_not_found(
        self,
        cache: Cache,
        plant: Callable[[str, bytes], None],
        data: Callable[[str], bytes],
    ) -> None:
        name = self.name_of("key")
        plant(name, envelope(name))
        assert cache.get("key") == 7
        plant(name, data(name))
        assert cache.get("key") is None
        cache.put("key", "ours", lifetime_s=60)
        assert cache.get("key") == "ours"

    def test_keys_leave_no_trace_on_the_server(
        self, cache: Cache, held: Callable[[str], bytes | None]
    ) -> None:
        cache.put("Basic am9lOnMzY3JldA==", {"user": "joe"}, lifetime_s=60)
        data = held(self.name_of("Basic am9lOnMzY3JldA=="))
        assert data is not None
        assert b"joe" in data
        assert b"am9lOnMz" not in data


class TestRedis(CacheContract, Strangers):
    @pytest.fixture
    def driver(self, redis: Redis) -> Iterator[Any]:
        with redis_driver.Redis(port=redis.port()) as driver:
            yield driver

    @pytest.fixture
    def cache(self, redis: Redis, driver: Any) -> Cache:
        driver.flushall()
        return redis_cache(redis.port())

    @pytest.fixture
    def plant(self, driver: Any) -> Callable[[str, bytes], None]:
        return lambda key, data: driver.set(key, data)

    @pytest.fixture
    def held(self, driver: Any) -> Callable[[str], bytes | None]:
        return lambda key: driver.get(key)

    def test_a_value_of_another_kind_is_not_found_and_can_be_replaced(
        self, cache: Cache, driver: Any
    ) -> None:
        driver.lpush(name_of("key"), "a list")
        assert cache.get("key") is None
        cache.put("key", 1, lifetime_s=60)
        assert cache.get("key") == 1

    def test_the_server_forgets_by_itself(self, cache: Cache, driver: Any) -> None:
        cache.put("key", 1, lifetime_s=60)
        assert 58_000 < driver.pttl(name_of("key")) <= 60_000
        assert [key.decode() for key in driver.scan_iter()] == [name_of("key")]

    def test_databases_and_prefixes_keep_deployments_apart(
        self, redis: Redis, cache: Cache
    ) -> None:
        other = redis_cache(redis.port(), db=1)
        third = redis_cache(redis.port(), prefix="third:")
        cache.put("key", 1, lifetime_s=60)
        assert (other.get("key"), third.get("key")) == (None, None)

    def test_a_full_server_keeps_nothing_and_is_not_away(
        self, cache: Cache, driver: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache.put("there", 1, lifetime_s=60)
        cache.put("key", "earlier", lifetime_s=60)
        driver.config_set("maxmemory", 1)
        try:
            for _ in range(3):
                cache.put("key", "x" * 10_000, lifetime_s=60)
            assert cache.get("key") is None
            assert cache.get("there") == 1
        finally:
            driver.config_set("maxmemory", 0)
        assert [record.message for record in caplog.records] == ["The cache does not keep values"]
        cache.put("key", 2, lifetime_s=60)
        assert cache.get("key") == 2


class TestMemcached(CacheContract, Strangers):
    @pytest.fixture
    def driver(self, memcached: Memcached) -> Iterator[Any]:
        with contextlib.closing(
            MemcachedDriver(("127.0.0.1", memcached.port()), default_noreply=False)
        ) as driver:
            yield driver

    @pytest.fixture
    def cache(self, memcached: Memcached, driver: Any) -> Cache:
        driver.flush_all()
        return memcached_cache(memcached.port())

    @pytest.fixture
    def plant(self, driver: Any) -> Callable[[str, bytes], None]:
        return lambda key, data: driver.set(key, data)

    @pytest.fixture
    def held(self, driver: Any) -> Callable[[str], bytes | None]:
        return lambda key: driver.get(key)

    def test_a_server_with_a_smaller_limit_is_not_away(
        self, cache: Cache, memcached: Memcached
    ) -> None:
        largest = "x" * (MAX_BYTES - 500)
        cache.put("key", largest, lifetime_s=60)
        assert cache.get("key") == largest


class TestMongodb(CacheContract, Strangers):
    PREFIX = MONGO_PREFIX

    @pytest.fixture
    def values(self, mongodb: MongoDb) -> Iterator[Any]:
        with MongoClient[dict[str, Any]](mongodb.uri) as client:
            client.drop_database("tests_of_the_cache")
            yield client["tests_of_the_cache"]["values"]

    @pytest.fixture
    def cache(self, mongodb: MongoDb, values: Any) -> Cache:
        return mongo_cache(mongodb.port(), database=values.database.name, collection=values.name)

    @pytest.fixture
    def plant(self, values: Any) -> Callable[[str, bytes], None]:
        def plant(key: str, data: bytes) -> None:
            values.replace_one({"_id": key}, {"_id": key, "data": data}, upsert=True)

        return plant

    @pytest.fixture
    def held(self, values: Any) -> Callable[[str], bytes | None]:
        return lambda key: values.find_one({"_id": key})["data"]

    @pytest.mark.parametrize(
        "document", [{}, {"data": None}, {"data": "text"}, {"data": {"a": 1}}, {"data": [b"x"]}]
    )
    def test_a_document_of_another_shape_is_not_found(
        self, cache: Cache, values: Any, document: dict[str, Any]
    ) -> None:
        values.insert_one({"_id": self.name_of("key"), **document})
        assert cache.get("key") is None
        cache.put("key", 1, lifetime_s=60)
        assert cache.get("key") == 1

    def test_what_cannot_be_read_at_all_is_not_given(self) -> None:
        """Not all servers take texts that are none: so here it is what the driver does with one."""
        half = bson.encode({"data": "ab"}).replace(b"ab", b"\xff\xfe")
        with pytest.raises(Refused, match="utf-8"), mongodb_module._our_errors():
            bson.decode(half)

    def test_the_server_removes_what_is_old_by_dates_in_utc(
        self, cache: Cache, values: Any
    ) -> None:
        cache.put("key", 1, lifetime_s=60)
        (index,) = [each for each in values.list_indexes() if "expireAfterSeconds" in each]
        assert (dict(index["key"]), index["expireAfterSeconds"]) == ({"expires_at": 1}, 0)
        ends = values.find_one()["expires_at"].replace(tzinfo=UTC)
        assert 50 < (ends - datetime.now(UTC)).total_seconds() <= 60

    def test_an_index_of_somebody_else_does_no_harm(
        self, cache: Cache, values: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        values.create_index("expires_at", expireAfterSeconds=3600)
        for number in range(3):
            cache.put("key", number, lifetime_s=60)
            assert cache.get("key") == number
        assert messages(caplog) in (
            [],  # where the server takes the other index for ours
            ["MongoDB does not remove old values of the cache: the collection will grow"],
        )


@dataclass
class Kind:
    """One kind of server, for what is the same with all of them."""

    server: type[Server]
    cache: Callable[..., Cache]
    options: dict[str, Any] = field(default_factory=dict)


KINDS = {
    "redis": Kind(Redis, redis_cache),
    "memcached": Kind(Memcached, memcached_cache),
    "mongodb": Kind(MongoDb, mongo_cache),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def server(kind: Kind) -> Iterator[Server]:
    with started(kind.server, **kind.options) as server:
        yield server
        server.kill()  # there is nothing to save


def with_short_pause(cache: Cache, pause_s: float = 0.2) -> Cache:
    assert isinstance(cache, RemoteCache)
    cache._breaker._pause_s = pause_s
    return cache


def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.message for r in caplog.records if r.name.startswith("polytope_server")]


AWAY = "A server is away; it is asked again from time to time"
BACK = "A server is there again"


def test_a_server_that_is_not_there_costs_nothing_and_is_logged_once(
    kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cache = kind.cache(free_port())
    begin = time.monotonic()
    for number in range(200):
        cache.put(str(number), 1, lifetime_s=60)
        assert cache.get(str(number)) is None
        cache.delete(str(number))
    assert time.monotonic() - begin < 2.5
    assert messages(caplog) == [AWAY]
    with pytest.raises(BackendUnavailable):
        cache.ping()


def test_what_is_no_json_is_told_also_while_the_server_is_away(kind: Kind) -> None:
    with pytest.raises(TypeError):
        kind.cache(free_port()).put("key", object(), lifetime_s=60)


def test_a_server_that_hangs_delays_once(
    kind: Kind, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cache = with_short_pause(kind.cache(server.port(), timeout=0.3), pause_s=5)
    cache.put("key", 1, lifetime_s=60)
    assert cache.get("key") == 1
    server.pause()
    begin = time.monotonic()
    for _ in range(100):
        assert cache.get("key") is None
    assert 0.25 < time.monotonic() - begin < 1.5
    with pytest.raises(BackendUnavailable):
        cache.ping()
    server.resume()
    cache.ping()
    assert cache.get("key") == 1
    assert messages(caplog) == [AWAY, BACK]


def test_many_logins_beside_a_server_that_hangs_wait_together(kind: Kind, server: Server) -> None:
    cache = with_short_pause(kind.cache(server.port(), timeout=0.3), pause_s=5)
    cache.put("key", 1, lifetime_s=60)
    server.pause()
    longest: list[float] = []

    def work() -> None:
        for _ in range(20):
            begin = time.monotonic()
            assert cache.get("key") is None
            longest.append(time.monotonic() - begin)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    server.resume()
    assert len(longest) == 16 * 20
    assert max(longest) < 1.5


def test_a_server_that_was_killed_and_started_again_is_used_again(
    kind: Kind, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cache = with_short_pause(kind.cache(server.port()))
    cache.put("key", 1, lifetime_s=60)
    server.kill()
    for _ in range(10):
        assert cache.get("key") is None
    server.start()

    def is_kept() -> bool:
        cache.put("new", 2, lifetime_s=60)
        return cache.get("new") == 2

    until(is_kept)
    assert messages(caplog) == [AWAY, BACK]


def test_a_restart_that_nobody_noticed_loses_no_call(
    kind: Kind, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    cache = kind.cache(server.port())
    barrier = threading.Barrier(4)

    def use() -> None:
        barrier.wait()
        for _ in range(20):
            cache.get("key")

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    server.kill()
    server.start()
    cache.put("key", 3, lifetime_s=60)
    assert cache.get("key") == 3
    assert messages(caplog) == []


def test_the_rights_that_the_documentation_asks_for_are_enough(redis: Redis) -> None:
    (rights,) = re.findall(r"An ACL for it: `([^`]+)`", BACKENDS_PAGE.read_text())
    with redis_driver.Redis(port=redis.port()) as driver:
        driver.execute_command("ACL", "SETUSER", "polytope", "on", ">s3cret", *rights.split())
    cache = redis_cache(redis.port(), username="polytope", password="s3cret")
    cache.ping()
    cache.put("key", 1, lifetime_s=60)
    assert cache.get("key") == 1
    cache.delete("key")
    assert cache.get("key") is None


def test_a_password_and_tls_are_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificates = Certificates(tmp_path)
    with started(Redis, password="s3cret-xyzzy", certificates=certificates) as redis:
        right = {
            "password": "s3cret-xyzzy",
            "tls": True,
            "host": "localhost",
            "ca_file": str(certificates.authority),
        }
        cache = redis_cache(redis.port(), **right)
        cache.ping()
        cache.put("key", 1, lifetime_s=60)
        assert cache.get("key") == 1
        other = Certificates(tmp_path / "other")
        wrong: dict[str, dict[str, Any]] = {
            "password": {**right, "password": "wr0ng-xyzzy"},
            "certificate": {**right, "ca_file": str(other.authority)},
            "system": {key: value for key, value in right.items() if key != "ca_file"},
            "clear": {"password": "s3cret-xyzzy"},
        }
        for options in wrong.values():
            unable = redis_cache(redis.port(), **options)
            with pytest.raises(BackendUnavailable) as caught:
                unable.ping()
            unable.put("key", 2, lifetime_s=60)
            assert unable.get("key") is None
            assert "xyzzy" not in str(caught.value)
        assert cache.get("key") == 1
    assert "xyzzy" not in str([vars(record) for record in caplog.records])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("redis", {"port": 0}, r"caching\.redis\.port"),
        ("redis", {"port": "many"}, r"caching\.redis\.port"),
        ("redis", {"host": ""}, r"caching\.redis\.host"),
        ("redis", {"db": -1}, r"caching\.redis\.db"),
        ("redis", {"timeout": "0"}, r"caching\.redis\.timeout"),
        ("redis", {"prefix": "a b"}, r"caching\.redis\.prefix"),
        ("redis", {"ca_file": "/etc/ca.pem"}, "with tls: true"),
        ("redis", {"username": "joe"}, "with a password"),
        ("memcached", {"port": 70000}, r"caching\.memcached\.port"),
        ("memcached", {"prefix": "x" * 200}, r"caching\.memcached\.prefix"),
        ("mongodb", {"username": "joe"}, "both username and password"),
        ("mongodb", {"collection": ""}, r"caching\.mongodb\.collection"),
        ("mongodb", {"uri": "http://joe:xyzzy@host"}, r"caching\.mongodb: .* mongodb://host:27017"),
        ("mongodb", {"uri": "mongodb://joe:x/y/z@host"}, r"caching\.mongodb: "),
        ("mongodb", {"database": "a b"}, r"caching\.mongodb: "),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_key(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        open_backend("caching", name, options)
    assert "xyzzy" not in str(caught.value)
