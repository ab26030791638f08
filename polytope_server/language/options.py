"""What operators choose about coercion."""

from dataclasses import dataclass
from typing import Final

RANGES: Final = frozenset({"number", "step", "date", "time"})
LISTS: Final = frozenset(
    {"class", "stream", "type", "expver", "param", "number", "date", "step", "time"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoercionOptions:
    """``coercion`` of the configuration.

    Keys outside `allow_ranges` take no ``a/to/b``. Keys in `allow_lists` are split at ``/`` and may not
    repeat a value, as those are that the language knows anyway; texts of others keep their ``/``.
    """

    allow_ranges: frozenset[str] = RANGES
    allow_lists: frozenset[str] = LISTS
    number_allow_zero: bool = False
