"""Rules that a request must meet to be taken by a datasource; what is not surely allowed is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from polytope_server.errors import ConfigurationError
from polytope_server.language import dates, ranges
from polytope_server.language.coercion import coerce_key, words
from polytope_server.language.options import CoercionOptions
from polytope_server.language.values import sameness

_SHOWN: Final = 20
_ORDERED: Final = frozenset({"step", "number", "time"})


class Rule(Protocol):
    """What one key must be like."""

    def refusal(self, request: Mapping[str, Any], now: datetime) -> str | None:
        """Why a canonical request is not allowed; None if it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """The key must not be there."""

    key: str

    def refusal(self, request: Mapping[str, Any], now: datetime) -> str | None:  # noqa: ARG002
        return f"the key {self.key} is not allowed" if self.key in request else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dates:
    """The dates must be as a rule on dates says."""

    rule: dates.DateRule

    def refusal(self, request: Mapping[str, Any], now: datetime) -> str | None:
        if "date" not in request:
            return "the key date is missing"
        return self.rule.refusal(request["date"], now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Among:
    """Every requested value must be one of these, or lie in one of these intervals.

    `same` holds what `values.sameness` says of each value; intervals are of ordinals, ends included.
    """

    key: str
    texts: Sequence[str]
    same: frozenset[object]
    intervals: Sequence[tuple[int, int]] = ()

    def refusal(self, request: Mapping[str, Any], now: datetime) -> str | None:  # noqa: ARG002
        if self.key not in request:
            return f"the key {self.key} is missing"
        try:
            allowed = self._allows(request[self.key])
        except ValueError as exc:
            return f"{self.key}: {exc}"
        if allowed:
            return None
        texts = ", ".join(self.texts[:_SHOWN]) + (", ..." if len(self.texts) > _SHOWN else "")
        return f"{self.key}: a value is not allowed; it must be one of {texts}"

    def _allows(self, value: Any) -> bool:
        if isinstance(value, Mapping):
            return False
        if isinstance(value, str) and self.key in _ORDERED and "/to/" in value:
            found = ranges.read(self.key, value.split("/"), _ANYTHING, datetime.min)
            ordinals = found.ordinals()
            if any(low <= min(ordinals) and max(ordinals) <= high for low, high in self.intervals):
                return True
            return all(self._allows_one(each) for each in ranges.values(found))
        found_words = words(value)
        return bool(found_words) and all(
            self._allows_one(sameness(self.key, word)) for word in found_words
        )

    def _allows_one(self, same: object) -> bool:
        if same in self.same:
            return True
        if not self.intervals:
            return False
        match same:
            case (int(number),):
                points = [number]
            case (int(first), int(last)):
                points = [first, last]
            case str(text):
                points = [ranges.ordinal(self.key, text)]
            case _:
                return False
        return any(all(low <= point <= high for point in points) for low, high in self.intervals)


_ANYTHING: Final = CoercionOptions(number_allow_zero=True)


def read(key: str, value: Any, options: CoercionOptions, *, where: str) -> Rule:
    """A rule from the configuration.

    Raises:
        ConfigurationError: its value is none that a request could have.
    """
    if isinstance(value, list | tuple) and not value:
        return Absent(key=key)
    if value is None or (isinstance(value, list | tuple) and None in value):
        raise ConfigurationError(
            f"{where}: null is no rule; leave the key out, or write [] if it must be absent"
        )
    if key == "date":
        return Dates(rule=dates.read(value, where=where))
    if key == "feature":
        raise ConfigurationError(
            f"{where}: the type of the datasource says whether it takes features"
        )
    texts: list[str] = []
    same: set[object] = set()
    intervals: list[tuple[int, int]] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        try:
            canonical = coerce_key(key, item, options, now=datetime.now(UTC))
            if isinstance(canonical, str) and key in _ORDERED and "/to/" in canonical:
                found = ranges.read(key, canonical.split("/"), options, datetime.min)
                texts.append(canonical)
                if found.by is None:
                    intervals.append(
                        (ranges.ordinal(key, found.first), ranges.ordinal(key, found.last))
                    )
                else:
                    same.update(ranges.values(found))
                continue
            found_words = words(canonical)
        except ValueError as exc:
            raise ConfigurationError(f"{where}: {item!r}: {exc}") from exc
        texts.extend(found_words)
        same.update(sameness(key, word) for word in found_words)
    return Among(key=key, texts=tuple(texts), same=frozenset(same), intervals=tuple(intervals))
