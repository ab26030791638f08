"""From what a user wrote to the one canonical form that is matched, stored and fetched."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from polytope_server.errors import InvalidRequest
from polytope_server.language import ranges
from polytope_server.language.options import CoercionOptions
from polytope_server.language.values import COERCERS, other_value, sameness

UNSPLIT: Final = frozenset({"target", "feature"})
"""Keys whose text may hold a ``/`` that parts nothing."""
REPEATING: Final = frozenset({"grid", "area", "rotation"})
"""Keys that are sequences, where a value may come again."""

_MAX_LIST: Final = 100_000


def coerce(
    request: Mapping[str, Any], options: CoercionOptions, *, now: datetime
) -> dict[str, Any]:
    """The canonical form: text for a single value or a range, a list of texts, ``feature`` as it is.

    Coercing it again changes nothing. Dates relative to *now*, which is in UTC, become absolute.

    Raises:
        InvalidRequest: one line for each key that is wrong, with what would be right.
    """
    canonical: dict[str, Any] = {}
    faults: list[str] = []
    for key, value in request.items():
        try:
            canonical[key] = coerce_key(key, value, options, now=now)
        except ValueError as exc:
            faults.append(f"  {key}: {shown(value)}: {exc}")
    if faults:
        raise InvalidRequest("\n".join(["The request has values that are not accepted:", *faults]))
    return canonical


def coerce_key(key: str, value: Any, options: CoercionOptions, *, now: datetime) -> Any:
    """The canonical form of one key's value.

    Raises:
        ValueError: with what would be right.
    """
    if key == "feature":
        if not isinstance(value, Mapping):
            raise ValueError("a feature is an object with a type")
        return value
    if key not in COERCERS and isinstance(value, Mapping | bool | int | float):
        return value  # of a key that only the datasource knows
    if isinstance(value, str) and _is_range(key, value):
        return str(ranges.read(key, value.split("/"), options, now))
    one = COERCERS.get(key, other_value)
    parts = list(_parts(key, value, options))
    if len(parts) > _MAX_LIST:
        raise ValueError(f"a list has {_MAX_LIST} values at most")
    if not parts:
        raise ValueError("a list is not empty; leave the key out")
    items = [_item(key, one(part, options, now)) for part in parts]
    if key not in REPEATING:
        _refuse_repeated(key, items)
    return items[0] if len(items) == 1 and not isinstance(value, list) else items


def joined(canonical: Mapping[str, Any]) -> dict[str, Any]:
    """What a datasource receives: lists as one text with ``/`` between the values."""
    return {
        key: "/".join(value) if isinstance(value, list) else value
        for key, value in canonical.items()
    }


def splits(key: str, options: CoercionOptions) -> bool:
    """Whether a ``/`` in the text of this key parts a list."""
    return (
        key in COERCERS or key in options.allow_lists or key in REPEATING
    ) and key not in UNSPLIT


def words(value: Any) -> list[str]:
    """The parts of a canonical value, also of keys that are not split: rules look closer.

    Raises:
        ValueError: it is no text, number or list of them.
    """
    texts = (
        value if isinstance(value, list) else [other_value(value, CoercionOptions(), datetime.min)]
    )
    return [part.strip() for text in texts for part in text.split("/")]


def shown(value: Any) -> str:
    """A value as messages show it."""
    text = value if isinstance(value, str) else repr(value)
    text = text.replace("\n", "\\n")
    return f"'{text[:60]}...'" if len(text) > 63 else f"'{text}'"


def _is_range(key: str, value: str) -> bool:
    """Whether the text holds a range's keyword; texts of keys that are not split are just texts."""
    return (
        "/" in value
        and key not in UNSPLIT
        and key in COERCERS
        and any(part.strip().lower() in ranges.KEYWORDS for part in value.split("/"))
    )


def _parts(key: str, value: Any, options: CoercionOptions) -> Iterator[Any]:
    """Single values, lists in lists taken apart."""
    if isinstance(value, list | tuple):
        for item in value:
            if isinstance(item, str) and _is_range(key, item):
                raise ValueError("a range stands alone, not in a list")
            yield from _parts(key, item, options)
    elif isinstance(value, str) and "/" in value and splits(key, options):
        for part in value.split("/"):
            if not part.strip():
                raise ValueError("a value in the list is empty")
            yield part.strip()
    else:
        yield value


def _item(key: str, text: str) -> str:
    if len(text) > 1 << 16:
        raise ValueError("a value is too long")
    if key in COERCERS and text.lower() in ranges.KEYWORDS:
        raise ValueError(f"{text} is a word of ranges; a range is written a/to/b/by/c")
    return text


def _refuse_repeated(key: str, items: list[str]) -> None:
    seen: set[object] = set()
    repeated = []
    for item in items:
        same = sameness(key, item)
        if same in seen:
            repeated.append(item)
        seen.add(same)
    if repeated:
        raise ValueError(f"values are given more than once: {', '.join(repeated[:5])}")
