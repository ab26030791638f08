"""Which fields a request names: the product of its keys' values, with all ranges written out.

An FDB silently leaves out what it does not hold, so somebody has to know what was asked for. What
is expanded here is what FDB is given, so that the two cannot differ. Pure functions.
"""

import datetime as dt
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from polytope_server.errors import DatasourceFailed

IGNORED: Final = frozenset(
    {"target", "expect", "source", "use", "database", "dbase", "optimise", "duplicates", "padding"}
)
"""Keys of a MARS request that say nothing about fields."""

PROCESSING: Final = frozenset(
    {
        "accuracy",
        "area",
        "bitmap",
        "field",
        "fieldset",
        "filter",
        "format",
        "frame",
        "gaussian",
        "grid",
        "interpolation",
        "intgrid",
        "packing",
        "process",
        "resol",
        "rotation",
        "truncation",
    }
)
"""Keys that ask for something other than the fields as they are stored."""

_AS_STORED = frozenset({"av", "archived"})
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}", re.ASCII)
_VALUE = re.compile(r"[A-Za-z0-9_.:+-]{1,64}", re.ASCII)
_RANGE = re.compile(r"([^/]+)/to/([^/]+?)(?:/by/([^/]+))?", re.IGNORECASE)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d{1,18}(?:\.\d{1,9})?", re.ASCII)
_DIGITS = re.compile(r"\d{1,18}", re.ASCII)
_DAY_S = 86400
_HOUR_S = 3600
_MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one request: every combination of one value for each key.

    `values` holds the values as FDB is given them, no two of a key the same.
    """

    values: Mapping[str, Sequence[str]]

    def __len__(self) -> int:
        return math.prod(len(values) for values in self.values.values())

    def selection(self) -> dict[str, list[str]]:
        """For FDB's own calls."""
        return {key: list(values) for key, values in self.values.items()}

    def only(self, key: str, values: Sequence[str]) -> "Fields":
        """The part of these fields that has one of some values for a key."""
        return Fields(MappingProxyType({**self.values, key: values}))

    def each(self, key: str) -> Iterator["Fields"]:
        """One part for each value of a key; these fields themselves if they do not have it."""
        if key not in self.values:
            yield self
        for value in self.values.get(key, ()):
            yield self.only(key, (value,))

    def halves(self) -> tuple["Fields", "Fields"]:
        """Two parts of about the same size, cut where there are most values; needs two fields or more."""
        key = max(self.values, key=lambda name: len(self.values[name]))
        values = self.values[key]
        middle = len(values) // 2
        return self.only(key, values[:middle]), self.only(key, values[middle:])

    def first(self, *, keys: Sequence[str]) -> str:
        """The first of these fields in words, by some of its keys."""
        return ", ".join(f"{key} {self.values[key][0]}" for key in keys)

    def varying(self) -> Sequence[str]:
        """The keys that tell these fields apart; all keys if there is but one field."""
        return [key for key, values in self.values.items() if len(values) > 1] or list(self.values)


def fields_of(request: Mapping[str, Any], *, max_fields: int) -> Fields:
    """The fields that a request in canonical form names.

    A range without ``by`` goes in the archive's own strides: 12 hours for step, 6 hours for time, a day
    for date, 1 for anything else.

    Raises:
        DatasourceFailed: they are not fields as they are stored, are more than `max_fields`, or a
            value has no meaning.
    """
    values: dict[str, Sequence[str]] = {}
    total = 1
    for key, value in request.items():
        if key in IGNORED:
            continue
        _check(key, value)
        if key in PROCESSING:
            continue
        values[key] = _expanded(key, str(value), limit=max_fields)
        total *= len(values[key])
        if total > max_fields:
            raise DatasourceFailed(_too_many(max_fields))
    if not values:
        raise DatasourceFailed("The request names no key of a field, such as class, date or param.")
    return Fields(MappingProxyType(values))


def canonical(key: str, value: str) -> str:
    """One spelling for all that mean the same; a value that makes no sense stands for itself."""
    known = _CANONICAL.get(key)
    try:
        return known(value) if known else value.lower()
    except ValueError:
        return value.lower()


def _check(key: str, value: Any) -> None:
    if not _NAME.fullmatch(key):
        raise DatasourceFailed(f"{key[:64]!r} is not a key of fields.")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DatasourceFailed(f"{key} must be a value or a list of values.")
    if key in PROCESSING and str(value).lower() not in _AS_STORED:
        raise DatasourceFailed(
            f"This archive hands out fields as they are stored; leave out {key}, for which it would "
            "have to change them."
        )


def _too_many(limit: int) -> str:
    return f"The request names more than {limit} fields; ask for less in each request."


def _expanded(key: str, text: str, *, limit: int) -> Sequence[str]:
    span = _RANGE.fullmatch(text)
    if span:
        return _steps(key, _Span(span[1].strip(), span[2].strip(), span[3]), limit=limit)
    parts = [part.strip() for part in text.split("/")]
    if len(parts) > limit:
        raise DatasourceFailed(_too_many(limit))
    for part in parts:
        if not _VALUE.fullmatch(part):
            raise DatasourceFailed(f"{key} has a value that no field has: {part[:64]!r}.")
        if part.lower() in ("all", "to", "by"):
            raise DatasourceFailed(
                f"{key} must be a value, a list such as a/b/c, or a range such as a/to/b/by/c; "
                f"this archive does not know what {part!r} means there."
            )
    return _unlike(key, parts)


