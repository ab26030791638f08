"""Rules that a request must meet to be taken by a datasource; what is not surely allowed is refused."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from polytope_server.errors import ConfigurationError
from polytope_server.language import dates
from polytope_server.language.coercion import coerce_key
from polytope_server.language.keys import FEATURE
from polytope_server.language.options import CoercionOptions
from polytope_server.language.ranges import Range, canonical_range
from polytope_server.language.showing import shown
from polytope_server.language.values import identity

_SHOWN: Final = 20


class Rule(Protocol):
    """What one key must be like."""

    @property
    def key(self) -> str: ...

    def refusal(self, request: Mapping[str, Any], now: datetime) -> str | None:
        """Why a canonical request is not allowed; None if it is. *now* is in UTC."""


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
    key: str = "date"

    def refusal(self, request: Mapping[str, Any], now: datetime) -> str | None:
        if self.key not in request:
            return f"the key {self.key} is missing"
        return self.rule.refusal(request[self.key], now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Among:
    """Every value must be one of some, or lie between the ends, included, of a range without stride.

    `same` holds what `values.identity` says of each; `texts` are how operators wrote them.
    """

    key: str
    texts: Sequence[str]
    same: frozenset[Hashable]
    spans: Sequence[Range] = ()

    def refusal(self, request: Mapping[str, Any], now: datetime) -> str | None:  # noqa: ARG002
        if self.key not in request:
            return f"the key {self.key} is missing"
        value = request[self.key]
        if isinstance(value, Mapping):
            return f"{self.key}: an object is not allowed"
        for text in value if isinstance(value, list) else [value]:
            refused = self._refused(text)
            if refused is not None:
                return f"{self.key}: {refused} is not allowed; allowed are {self._allowed()}"
        return None

    def _refused(self, text: str) -> str | None:
        """The first value in a canonical text that is not allowed, in words."""
        requested = canonical_range(self.key, text)
        if requested is None:
            return None if self._allows(text) else shown(text)
        if any(_lies_in(requested, span) for span in self.spans):
            return None
        for same in requested.values():
            if same not in self.same and not self._spans_hold(same):
                return f"a value of {shown(text)}"
        return None

    def _allows(self, text: str) -> bool:
        same = identity(self.key, text)
        return same in self.same or self._spans_hold(same)

    def _spans_hold(self, same: Hashable) -> bool:
        return any(span.holds(same) for span in self.spans)

    def _allowed(self) -> str:
        more = ", ..." if len(self.texts) > _SHOWN else ""
        return ", ".join(self.texts[:_SHOWN]) + more


def _lies_in(inner: Range, outer: Range) -> bool:
    (low, high), (least, most) = inner.ends, outer.ends
    return least <= low and high <= most


def read(key: str, value: Any, options: CoercionOptions, *, now: datetime, where: str) -> Rule:
    """A rule from the configuration.

    Raises:
        ConfigurationError: its value is none that a request could have.
    """
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        return Absent(key=key)
    if None in items:
        raise ConfigurationError(
            f"{where}: null is no rule where none is inherited: leave the key out if it does not "
            "matter, or write [] if requests must not have it"
        )
    if key == "date":
        return Dates(rule=dates.read(value, where=where))
    if key == FEATURE:
        raise ConfigurationError(
            f"{where}: the only rule on features is [], for the type of the datasource says whether "
            "it takes them"
        )
    texts: list[str] = []
    same: set[Hashable] = set()
    spans: list[Range] = []
    for item in items:
        try:
            canonical = coerce_key(key, item, options.for_operators(key), now=now)
        except ValueError as exc:
            raise ConfigurationError(f"{where}: {shown(item)}: {exc}") from exc
        if isinstance(canonical, Mapping):
            raise ConfigurationError(f"{where}: must be a value or a list of values, not a mapping")
        for text in canonical if isinstance(canonical, list) else [canonical]:
            texts.append(text)
            span = canonical_range(key, text)
            if span is None:
                same.add(identity(key, text))
            elif span.by is None:
                spans.append(span)
            else:
                same.update(span.values())
    return Among(key=key, texts=tuple(texts), same=frozenset(same), spans=tuple(spans))
