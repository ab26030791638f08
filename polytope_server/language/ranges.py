"""``a/to/b`` and ``a/to/b/by/c``: read, checked, and expanded within bounds."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Final, NamedTuple

from polytope_server.language.keys import PATHS
from polytope_server.language.options import CoercionOptions
from polytope_server.language.values import (
    day_text,
    decimal,
    plain_decimal,
    reader,
    step_seconds,
    step_text,
)

MAX_VALUES: Final = 100_000
"""In one range, or in one list."""

_HOUR_S: Final = 3600
_MINUTE_S: Final = 60
_HOURS_A_DAY: Final = 24
_MAX_DIGITS: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A canonical range of one key, once checked by `read`.

    Without `by` only the datasource knows which values are meant: any, from the first to the last.
    """

    key: str
    first: str
    last: str
    by: str | None

    def __str__(self) -> str:
        return f"{self.first}/to/{self.last}" + ("" if self.by is None else f"/by/{self.by}")

    @property
    def ends(self) -> tuple[Decimal, Decimal]:
        """The smallest and the largest place on the key's scale that it can reach."""
        place = _scale(self.key).place
        low, high = sorted((place(self.first), place(self.last)))
        return low, high

    def places(self) -> Iterator[Decimal]:
        """The places of its values on the key's scale, at most `MAX_VALUES`.

        Without `by` these are all that may be meant: whole hours of steps between whole hours, else
        minutes or seconds; whole numbers for everything else.
        """
        first, stride, count = self._progression()
        return (first + number * stride for number in range(count))

    def values(self) -> Iterator[Hashable]:
        """What `values.identity` says of each of its values; see `places`."""
        return map(_scale(self.key).value, self.places())

    def holds(self, same: Hashable) -> bool:
        """Whether a value, by its identity, lies between the ends; a period of steps never does."""
        scale = _scale(self.key)
        try:
            place = scale.place(same) if isinstance(same, str) else Decimal(same)  # type: ignore[arg-type]
        except (ValueError, TypeError):
            return False
        low, high = self.ends
        return low <= place <= high

    @property
    def size(self) -> int:
        """How many values it has; see `places`."""
        return self._progression()[2]

    def _progression(self) -> tuple[Decimal, Decimal, int]:
        """Where to begin, how far to go each time, and how often to stop."""
        scale = _scale(self.key)
        low, high = self.ends
        if self.by is not None:
            first, stride = scale.place(self.first), _distance(scale, self.by)
        elif scale is _STEPS:
            units = (_HOUR_S, _MINUTE_S, 1)
            first, stride = low, Decimal(next(u for u in units if not (low % u or high % u)))
        else:
            first, stride = low, Decimal(1)
        return first, stride, int((high - low) / abs(stride)) + 1


def is_range(text: str) -> bool:
    """Whether a text holds, between slashes, one of the words that make a range."""
    return any(is_keyword(part) for part in text.split("/"))


def is_keyword(text: str) -> bool:
    """Whether archives take this for a word of a range and not for a value."""
    return text.strip().lower() in ("to", "by")


def canonical_range(key: str, value: object) -> Range | None:
    """The range that a canonical value is, if it is one."""
    if not isinstance(value, str) or key in PATHS or not is_range(value):
        return None
    first, _, rest = value.partition("/to/")
    last, _, by = rest.partition("/by/")
    return Range(key=key, first=first, last=last, by=by or None)


def read(key: str, text: str, options: CoercionOptions, now: datetime) -> Range:
    """A range as somebody writes it, with its ends and its stride in canonical form.

    Raises:
        ValueError: with what would be right.
    """
    if not options.takes_range(key):
        raise ValueError(f"{key} takes no range a/to/b here; list the values")
    words = [word.strip(" \t\r\n") for word in text.split("/")]
    match [words[0], *(word.lower() for word in words[1:2]), *words[2:]]:
        case [first, "to", last]:
            by = None
        case [first, "to", last, keyword, by] if keyword.lower() == "by":
            pass
        case _:
            raise ValueError("a range is written a/to/b or a/to/b/by/c, and stands alone")
    if not first or not last:
        raise ValueError("a range has a value before and after its 'to'")
    scale, one = _scale(key), reader(key)
    made = Range(
        key=key,
        first=scale.end(one(first, options, now)),
        last=scale.end(one(last, options, now)),
        by=None if by is None else _stride(scale, by),
    )
    _check(made)
    return made


