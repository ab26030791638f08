"""What operators choose about coercion."""

from dataclasses import dataclass, replace
from typing import Final, Self

RANGES: Final = frozenset({"number", "step", "date", "time"})
LISTS: Final = frozenset(
    {"class", "stream", "type", "expver", "param", "number", "date", "step", "time"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoercionOptions:
    """``coercion`` of the configuration.

    Of the nine keys in `LISTS`, those outside `allow_lists` take a single value only, in whatever way
    a list is written; and none of them takes a range unless it is in `allow_ranges`. All other keys
    take lists and ranges of numbers, as archives do.
    """

    allow_ranges: frozenset[str] = RANGES
    allow_lists: frozenset[str] = LISTS
    number_allow_zero: bool = False

    def for_operators(self, *keys: str) -> Self:
        """The same for what operators write: whether users may give lists and ranges is no question there."""
        return replace(
            self,
            allow_ranges=self.allow_ranges | set(keys),
            allow_lists=self.allow_lists | set(keys),
        )

    def takes_list(self, key: str) -> bool:
        return key in self.allow_lists or key not in LISTS

    def takes_range(self, key: str) -> bool:
        return key in self.allow_ranges or key not in LISTS
