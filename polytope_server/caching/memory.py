"""A cache in the process: bounded, with lifetimes, the least recently read forgotten first."""

import json
import time
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

from polytope_server.config.caching import MemoryCacheSection


class MemoryCache:
    """See `polytope_server.caching.Cache`. Values are kept as JSON text, so nobody can alter one."""

    Config = MemoryCacheSection

    def __init__(
        self, config: MemoryCacheSection, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_entries = config.max_entries
        self._clock = clock
        self._lock = Lock()
        self._entries: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def ping(self) -> None:
        """A part of this process always answers."""

    def get(self, key: str) -> Any | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            ends_at, text = entry
            if self._clock() >= ends_at:
                del self._entries[key]
                return None
            self._entries.move_to_end(key)
        return json.loads(text)

    def put(self, key: str, value: Any, *, lifetime_s: float) -> None:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        with self._lock:
            self._entries[key] = (self._clock() + lifetime_s, text)
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)

    def delete(self, key: str) -> None:
        with self._lock:
            self._entries.pop(key, None)
