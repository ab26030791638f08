"""Single values of each key: their one canonical text, and what makes two of them the same.

Each reader takes a plain value and returns text, or raises `ValueError` with what would be right.
"""

import re
from collections.abc import Callable, Hashable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from math import isfinite
from types import MappingProxyType
from typing import Any, Final

from polytope_server.language.options import CoercionOptions

_DIGITS = re.compile(r"[0-9]{1,9}", re.ASCII)
_DAY = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})|([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})", re.ASCII)
_DAYS_BACK = re.compile(r"0|-[0-9]{1,7}", re.ASCII)
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{1,2})|([0-9]{2})([0-9]{2})|([0-9]{1,2})", re.ASCII)
_STEP = re.compile(
    r"(?P<plain>[0-9]{1,9})"
    r"|(?=[0-9])(?:(?P<d>[0-9]{1,9})d)?(?:(?P<h>[0-9]{1,9})h)?(?:(?P<m>[0-9]{1,9})m)?"
    r"(?:(?P<s>[0-9]{1,9})s)?",
    re.ASCII,
)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.~+:-]{0,127}", re.ASCII)
_NUMBER = re.compile(r"[-+]?[0-9]{1,12}(?:\.[0-9]{1,12})?", re.ASCII)
_EXPVER = re.compile(r"[A-Za-z0-9]{4}", re.ASCII)
_LARGEST: Final = 10**18
_LONGEST: Final = 1 << 16
_UNIT_S: Final[Mapping[str, int]] = MappingProxyType({"d": 86400, "h": 3600, "m": 60, "s": 1})

Reader = Callable[[Any, CoercionOptions, datetime], str]

DATE: Final = "a date is YYYYMMDD, YYYY-MM-DD, or 0 or less: so many days before today, such as -1"
_TIME: Final = (
    "a time is a whole hour: HH, HHMM or HH:MM with minutes 00, from 0000 to 2300; "
    "other minutes are not offered"
)
STEP: Final = (
    "a step is a number of hours such as 6, has units in the order d h m s such as 1h30m, or is a "
    "period of two such as 0-24; it is not negative, and a number has 9 digits at most"
)
_PARAM: Final = "a parameter is a short name or an id: text such as 2t or 167.128, or 167"
_EXPVER_WANTED: Final = "an experiment version is four letters or digits, such as 0001 or abcd"
_TIMESPAN: Final = "a timespan is null or text such as none, fs or 1h"
_VALUE: Final = "a value is text or a number, or a list of these"


def date_value(value: Any, _options: CoercionOptions, now: datetime) -> str:
    """``YYYYMMDD``."""
    text = _integer_or_text(value, DATE).strip()
    try:
        if _DAYS_BACK.fullmatch(text):
            return day_text(now.date() + timedelta(days=int(text)))
        if match := _DAY.fullmatch(text):
            return day_text(date(*(int(part) for part in match.groups() if part is not None)))
    except (ValueError, OverflowError):
        pass
    raise ValueError(DATE)


def time_value(value: Any, _options: CoercionOptions, _now: datetime) -> str:
    """``HHMM``; whole hours only. An integer below 24 is in hours, others are HHMM."""
    text = _integer_or_text(value, f"{_TIME}; as text or a whole number").strip()
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"it is negative; {_TIME}")
        text = text.zfill(2 if value < 24 else 4)
        if 24 <= value < 100:
            raise ValueError(_TIME)
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(_TIME)
    hour = int(match[1] or match[3] or match[5])
    minute = int(match[2] or match[4] or 0)
    if hour > 23 or minute:
        raise ValueError(_TIME)
    return f"{hour:02}00"


def step_value(value: Any, _options: CoercionOptions, _now: datetime) -> str:
    """Hours, or units in the order d h m s; or two such joined by ``-``. No needless zeros."""
    parts = _integer_or_text(value, STEP).strip("\r\n").split("-")
    if not 1 <= len(parts) <= 2:
        raise ValueError(STEP)
    canonical = [step_text(part) for part in parts]
    if len(canonical) == 2 and step_seconds(canonical[0]) > step_seconds(canonical[1]):
        raise ValueError("a step period does not end before it begins; write the smaller one first")
    return "-".join(canonical)


def step_text(text: str) -> str:
    """One step that is no period, without needless zeros.

    Raises:
        ValueError: it is none.
    """
    match = _STEP.fullmatch(text)
    if match is None:
        raise ValueError(STEP)
    if match["plain"]:
        return str(int(match["plain"]))
    return "".join(f"{int(match[unit])}{unit}" for unit in _UNIT_S if match[unit])


def step_seconds(text: str) -> int:
    """Seconds of one step that is no period; a number alone is in hours.

    Raises:
        ValueError: it is none.
    """
    match = _STEP.fullmatch(text)
    if match is None:
        raise ValueError(STEP)
    if match["plain"]:
        return int(match["plain"]) * 3600
    return sum(int(match[unit]) * seconds for unit, seconds in _UNIT_S.items() if match[unit])


