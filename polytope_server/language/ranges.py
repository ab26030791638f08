"""``a/to/b`` and ``a/to/b/by/c``: read, checked, and expanded within bounds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

from polytope_server.language.options import CoercionOptions
from polytope_server.language.values import COERCERS, step_seconds

MAX_EXPANSION: Final = 100_000
KEYWORDS: Final = frozenset({"to", "by"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A canonical range of one key: ends in days, hours or seconds (steps), or plain numbers.

    Without `by` nobody but the datasource knows which values are meant: it is all of them.
    """

    key: str
    first: str
    last: str
    by: str | None

    def __str__(self) -> str:
        by = "" if self.by is None else f"/by/{self.by}"
        return f"{self.first}/to/{self.last}{by}"

    def ordinals(self) -> range:
        """The values as whole numbers of `unit`; all of them if there is no `by`."""
        first, last = ordinal(self.key, self.first), ordinal(self.key, self.last)
        if self.by is None:
            every = 3600 if self.key == "step" and not (first % 3600 or last % 3600) else 1
            if self.key == "step" and every == 1 and not (first % 60 or last % 60):
                every = 60
            low, high = sorted((first, last))
            return range(low, high + 1, every)
        stride = _stride(self.key, self.by)
        return range(first, last + (1 if stride > 0 else -1), stride)


def ordinal(key: str, text: str) -> int:
    """A canonical single value as a whole number: days, hours, seconds of a step, or itself."""
    if key == "date":
        return date(int(text[:4]), int(text[4:6]), int(text[6:])).toordinal()
    if key == "time":
        return int(text) // 100
    if key == "step":
        return step_seconds(text)
    return int(text)


def read(key: str, parts: Sequence[str], options: CoercionOptions, now: datetime) -> Range:
    """A range from the parts of ``a/to/b[/by/c]``, its ends coerced.

    Raises:
        ValueError: with what would be right.
    """
    words = [part.strip() for part in parts]
    folded = [word.lower() for word in words]
    by: str | None = None
    if len(words) == 5 and folded[1] == "to" and folded[3] == "by":
        by = words[4]
    elif len(words) != 3 or folded[1] != "to":
        raise ValueError("a range is written a/to/b or a/to/b/by/c, and not inside a list")
    if key not in options.allow_ranges or key not in ("date", "time", "step", "number"):
        raise ValueError(f"{key} takes no ranges; list the values")
    coerce = COERCERS[key]
    first, last = (coerce(end, options, now) for end in (words[0], words[2]))
    if key == "step" and ("-" in first or "-" in last):
        raise ValueError("the ends of a range of steps are no periods")
    begin, end = ordinal(key, first), ordinal(key, last)
    if by is None:
        if begin > end:
            raise ValueError("a range ends after it begins; to go back give a negative 'by'")
        return Range(key=key, first=first, last=last, by=None)
    stride = _stride(key, by)
    if stride == 0:
        raise ValueError("the 'by' of a range is not 0")
    if (end - begin) * stride < 0:
        raise ValueError("the 'by' of a range leads from its first to its last value")
    return Range(key=key, first=first, last=last, by=_canonical_by(key, by))


def values(found: Range) -> Iterator[Any]:
    """What `sameness` says of each value of a range.

    Raises:
        ValueError: there are more than `MAX_EXPANSION`.
    """
    ordinals = found.ordinals()
    if len(ordinals) > MAX_EXPANSION:
        raise ValueError(f"a range has {MAX_EXPANSION} values at most")
    for number in ordinals:
        match found.key:
            case "date":
                yield f"{date.fromordinal(1) + timedelta(days=number - 1):%Y%m%d}".zfill(8)
            case "time":
                yield f"{number:02}00"
            case "step":
                yield (number,)
            case _:
                yield str(number)


def _stride(key: str, by: str) -> int:
    sign, text = (-1, by[1:]) if by.startswith("-") else (1, by)
    if key == "step":
        try:
            return sign * step_seconds(text) if text else 0
        except ValueError as exc:
            raise ValueError("the 'by' of a range of steps is such as 6 or 30m") from exc
    if not (text.isascii() and text.isdigit()) or len(text) > 8:
        raise ValueError("the 'by' of a range is a whole number")
    return sign * int(text)


def _canonical_by(key: str, by: str) -> str:
    sign, text = ("-", by[1:]) if by.startswith("-") else ("", by)
    if text.isascii() and text.isdigit():
        return f"{sign}{int(text)}"
    return f"{sign}{COERCERS[key](text, CoercionOptions(), datetime.min)}"