def _unlike(key: str, values: Sequence[str]) -> Sequence[str]:
    first: dict[str, str] = {}
    for value in values:
        first.setdefault(canonical(key, value), value)
    return tuple(first.values())


class _Span(NamedTuple):
    first: str
    last: str
    by: str | None


def _steps(key: str, span: _Span, *, limit: int) -> Sequence[str]:
    scale = _SCALES.get(key, _PLAIN)
    try:
        first, last = scale.read(span.first), scale.read(span.last)
        by = scale.read_by(span.by) if span.by else scale.by
    except ValueError as exc:
        raise DatasourceFailed(
            f"{key} has a range with an end or a stride that is not {scale.meaning}."
        ) from exc
    if by == 0 or (last - first) * by < 0:
        raise DatasourceFailed(
            f"{key} has a range whose stride does not lead from its start to its end."
        )
    if (last - first) / by >= limit:
        raise DatasourceFailed(_too_many(limit))
    return [scale.write(first + n * by) for n in range(int((last - first) / by) + 1)]


def _duration_s(text: str) -> int:
    """Seconds of ``6``, ``30m`` or ``1h30m``; a number alone means hours."""
    if _DIGITS.fullmatch(text):
        return int(text) * _HOUR_S
    match = _DURATION.fullmatch(text.lower())
    if not match or not text:
        raise ValueError(text)
    units = (_DAY_S, _HOUR_S, _MINUTE_S, 1)
    return sum(int(n) * unit for n, unit in zip(match.groups(), units, strict=True) if n)


def _stride_s(text: str) -> int:
    sign = -1 if text.startswith("-") else 1
    return sign * _duration_s(text.removeprefix("-"))


def _step(seconds: Decimal) -> str:
    whole = int(seconds)
    for unit_s, suffix in ((_HOUR_S, ""), (_MINUTE_S, "m")):
        if whole % unit_s == 0:
            return f"{whole // unit_s}{suffix}"
    return f"{whole}s"


def _minutes(text: str) -> int:
    """Minutes since midnight of ``6``, ``06``, ``0600``, ``06:00`` or ``06:00:00``."""
    digits = text.replace(":", "", 2)
    if not re.fullmatch(r"\d{1,2}|\d{4}|\d{6}", digits, re.ASCII):
        raise ValueError(text)
    padded = digits.zfill(2).ljust(6, "0")
    hours, minutes, seconds = int(padded[:2]), int(padded[2:4]), int(padded[4:])
    if hours > 23 or minutes > 59 or seconds:
        raise ValueError(text)
    return hours * 60 + minutes


def _time_stride(text: str) -> Decimal:
    if re.fullmatch(r"-?\d{4}", text, re.ASCII):
        sign = -1 if text.startswith("-") else 1
        return Decimal(sign * _minutes(text.removeprefix("-")))
    return Decimal(_stride_s(text)) / _MINUTE_S


def _day(text: str) -> int:
    if not re.fullmatch(r"\d{8}|\d{4}-\d{2}-\d{2}", text, re.ASCII):
        raise ValueError(text)
    return dt.date.fromisoformat(text).toordinal()


def _date(day: Decimal) -> str:
    return f"{dt.date.fromordinal(int(day)):%Y%m%d}"


def _days_stride(text: str) -> Decimal:
    if not _INTEGER.fullmatch(text):
        raise ValueError(text)
    return Decimal(text)


def _number(text: str) -> Decimal:
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return Decimal(text)


def _number_text(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class _Scale(NamedTuple):
    """How the values of a key are counted. `by` is the stride of a range that gives none."""

    meaning: str
    read: Callable[[str], Decimal]
    read_by: Callable[[str], Decimal]
    write: Callable[[Decimal], str]
    by: Decimal


_PLAIN: Final = _Scale("a number", _number, _number, _number_text, Decimal(1))
_SCALES: Final[Mapping[str, _Scale]] = MappingProxyType(
    {
        "step": _Scale(
            "a step such as 6 or 30m",
            lambda text: Decimal(_duration_s(text)),
            lambda text: Decimal(_stride_s(text)),
            _step,
            Decimal(12 * _HOUR_S),
        ),
        "time": _Scale(
            "a time such as 0600, by a number of hours",
            lambda text: Decimal(_minutes(text)),
            _time_stride,
            lambda minutes: f"{int(minutes) // 60:02d}{int(minutes) % 60:02d}",
            Decimal(6 * 60),
        ),
        "date": _Scale(
            "a date such as 20250131, by a number of days",
            lambda text: Decimal(_day(text)),
            _days_stride,
            _date,
            Decimal(1),
        ),
    }
)


def _canonical_step(text: str) -> str:
    return "-".join(_step(Decimal(_duration_s(part))) for part in text.split("-"))


def _canonical_param(text: str) -> str:
    match = re.fullmatch(r"(\d{1,9})(?:\.(\d{1,6}))?", text, re.ASCII)
    if not match:
        return text.lower()
    param, table = int(match[1]), int(match[2] or 0)
    # parameters of table 128 have no prefix; 21.162 is 162021
    return str(param if table in (0, 128) else table * 1000 + param)


_CANONICAL: Final[Mapping[str, Callable[[str], str]]] = MappingProxyType(
    {
        "step": _canonical_step,
        "time": lambda text: f"{_minutes(text) // 60:02d}{_minutes(text) % 60:02d}",
        "date": lambda text: _date(Decimal(_day(text))),
        "param": _canonical_param,
        "number": lambda text: _number_text(_number(text)),
        "levelist": lambda text: _number_text(_number(text)),
        "expver": lambda text: text.zfill(4),
    }
)
