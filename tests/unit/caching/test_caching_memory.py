"""The cache in the process: the contract, its bound and its clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytope_server.caching import Cache
from polytope_server.caching.memory import MemoryCache
from polytope_server.config.caching import MemoryCacheSection
from polytope_server.errors import ConfigurationError
from polytope_server.registry import open_backend
from polytope_server.testing.caching import CacheContract


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def small(entries: int, clock: Clock) -> MemoryCache:
    return MemoryCache(MemoryCacheSection(max_entries=entries), clock=clock)


class TestMemory(CacheContract):
    @pytest.fixture
    def cache(self) -> Cache:
        cache: Cache = open_backend("caching", "memory", {})
        return cache


def test_what_was_not_read_for_longest_is_forgotten_first() -> None:
    cache = small(2, Clock())
    cache.put("a", 1, lifetime_s=60)
    cache.put("b", 2, lifetime_s=60)
    assert cache.get("a") == 1
    cache.put("c", 3, lifetime_s=60)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]


def test_a_value_ends_exactly_with_its_lifetime() -> None:
    clock = Clock()
    cache = small(2, clock)
    cache.put("a", 1, lifetime_s=10)
    clock.now += 9.999
    assert cache.get("a") == 1
    clock.now += 0.001
    assert cache.get("a") is None


def test_reading_does_not_make_a_value_live_longer() -> None:
    clock = Clock()
    cache = small(2, clock)
    cache.put("a", 1, lifetime_s=10)
    for _ in range(4):
        clock.now += 2.4
        assert cache.get("a") == 1
    clock.now += 2.4
    assert cache.get("a") is None


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers()), max_size=60))
def test_it_never_holds_more_than_its_bound_and_never_a_wrong_value(
    steps: list[tuple[str, int]],
) -> None:
    cache = small(3, Clock())
    last: dict[str, int] = {}
    for key, value in steps:
        cache.put(key, value, lifetime_s=60)
        last[key] = value
    held = {key: found for key in "abcdefgh" if (found := cache.get(key)) is not None}
    assert len(held) <= 3
    assert held.items() <= last.items()
    assert not steps or steps[-1][0] in held


@pytest.mark.parametrize("wrong", [0, -1, "many"])
def test_a_bound_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match=r"caching\.memory\.max_entries"):
        open_backend("caching", "memory", {"max_entries": wrong})
