"""Reading what a user posts as ``request``: YAML text, ``key = value`` text, or a JSON object."""

import re
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any, Final

from polytope_server.errors import InvalidRequest
from polytope_server.language import mars_text, yaml_text
from polytope_server.language.keys import key_name
from polytope_server.language.showing import shown
from polytope_server.language.yaml_text import MAX_DEPTH, MAX_VALUES

MAX_TEXT: Final = 1 << 20
MAX_KEYS: Final = 1000
"""Of the request itself, not of what is below."""

_LARGEST: Final = 10**18
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")

Parsed = Mapping[str, Any] | str
"""A request of keys, or free text, which only some datasources read."""


def parse(value: object) -> Parsed:
    """What a user sent as ``request``: its keys, under one name each, with plain values; or free text.

    Values are text, whole numbers, true, false, null, fractions (in JSON, and in ``feature``), lists
    and mappings of these; what they mean is the business of `coercion`.

    Raises:
        InvalidRequest: it cannot be read, with line and column in a text.
    """
    if isinstance(value, Mapping):
        return _checked(value)
    if not isinstance(value, str):
        raise InvalidRequest("A request is a text, or an object of keys and values.")
    if len(value) > MAX_TEXT:
        raise InvalidRequest(f"The request has {len(value)} characters; it may have {MAX_TEXT}.")
    if match := _CONTROL.search(value):
        line = value.count("\n", 0, match.start()) + 1
        column = match.start() - value.rfind("\n", 0, match.start())
        raise InvalidRequest(
            f"The request holds a control character (line {line}, column {column})."
        )
    if mars_text.is_mars(value):
        return _checked(mars_text.read(value))
    match yaml_text.read(value):
        case dict() as request:
            return _checked(request)
        case None:
            raise InvalidRequest("The request is empty.")
        case list():
            raise InvalidRequest(
                "The request is a list; it must be keys and values, such as 'class: od'."
            )
        case str(text) if not text.strip():
            raise InvalidRequest("The request is empty.")
        case str(text):
            return text.strip()
    return value.strip()


def _checked(value: Mapping[Any, Any]) -> Mapping[str, Any]:
    """The same under the keys' one name each; bounded, printable, and of plain values only."""
    if not value:
        raise InvalidRequest("The request is empty.")
    if len(value) > MAX_KEYS:
        raise InvalidRequest(f"The request has {len(value)} keys; it may have {MAX_KEYS}.")
    budget = iter(range(MAX_VALUES))
    request: dict[str, Any] = {}
    for key, item in value.items():
        try:
            name = key_name(key)
        except ValueError as exc:
            raise InvalidRequest(f"The request cannot be read: {exc}.") from exc
        if name in request:
            other = "" if key == name else f" (as {shown(key)}, which is the same)"
            raise InvalidRequest(f"The key {name} is given more than once{other}.")
        request[name] = _plain(item, name, budget, depth=1)
    return request


def _plain(value: Any, name: str, budget: Iterator[int], *, depth: int) -> Any:
    """A copy of a value in the request's key *name*, looked through."""
    if next(budget, None) is None:
        raise InvalidRequest(f"A request has {MAX_VALUES} values at most.")
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{name}: values are nested more than {MAX_DEPTH} deep.")
    match value:
        case Mapping():
            return {
                _inner_key(key, name): _plain(item, name, budget, depth=depth + 1)
                for key, item in value.items()
            }
        case list() | tuple():
            return [_plain(item, name, budget, depth=depth + 1) for item in value]
        case str():
            return _printable(value, name)
        case bool() | None:
            return value
        case int() if abs(value) < _LARGEST:
            return value
        case float() if isfinite(value):
            return value
        case int() | float():
            raise InvalidRequest(f"{name}: a number is finite and has 18 digits at most.")
    raise InvalidRequest(
        f"{name}: a value is text, a number, true, false, null, a list or an object."
    )


def _inner_key(key: object, name: str) -> str:
    if not isinstance(key, str) or not key:
        raise InvalidRequest(f"{name}: the keys of an object are text, and not empty.")
    return _printable(key, name)


def _printable(text: str, name: str) -> str:
    if len(text) > MAX_TEXT:
        raise InvalidRequest(f"{name}: a text has {MAX_TEXT} characters at most.")
    if _CONTROL.search(text):
        raise InvalidRequest(f"{name}: a text holds a control character.")
    return text