def _check(made: Range) -> None:
    scale = _scale(made.key)
    begin, end = scale.place(made.first), scale.place(made.last)
    if made.by is None:
        if begin > end:
            raise ValueError("a range ends after it begins; to go back, give a negative 'by'")
        if scale is _NUMBERS and (begin % 1 or end % 1):
            raise ValueError("a range between fractions needs a 'by'")
    elif (end - begin) * _distance(scale, made.by) < 0:
        raise ValueError("the 'by' of a range leads from its first value to its last")
    if made.size > MAX_VALUES:
        raise ValueError(f"a range has {MAX_VALUES} values at most")


class _Scale(NamedTuple):
    """How the values of a key are counted, and how the distance between two of them is written.

    All but `value` raise `ValueError`.
    """

    end: Callable[[str], str]
    """The canonical end of a range from a canonical value."""
    place: Callable[[str], Decimal]
    """From a canonical end."""
    value: Callable[[Decimal], Hashable]
    """From a place back to what `values.identity` says of the value there."""
    stride: Callable[[str], str]
    """The canonical distance, without a sign."""
    distance: Callable[[str], Decimal]
    """From a canonical distance, without a sign."""
    meaning: str
    """What a distance is, in words."""


def _stride(scale: _Scale, text: str) -> str:
    sign, size = ("-" if text.startswith("-") else ""), text.removeprefix("-")
    try:
        canonical = sign + scale.stride(size)
        if size[0].isdigit() and _distance(scale, canonical):
            return canonical
    except ValueError:
        pass
    raise ValueError(f"the 'by' of a range is {scale.meaning}, and not 0")


def _distance(scale: _Scale, text: str) -> Decimal:
    size = scale.distance(text.removeprefix("-"))
    return -size if text.startswith("-") else size


def _same(text: str) -> str:
    return text


def _no_period(text: str) -> str:
    if "-" in text:
        raise ValueError("the ends of a range of steps are no periods")
    return text


def _numeric(text: str) -> str:
    try:
        return plain_decimal(decimal(text))
    except ValueError as exc:
        raise ValueError("a range goes from a number to a number here") from exc


def _whole(text: str) -> str:
    if not (text.isascii() and text.isdigit()) or len(text) > _MAX_DIGITS:
        raise ValueError("no whole number")
    return str(int(text))


def _hours(text: str) -> str:
    if int(_whole(text)) >= _HOURS_A_DAY:
        raise ValueError("more hours than a day has")
    return _whole(text)


def _day(text: str) -> Decimal:
    return Decimal(date(int(text[:4]), int(text[4:6]), int(text[6:])).toordinal())


def _scale(key: str) -> _Scale:
    return _SCALES.get(key, _NUMBERS)


_STEPS: Final = _Scale(
    end=_no_period,
    place=lambda text: Decimal(step_seconds(text)),
    value=lambda place: place,  # seconds, as the identity of a step
    stride=step_text,
    distance=lambda text: Decimal(step_seconds(text)),
    meaning="a number of hours or such as 30m",
)
_NUMBERS: Final = _Scale(
    end=_numeric,
    place=decimal,
    value=plain_decimal,
    stride=_numeric,
    distance=decimal,
    meaning="a number",
)
_SCALES: Final[Mapping[str, _Scale]] = MappingProxyType(
    {
        "step": _STEPS,
        "date": _Scale(
            end=_same,
            place=_day,
            value=lambda place: day_text(date.fromordinal(int(place))),
            stride=_whole,
            distance=Decimal,
            meaning="a number of days",
        ),
        "time": _Scale(
            end=_same,
            place=lambda text: Decimal(text) / 100,
            value=lambda place: f"{int(place):02}00",
            stride=_hours,
            distance=Decimal,
            meaning="a number of hours, below 24",
        ),
        "number": _Scale(
            end=_same,
            place=Decimal,
            value=plain_decimal,
            stride=_whole,
            distance=Decimal,
            meaning="a whole number",
        ),
    }
)
