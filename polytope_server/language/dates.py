"""Rules on dates: relative to now, or days and periods."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

from polytope_server.errors import ConfigurationError
from polytope_server.language.ranges import canonical_range
from polytope_server.language.showing import shown
from polytope_server.language.values import day_text

_OFFSET = re.compile(
    r"([<>])\s*(?=[0-9])(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?", re.ASCII
)
_RELATIVE = re.compile(r"0|-[0-9]{1,6}", re.ASCII)
_DAY = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})|([0-9]{4})-([0-9]{2})-([0-9]{2})", re.ASCII)
_MINUTES_A_DAY: Final = 24 * 60
_MINUTES_AN_HOUR: Final = 60
_SHOWN: Final = 5

_WANTED: Final = (
    "must be > or < with a duration in d, h and m, such as >30d or <1d12h; or a date, a list a/b/c or "
    "a period a/to/b of YYYYMMDD, YYYY-MM-DD, 0 (today) or days before today such as -5"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """``>30d``: the start of the day lies so far back, or further; ``<``: not so far."""

    text: str
    is_older: bool
    back_min: int

    def refusal(self, day: int, now: datetime) -> str | None:
        """Why a day, given by its ordinal, is not allowed; None if it is."""
        # whole minutes since the year 0: no date is too early for this
        minutes = now.toordinal() * _MINUTES_A_DAY + now.hour * _MINUTES_AN_HOUR + now.minute
        latest = (minutes - self.back_min) // _MINUTES_A_DAY
        if self.is_older and day > latest:
            return f"{_text(day)} is too recent; the latest is {_text(latest)}"
        if not self.is_older and day <= latest:
            return f"{_text(day)} is too old; the earliest is {_text(latest + 1)}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """From a day to a day in either order, both included; numbers are days relative to today."""

    first: date | int
    last: date | int

    def days(self, today: date) -> range:
        """Ordinals."""
        low, high = sorted(_ordinal(end, today) for end in (self.first, self.last))
        return range(low, high + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DateRule:
    """All offsets must hold for all days; or each day must lie in one of the periods."""

    offsets: Sequence[Offset] = ()
    periods: Sequence[Period] = ()

    def refusal(self, value: Any, now: datetime) -> str | None:
        """Why a canonical date, list or range is not allowed; None if it is. *now* is in UTC."""
        if isinstance(value, str):
            days = list(_requested([value]))
        elif isinstance(value, list) and value:
            days = list(_requested(value))
        else:
            return "date: a date or a list of dates is wanted"
        if self.offsets:
            ends = (max(days), min(days))
            reasons = (offset.refusal(day, now) for offset in self.offsets for day in ends)
            return next((f"date: {reason}" for reason in reasons if reason), None)
        allowed = [period.days(now.date()) for period in self.periods]
        for day in days:
            if not any(day in period for period in allowed):
                offered = ", ".join(f"{_text(p[0])} to {_text(p[-1])}" for p in allowed[:_SHOWN])
                more = ", ..." if len(allowed) > _SHOWN else ""
                return f"date: {_text(day)} is not offered; dates are {offered}{more}"
        return None


def read(value: Any, *, where: str) -> DateRule:
    """From the configuration.

    Raises:
        ConfigurationError: it is no rule on dates, or mixes both kinds.
    """
    offsets: list[Offset] = []
    periods: list[Period] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        text = _rule_text(item, where=where)
        if text.startswith(("<", ">")):
            offsets.append(_offset(text, where=where))
        else:
            periods.extend(_periods(text, where=where))
    if bool(offsets) == bool(periods):
        raise ConfigurationError(
            f"{where}: {_WANTED}; a rule is of one kind: both stand here, or none"
        )
    return DateRule(offsets=tuple(offsets), periods=tuple(periods))


def _rule_text(item: Any, *, where: str) -> str:
    if isinstance(item, date):
        return day_text(item.date() if isinstance(item, datetime) else item)
    if isinstance(item, bool) or not isinstance(item, str | int):
        raise ConfigurationError(f"{where}: {shown(item)} {_WANTED}")
    return str(item).strip()


def _offset(text: str, *, where: str) -> Offset:
    match = _OFFSET.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{where}: {shown(text)} {_WANTED}")
    days, hours, minutes = (int(number or 0) for number in match.groups()[1:])
    return Offset(
        text=text,
        is_older=match[1] == ">",
        back_min=days * _MINUTES_A_DAY + hours * _MINUTES_AN_HOUR + minutes,
    )


def _periods(text: str, *, where: str) -> Iterator[Period]:
    words = [word.strip() for word in text.split("/")]
    if len(words) == 3 and words[1].lower() == "to":
        yield Period(first=_end(words[0], where=where), last=_end(words[2], where=where))
        return
    for word in words:
        end = _end(word, where=where)
        yield Period(first=end, last=end)


def _end(word: str, *, where: str) -> date | int:
    if _RELATIVE.fullmatch(word):
        return int(word)
    if match := _DAY.fullmatch(word):
        try:
            return date(*(int(part) for part in match.groups() if part is not None))
        except ValueError as exc:
            raise ConfigurationError(f"{where}: {shown(word)} is no day of the calendar") from exc
    raise ConfigurationError(f"{where}: {shown(word)} {_WANTED}")


def _requested(texts: Sequence[str]) -> Iterator[int]:
    """Ordinals of the days that canonical dates name."""
    for text in texts:
        found = canonical_range("date", text)
        if found is None:
            yield date.fromisoformat(text).toordinal()
        else:
            yield from map(int, found.places())


def _ordinal(end: date | int, today: date) -> int:
    """Below 1 if it lies before all dates."""
    return end.toordinal() if isinstance(end, date) else today.toordinal() + end


def _text(ordinal: int) -> str:
    """A day in words; the first or last of the calendar for what lies outside."""
    return day_text(date.fromordinal(min(max(ordinal, 1), date.max.toordinal())))