def number_value(value: Any, options: CoercionOptions, _now: datetime) -> str:
    """A whole number from 1, or from 0 where that is allowed."""
    least = 0 if options.number_allow_zero else 1
    wanted = f"an ensemble number is a whole number, at least {least}, of 9 digits at most"
    text = _integer_or_text(value, f"{wanted}; as text or a number").strip("\r\n")
    if not _DIGITS.fullmatch(text) or int(text) < least:
        raise ValueError(wanted)
    return str(int(text))


def param_value(value: Any, _options: CoercionOptions, _now: datetime) -> str:
    """A short name or an id; neither is translated."""
    text = _integer_or_text(value, _PARAM).strip()
    if not _WORD.fullmatch(text):
        raise ValueError(_PARAM)
    return text


def expver_value(value: Any, _options: CoercionOptions, _now: datetime) -> str:
    """Four letters or digits; numbers are filled with zeros."""
    text = _integer_or_text(value, _EXPVER_WANTED).strip("\r\n")
    if _DIGITS.fullmatch(text):
        text = f"{int(text):04}"
    if not _EXPVER.fullmatch(text):
        raise ValueError(_EXPVER_WANTED)
    return text


def word_value(value: Any, _options: CoercionOptions, _now: datetime) -> str:
    """A word whose case is kept."""
    text = _integer_or_text(value, "a value is text or a whole number here").strip()
    if not _WORD.fullmatch(text):
        raise ValueError(
            "a value is made of letters, digits and _ . ~ + : - and begins with a letter or digit"
        )
    return text


def lower_value(value: Any, options: CoercionOptions, now: datetime) -> str:
    """A word in lower case."""
    return word_value(value, options, now).lower()


def timespan_value(value: Any, options: CoercionOptions, now: datetime) -> str:
    """A word, never a bare number; null is ``none``."""
    if value is None:
        return "none"
    if not isinstance(value, str) or _DIGITS.fullmatch(value.strip()):
        raise ValueError(_TIMESPAN)
    text = word_value(value, options, now)
    # what other servers make of null when they pass a request on
    return "none" if text.lower() == "none" else text


def level_value(value: Any, options: CoercionOptions, now: datetime) -> str:
    """A number without needless zeros, or a word."""
    if isinstance(value, bool):
        raise ValueError("a level is a number such as 1000, or text")  # noqa: TRY004
    text = other_value(value, options, now)
    if _NUMBER.fullmatch(text):
        return plain_decimal(Decimal(text))
    return word_value(value, options, now)


def other_value(value: Any, _options: CoercionOptions, _now: datetime) -> str:
    """What the language knows nothing of: the text of a simple value."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() if abs(value) < _LARGEST:
            return str(value)
        case int():
            raise ValueError("a number has 18 digits at most")
        case float() if isfinite(value):
            return repr(value).removesuffix(".0")
        case str() if 0 < len(text := value.strip()) <= _LONGEST:
            return text
        case str():
            raise ValueError(f"text is not empty and has {_LONGEST} characters at most")
        case None:
            raise ValueError("there is no value; leave the key out")
    raise ValueError(_VALUE)


READERS: Final[Mapping[str, Reader]] = MappingProxyType(
    {
        "date": date_value,
        "time": time_value,
        "step": step_value,
        "number": number_value,
        "param": param_value,
        "expver": expver_value,
        "model": lower_value,
        "experiment": lower_value,
        "activity": lower_value,
        "timespan": timespan_value,
        "levelist": level_value,
        **dict.fromkeys(
            (
                "class", "stream", "type", "levtype", "domain", "dataset", "generation",
                "realization", "resolution", "origin", "system", "method", "georef",
            ),
            word_value,
        ),
    }
)  # fmt: skip
"""Keys that the language knows."""


def reader(key: str) -> Reader:
    """What reads single values of a key."""
    return READERS.get(key, other_value)


def identity(key: str, text: str) -> Hashable:
    """Equal for two canonical values of a key exactly if they mean the same."""
    if key != "step":
        return text
    seconds = tuple(step_seconds(part) for part in text.split("-"))
    return seconds if len(seconds) > 1 else seconds[0]


def day_text(day: date) -> str:
    """``YYYYMMDD``, also in the first thousand years."""
    return day.isoformat().replace("-", "")


def decimal(text: str) -> Decimal:
    """A plain number.

    Raises:
        ValueError: it is none.
    """
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is no number")
    return Decimal(text)


def plain_decimal(number: Decimal) -> str:
    """Without needless zeros and without an exponent."""
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def _integer_or_text(value: Any, wanted: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(wanted)  # noqa: TRY004 -- the one error of all readers
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise ValueError(wanted)
    return str(value)
