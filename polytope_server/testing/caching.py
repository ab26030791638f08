"""What every cache must do. Subclass `CacheContract` and give it a `cache` fixture."""

import threading
import time
from typing import Any

import pytest

from polytope_server.caching import Cache

VALUES: tuple[Any, ...] = (
    "text with ü and \u2028",
    0,
    1.5,
    False,
    [1, [2, None]],
    {"a": {"b": ["c"]}},
    {},
    "",
)


class CacheContract:
    """The contract of `polytope_server.caching.Cache`."""

    def test_it_answers(self, cache: Cache) -> None:
        cache.ping()
        assert cache.get("never put") is None

    @pytest.mark.parametrize("value", VALUES)
    def test_a_value_comes_back_as_it_was(self, cache: Cache, value: Any) -> None:
        cache.put("key", value, lifetime_s=60)
        found = cache.get("key")
        assert found == value
        assert type(found) is type(value)

    def test_a_later_value_takes_the_place_of_an_earlier_one(self, cache: Cache) -> None:
        cache.put("key", 1, lifetime_s=60)
        cache.put("key", 2, lifetime_s=60)
        assert cache.get("key") == 2

    def test_keys_are_told_apart(self, cache: Cache) -> None:
        cache.put("a" * 64, "one", lifetime_s=60)
        cache.put("a" * 63 + "b", "other", lifetime_s=60)
        assert (cache.get("a" * 64), cache.get("a" * 63 + "b")) == ("one", "other")

    def test_a_deleted_value_is_gone(self, cache: Cache) -> None:
        cache.put("key", 1, lifetime_s=60)
        cache.delete("key")
        cache.delete("key")
        assert cache.get("key") is None

    def test_a_value_is_gone_after_its_lifetime(self, cache: Cache) -> None:
        cache.put("short", 1, lifetime_s=1)
        cache.put("long", 2, lifetime_s=60)
        assert cache.get("short") == 1
        deadline = time.monotonic() + 5
        while cache.get("short") is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert cache.get("short") is None
        assert cache.get("long") == 2

    def test_a_lifetime_below_a_second_is_kept_to(self, cache: Cache) -> None:
        begin = time.monotonic()
        cache.put("short", 1, lifetime_s=0.3)
        found = cache.get("short")
        assert found == 1 or time.monotonic() - begin >= 0.3
        time.sleep(max(0.0, begin + 0.35 - time.monotonic()))
        assert cache.get("short") is None

    def test_a_value_is_there_for_most_of_its_lifetime(self, cache: Cache) -> None:
        begin = time.monotonic()
        cache.put("key", 1, lifetime_s=1.5)
        time.sleep(1.1)
        found = cache.get("key")
        assert found == 1 or time.monotonic() - begin >= 1.5

    @pytest.mark.parametrize("lifetime_s", [0, -1, 0.0])
    def test_without_a_lifetime_nothing_is_found_and_nothing_earlier(
        self, cache: Cache, lifetime_s: float
    ) -> None:
        cache.put("key", 1, lifetime_s=60)
        cache.put("key", 2, lifetime_s=lifetime_s)
        assert cache.get("key") is None

    def test_a_lifetime_of_many_years_is_one(self, cache: Cache) -> None:
        cache.put("key", 1, lifetime_s=1e10)
        assert cache.get("key") == 1

    @pytest.mark.parametrize("size", [900_000, 1 << 20, 3 << 20])
    def test_a_large_value_is_kept_or_not_and_takes_the_earlier_one_away(
        self, cache: Cache, size: int
    ) -> None:
        large = "x" * size
        cache.put("key", "earlier", lifetime_s=60)
        cache.put("key", large, lifetime_s=60)
        found = cache.get("key")
        assert found == large or (found is None and size >= 1 << 20)
        cache.put("key", "small", lifetime_s=60)
        assert cache.get("key") == "small"

    @pytest.mark.parametrize("key", ["", " ", "a b\r\nget c", "ü" * 10_000, "\x00", "\udcff", "%s"])
    def test_any_text_is_a_key(self, cache: Cache, key: str) -> None:
        cache.put(key, "mine", lifetime_s=60)
        assert cache.get(key) == "mine"
        assert cache.get(key + "x") is None
        cache.delete(key)
        assert cache.get(key) is None

    def test_whoever_alters_a_value_alters_nothing_in_the_cache(self, cache: Cache) -> None:
        value = {"roles": ["default"]}
        cache.put("key", value, lifetime_s=60)
        value["roles"].append("operator")
        found = cache.get("key")
        assert found == {"roles": ["default"]}
        found["roles"].append("operator")
        assert cache.get("key") == {"roles": ["default"]}

    def test_what_is_no_json_is_refused(self, cache: Cache) -> None:
        cache.put("key", 1, lifetime_s=60)
        for wrong in (object(), {"a": b"bytes"}, float("nan"), [float("inf")]):
            with pytest.raises((TypeError, ValueError)):
                cache.put("key", wrong, lifetime_s=60)
            assert cache.get("key") == 1

    def test_many_threads_may_use_it_at_once(self, cache: Cache) -> None:
        wrong: list[Any] = []

        def work(number: int) -> None:
            for turn in range(50):
                key = f"key{(number + turn) % 7}"
                cache.put(key, {"key": key}, lifetime_s=60)
                found = cache.get(key)
                if found not in (None, {"key": key}):
                    wrong.append(found)
                if turn % 5 == 0:
                    cache.delete(key)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
