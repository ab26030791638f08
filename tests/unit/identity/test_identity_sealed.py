"""What is believed of a cache that others can read and write."""

import pytest

from polytope_server.authentication.sealed import SealedCache
from polytope_server.caching import Cache
from polytope_server.caching.memory import MemoryCache
from polytope_server.config.caching import MemoryCacheSection


@pytest.fixture
def cache() -> Cache:
    return MemoryCache(MemoryCacheSection())


def test_what_is_put_at_a_place_is_found_at_that_place_only(cache: Cache) -> None:
    sealed = SealedCache(cache)
    sealed.put("a", "bc", value={"x": 1}, lifetime_s=60)
    assert sealed.get("a", "bc") == {"x": 1}
    for other in (("ab", "c"), ("a", "b", "c"), ("abc",), ("a",), ()):
        assert sealed.get(*other) is None


def test_processes_without_a_common_secret_find_nothing_of_each_other(cache: Cache) -> None:
    ours, alone = SealedCache(cache, secret=lambda: b"ours"), SealedCache(cache)
    theirs = SealedCache(cache, secret=lambda: b"theirs")
    ours.put("a", value={"x": 1}, lifetime_s=60)
    assert (alone.get("a"), theirs.get("a")) == (None, None)
    assert SealedCache(cache, secret=lambda: b"ours").get("a") == {"x": 1}


def test_until_the_secret_is_known_a_process_finds_its_own(cache: Cache) -> None:
    known: list[bytes] = []
    sealed = SealedCache(cache, secret=lambda: known[0] if known else None)
    other = SealedCache(cache, secret=lambda: b"secret")
    other.put("a", value={"x": 1}, lifetime_s=60)
    sealed.put("a", value={"x": 2}, lifetime_s=60)
    assert sealed.get("a") == {"x": 2}
    assert other.get("a") == {"x": 1}
    known.append(b"secret")
    assert sealed.get("a") == {"x": 1}
