"""Single values of each key: their one canonical text, and what makes two of them the same.

Each function takes a plain value and returns text, or raises `ValueError` with what would be right.
"""

import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final

from polytope_server.language.options import CoercionOptions

_DIGITS = re.compile(r"[0-9]+", re.ASCII)
_RELATIVE = re.compile(r"-?[0-9]{1,9}", re.ASCII)
_ISO = re.compile(r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})", re.ASCII)
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{1,2})", re.ASCII)
_STEP = re.compile(
    r"(?:(?P<d>\d+)d)?(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+)s)?|(?P<plain>\d+)", re.ASCII
)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.~+:-]*", re.ASCII)
_NUMERIC = re.compile(r"[-+]?[0-9]{1,12}(\.[0-9]{1,12})?", re.ASCII)
_EXPVER = re.compile(r"[A-Za-z0-9]{4}", re.ASCII)
_MAX_DAYS_BACK: Final = 400_000
_MAX_DIGITS: Final = 8
_MAX_WORD: Final = 128
_UNIT_S: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}

Coerce = Callable[[Any, CoercionOptions, datetime], str]


def date_value(value: Any, _options: CoercionOptions, now: datetime) -> str:
    """``YYYYMMDD``."""
    text = _integer_or_text(value, "YYYYMMDD, YYYY-MM-DD, or days before today such as -1")
    try:
        if iso := _ISO.fullmatch(text):
            return f"{date(int(iso[1]), int(iso[2]), int(iso[3])):%Y%m%d}".zfill(8)
        if _RELATIVE.fullmatch(text):
            number = int(text)
            if number > 0 and len(text) == 8:
                found = date(number // 10000, number // 100 % 100, number % 100)
                return f"{found:%Y%m%d}".zfill(8)
            if -_MAX_DAYS_BACK <= number <= 0:
                return f"{now.date() + timedelta(days=number):%Y%m%d}".zfill(8)
    except (ValueError, OverflowError):
        pass
    raise ValueError("a date is YYYYMMDD, YYYY-MM-DD, or days before today such as -1")


def time_value(value: Any, _options: CoercionOptions, _now: datetime) -> str:
    """``HHMM``; whole hours only."""
    wanted = "a time is a whole hour: HH, HHMM or HH:MM with minutes 00, from 00 to 23"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{wanted}, as a whole number or text")  # noqa: TRY004
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"a time is not negative; {wanted}")
        hour, minute = (value, 0) if value < 24 else divmod(value, 100)
        if 24 <= value < 100:
            raise ValueError(wanted)
    else:
        text = value.strip()
        if clock := _CLOCK.fullmatch(text):
            hour, minute = int(clock[1]), int(clock[2])
        elif _DIGITS.fullmatch(text) and len(text) in (1, 2, 4):
            hour, minute = (int(text), 0) if len(text) < 4 else divmod(int(text), 100)
        else:
            raise ValueError(wanted)
    if hour > 23 or minute != 0:
        raise ValueError(wanted)
    return f"{hour:02}00"


def step_value(value: Any, _options: CoercionOptions, _now: datetime) -> str:
    """Hours, or units in the order d h m s; or two such joined by ``-``."""
    _integer_or_text(value, "a step such as 6, 30m or 0-24")
    if isinstance(value, int) and value < 0:
        raise ValueError("a step is not negative")
    text = str(value).rstrip("\r\n")
    parts = text.split("-")
    if len(parts) > 2:
        raise ValueError("a step is such as 6, 1h30m or 0-24")
    canonical = [_one_step(part) for part in parts]
    if len(canonical) == 2 and step_seconds(canonical[0]) > step_seconds(canonical[1]):
        raise ValueError("a step period ends after it begins")
    return "-".join(canonical)


def _one_step(text: str) -> str:
    match = _STEP.fullmatch(text)
    if not text or not match or any(len(n) > _MAX_DIGITS for n in match.groups() if n):
        raise ValueError("a step is such as 6, 1h30m or 0-24; units are d, h, m, s in this order")
    if match["plain"]:
        return str(int(match["plain"]))
    return "".join(f"{int(match[unit])}{unit}" for unit in _UNIT_S if match[unit])


