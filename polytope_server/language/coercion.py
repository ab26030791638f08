"""From what a user wrote to the one canonical form that is matched, stored and fetched."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from polytope_server.errors import InvalidRequest
from polytope_server.language import ranges
from polytope_server.language.keys import FEATURE, PATHS, REPEATING
from polytope_server.language.options import CoercionOptions
from polytope_server.language.showing import shown
from polytope_server.language.values import READERS, identity, reader

_MAX_DEPTH: Final = 32
_SHOWN: Final = 5

Canonical = str | list[str] | Mapping[str, Any]
"""One value; several, none of them twice; or a structure that is handed on as it is."""


def coerce(
    request: Mapping[str, Any], options: CoercionOptions, *, now: datetime
) -> dict[str, Any]:
    """The canonical form: text for one value or a range, else a list of texts; mappings as they are.

    Coercing it again changes nothing. Dates relative to *now*, which is in UTC, become absolute.

    Args:
        request: as `text.parse` makes it.

    Raises:
        InvalidRequest: one line for each key that is wrong, with what would be right.
    """
    canonical: dict[str, Any] = {}
    faults: list[str] = []
    for key, value in request.items():
        try:
            canonical[key] = coerce_key(key, value, options, now=now)
        except ValueError as exc:
            faults.append(f"  {key}: {exc} (given: {shown(value)})")
    if faults:
        raise InvalidRequest("\n".join(["The request has values that cannot be used:", *faults]))
    return canonical


def coerce_key(key: str, value: Any, options: CoercionOptions, *, now: datetime) -> Canonical:
    """The canonical form of one key's value.

    Raises:
        ValueError: with what would be right.
    """
    if key == FEATURE:
        if not isinstance(value, Mapping):
            raise ValueError("a feature is an object with a type, such as {type: timeseries, ...}")
        return value
    if isinstance(value, Mapping) and key not in READERS:
        return value  # of a key that only the datasource knows
    if isinstance(value, str) and key not in PATHS and ranges.is_range(value):
        return str(ranges.read(key, value, options, now))
    if isinstance(value, str) and _is_one_text(key, value):
        return reader(key)(value, options, now)
    is_list = isinstance(value, list | tuple)
    items = [_item(key, part, options, now, among=is_list) for part in _parts(key, value)]
    if len(items) == 1:
        return items[0]
    if not items:
        raise ValueError("a list is not empty; leave the key out")
    if not options.takes_list(key) or key in PATHS:
        raise ValueError(f"{key} takes one value only, no list")
    if key not in REPEATING:
        _refuse_repeated(key, items)
    return items


def joined(canonical: Mapping[str, Canonical]) -> dict[str, Any]:
    """What a datasource receives: a list is one text with ``/`` between its values."""
    return {
        key: "/".join(value) if isinstance(value, list) else value
        for key, value in canonical.items()
    }


def _is_one_text(key: str, text: str) -> bool:
    """Whether the slashes in a text part nothing: it is a path, a URL or the like."""
    if key in PATHS:
        return True
    return key not in READERS and not all(part.strip() for part in text.split("/"))


def _parts(key: str, value: Any, *, depth: int = 0) -> Iterator[Any]:
    """Single values, one after the other, of lists in lists and of texts with slashes.

    Raises:
        ValueError: there is none between two slashes, or too many in all.
    """
    for count, part in enumerate(_unbounded_parts(key, value, depth=depth)):
        if count >= ranges.MAX_VALUES:
            raise ValueError(f"a list has {ranges.MAX_VALUES} values at most")
        yield part


def _unbounded_parts(key: str, value: Any, *, depth: int) -> Iterator[Any]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"lists are not nested more than {_MAX_DEPTH} deep")
    match value:
        case list() | tuple():
            for item in value:
                yield from _unbounded_parts(key, item, depth=depth + 1)
        case str() if "/" in value and key not in PATHS:
            if ranges.is_range(value):
                raise ValueError("a range a/to/b stands alone, not in a list")
            parts = value.split("/")
            if not all(part.strip() for part in parts):
                raise ValueError("a value between two slashes is empty")
            yield from parts
        case _:
            yield value


def _item(key: str, value: Any, options: CoercionOptions, now: datetime, *, among: bool) -> str:
    if isinstance(value, str) and key not in PATHS and ranges.is_keyword(value):
        raise ValueError(f"{shown(value)} is a word of ranges, which are written a/to/b/by/c")
    try:
        return reader(key)(value, options, now)
    except ValueError as exc:
        if among:
            raise ValueError(f"{shown(value)}: {exc}") from exc
        raise


def _refuse_repeated(key: str, items: list[str]) -> None:
    seen: set[object] = set()
    repeated: dict[str, None] = {}
    for item in items:
        same = identity(key, item)
        if same in seen:
            repeated[item] = None
        seen.add(same)
    if repeated:
        texts = list(repeated)
        more = ", ..." if len(texts) > _SHOWN else ""
        raise ValueError(f"given more than once: {', '.join(map(shown, texts[:_SHOWN]))}{more}")
