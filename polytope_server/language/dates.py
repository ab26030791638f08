"""Rules on dates: relative to today, or days and periods."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

from polytope_server.errors import ConfigurationError
from polytope_server.language import ranges
from polytope_server.language.options import CoercionOptions

_OFFSET = re.compile(r"([<>])\s*(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?", re.ASCII)
_RELATIVE = re.compile(r"0|-0*\d{1,6}", re.ASCII)
_DAY = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})", re.ASCII)
_WANTED: Final = (
    "must be > or < and a duration such as >30d or <12h; or a date, a list a/b/c or a period a/to/b of "
    "YYYYMMDD, YYYY-MM-DD, 0 or days before today such as -5"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """``>30d``: the start of the day lies so far back, or further; ``<``: not so far."""

    text: str
    older: bool
    back: timedelta

    def refusal(self, day: date, now: datetime) -> str | None:
        begin = datetime(day.year, day.month, day.day, tzinfo=now.tzinfo)
        try:
            limit = now - self.back
        except OverflowError:
            return f"the rule {self.text} lies before all dates"
        if self.older and begin > limit:
            return f"{day:%Y%m%d} is too recent; the latest is {_latest(limit):%Y%m%d}"
        if not self.older and begin <= limit:
            return f"{day:%Y%m%d} is too old; it must be after {limit:%Y%m%d}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """From a day to a day, both included; numbers are days relative to today."""

    first: date | int
    last: date | int

    def days(self, today: date) -> range:
        ends = sorted(_ordinal(end, today) for end in (self.first, self.last))
        return range(ends[0], ends[1] + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DateRule:
    """All offsets must hold; or each day must lie in one of the periods."""

    offsets: Sequence[Offset] = ()
    periods: Sequence[Period] = ()

    def refusal(self, value: Any, now: datetime) -> str | None:
        """Why a canonical date, list or range is not allowed; None if it is."""
        try:
            requested = sorted(_requested(value))
        except ValueError as exc:
            return f"date: {exc}"
        if not requested:
            return "date: there is none"
        for offset in self.offsets:
            for day in (requested[-1], requested[0]):
                if reason := offset.refusal(date.fromordinal(day), now):
                    return f"date: {reason}"
        if self.offsets:
            return None
        allowed = [period.days(now.date()) for period in self.periods]
        for day in requested:
            if not any(day in days for days in allowed):
                return f"date: {date.fromordinal(day):%Y%m%d} is not among the dates offered"
        return None


def read(value: Any, *, where: str) -> DateRule:
    """From the configuration.

    Raises:
        ConfigurationError: it is no rule on dates, or mixes both styles.
    """
    items = list(value) if isinstance(value, list | tuple) else [value]
    offsets: list[Offset] = []
    periods: list[Period] = []
    for item in items:
        if isinstance(item, datetime | bool) or not isinstance(item, str | int | date):
            raise ConfigurationError(f"{where}: {_WANTED}")
        text = (f"{item:%Y%m%d}" if isinstance(item, date) else str(item)).strip()
        if text[:1] in ("<", ">"):
            offsets.append(_offset(text, where=where))
        else:
            periods.extend(_periods(text, where=where))
    if bool(offsets) == bool(periods):
        raise ConfigurationError(f"{where}: {_WANTED}; not both kinds in one rule")
    return DateRule(offsets=tuple(offsets), periods=tuple(periods))


def _offset(text: str, *, where: str) -> Offset:
    match = _OFFSET.fullmatch(text)
    if not match or not any(match.groups()[1:]):
        raise ConfigurationError(f"{where}: {text!r} {_WANTED}")
    days, hours, minutes = (int(number or 0) for number in match.groups()[1:])
    return Offset(
        text=text,
        older=match[1] == ">",
        back=timedelta(days=days, hours=hours, minutes=minutes),
    )


def _periods(text: str, *, where: str) -> list[Period]:
    words = [word.strip() for word in text.split("/")]
    if len(words) == 3 and words[1].lower() == "to":
        return [Period(first=_end(words[0], where=where), last=_end(words[2], where=where))]
    return [Period(first=end, last=end) for end in (_end(word, where=where) for word in words)]


def _end(word: str, *, where: str) -> date | int:
    if _RELATIVE.fullmatch(word):
        return int(word)
    if match := _DAY.fullmatch(word):
        try:
            return date(int(match[1]), int(match[2]), int(match[3]))
        except ValueError as exc:
            raise ConfigurationError(f"{where}: {word!r} is no day of the calendar") from exc
    raise ConfigurationError(f"{where}: {word!r} {_WANTED}")


def _requested(value: Any) -> set[int]:
    """Day numbers of a canonical date, list or range."""
    if isinstance(value, str) and "/to/" in value:
        found = ranges.read("date", value.split("/"), CoercionOptions(), datetime.min)
        days = found.ordinals()
        if len(days) > ranges.MAX_EXPANSION:
            raise ValueError(f"a range has {ranges.MAX_EXPANSION} values at most")
        return set(days)
    texts = value if isinstance(value, list) else str(value).split("/")
    return {ranges.ordinal("date", str(text)) for text in texts}


def _ordinal(end: date | int, today: date) -> int:
    return end.toordinal() if isinstance(end, date) else max(1, today.toordinal() + end)


def _latest(limit: datetime) -> date:
    """The last day that begins at or before *limit*."""
    return limit.date()