def step_seconds(step: str) -> int:
    """Seconds of one canonical step that is no period."""
    match = _STEP.fullmatch(step)
    if match is None:
        raise ValueError("no step")
    if match["plain"]:
        return int(match["plain"]) * 3600
    return sum(int(match[unit]) * seconds for unit, seconds in _UNIT_S.items() if match[unit])


def number_value(value: Any, options: CoercionOptions, _now: datetime) -> str:
    """A whole number from 1, or from 0 where that is allowed."""
    least = 0 if options.number_allow_zero else 1
    wanted = f"an ensemble number is a whole number, at least {least}"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{wanted}, as number or text")  # noqa: TRY004
    text = str(value)
    if not _DIGITS.fullmatch(text) or len(text) > _MAX_DIGITS or int(text) < least:
        raise ValueError(wanted)
    return str(int(text))


def param_value(value: Any, _options: CoercionOptions, _now: datetime) -> str:
    """A short name or an id; neither is translated."""
    text = _integer_or_text(value, "a parameter such as 2t, 167 or 167.128")
    if (isinstance(value, int) and value < 1) or not _is_word(text):
        raise ValueError("a parameter is a short name or an id, such as 2t, 167 or 167.128")
    return text


def expver_value(value: Any, _options: CoercionOptions, _now: datetime) -> str:
    """Four letters or digits."""
    text = _integer_or_text(value, "an experiment version such as 0001 or abcd")
    if _DIGITS.fullmatch(text) and len(text) <= _MAX_DIGITS and int(text) <= 9999:
        return f"{int(text):04}"
    if _DIGITS.fullmatch(text) or not _EXPVER.fullmatch(text):
        raise ValueError("an experiment version is four letters or digits, such as 0001 or abcd")
    return text


def lower_value(value: Any, _options: CoercionOptions, _now: datetime) -> str:
    """A word in lower case."""
    return word_value(value, _options, _now).lower()


def timespan_value(value: Any, options: CoercionOptions, now: datetime) -> str:
    """A word; null is ``none``."""
    return "none" if value is None else word_value(value, options, now)


def word_value(value: Any, _options: CoercionOptions, _now: datetime) -> str:
    """A word whose case is kept."""
    text = _integer_or_text(value, "a word or a whole number")
    if not _is_word(text):
        raise ValueError("a value is made of letters, digits and _ . ~ + : -")
    return text


def level_value(value: Any, options: CoercionOptions, now: datetime) -> str:
    """A number without needless zeros, or a word."""
    if isinstance(value, float):
        value = repr(value)
    text = _integer_or_text(value, "a level such as 1000")
    if _NUMERIC.fullmatch(text):
        number = Decimal(text).normalize()
        return f"{number:f}" if number else "0"
    return word_value(value, options, now)


def other_value(value: Any, _options: CoercionOptions, _now: datetime) -> str:
    """What the language knows nothing of: the text of a simple value."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() if value.strip():
            return value.strip()
        case str():
            raise ValueError("a value is not empty")
        case None:
            raise ValueError("there is no value; leave the key out")
    raise ValueError("a value is a text or a number, or a list of them")


COERCERS: Final[Mapping[str, Coerce]] = MappingProxyType(
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
                "realization", "resolution", "origin", "system", "method", "quantile", "georef",
            ),
            word_value,
        ),
    }
)  # fmt: skip
"""Keys that the language knows."""


def sameness(key: str, text: str) -> object:
    """What is equal for two canonical values of a key if and only if they mean the same."""
    if key == "step":
        return tuple(step_seconds(part) for part in text.split("-"))
    return text


def _integer_or_text(value: Any, wanted: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{wanted} is wanted, as a whole number or text")  # noqa: TRY004
    return str(value).strip()


def _is_word(text: str) -> bool:
    return bool(_WORD.fullmatch(text)) and len(text) <= _MAX_WORD
