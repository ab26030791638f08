"""Reading a request: YAML text, ``key=value`` text, or a JSON object, into plain values.

Scalars of YAML keep their spelling: what looks like a date, a time, an octal number or ``no`` is text,
for YAML would silently make something else of it. Only inside ``feature`` are numbers numbers.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from polytope_server.errors import InvalidRequest

MAX_TEXT: Final = 1 << 20
MAX_DEPTH: Final = 32
MAX_VALUES: Final = 200_000

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{1,3})?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_VERB = re.compile(r"\s*(retrieve|archive)\s*[,\s]\s*", re.IGNORECASE)
_PAIR = re.compile(r"""(?:[^,"']|"[^"]*"|'[^']*'|["'])+""")
_BOOLEANS: Final = {"true": True, "false": False}
_NULLS: Final = frozenset({"", "~", "null"})

Parsed = Mapping[str, Any] | str
"""A request of keys, or free text, which only some datasources read."""


def parse(value: object) -> Parsed:
    """What a user sent as ``request``: keys in lower case, plain values; or a free text.

    Raises:
        InvalidRequest: it cannot be read; names the place.
    """
    if isinstance(value, Mapping):
        return _checked(value)
    if not isinstance(value, str):
        raise InvalidRequest("The request must be a text or an object.")
    if len(value) > MAX_TEXT:
        raise InvalidRequest(f"The request is longer than {MAX_TEXT} characters.")
    if _CONTROL.search(value):
        raise InvalidRequest("The request holds characters that cannot be printed.")
    if not value.strip():
        raise InvalidRequest("The request is empty.")
    read = _from_yaml(value)
    match read:
        case Mapping():
            return _checked(read)
        case None:
            raise InvalidRequest("The request is empty.")
        case list():
            raise InvalidRequest(
                "The request is a list; it must be keys and values, such as 'class: od'."
            )
        case str() if "=" in read:
            return _checked(_from_pairs(value))
    return value.strip()


def _checked(value: Mapping[Any, Any]) -> Mapping[str, Any]:
    """The same with folded keys; bounded, printable, and with plain values only."""
    if not value:
        raise InvalidRequest("The request is empty.")
    budget = iter(range(MAX_VALUES))
    request: dict[str, Any] = {}
    for key, item in value.items():
        name = _key(key)
        if name in request:
            raise InvalidRequest(f"The key {name} is given more than once.")
        request[name] = _plain(item, budget, depth=1)
    return request


def _key(key: object) -> str:
    if not isinstance(key, str) or not _KEY.fullmatch(key) or len(key) > 64:
        raise InvalidRequest(
            f"{_shown(key)} is no key: a key is made of letters, digits and _ and begins with no digit."
        )
    return key.lower()


def _plain(value: Any, budget: Iterator[int], *, depth: int) -> Any:
    if next(budget, None) is None:
        raise InvalidRequest(f"The request has more than {MAX_VALUES} values.")
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"The request is nested more than {MAX_DEPTH} deep.")
    match value:
        case Mapping():
            for key in value:
                if not isinstance(key, str) or _CONTROL.search(key):
                    raise InvalidRequest(f"{_shown(key)} is no key.")
            return {key: _plain(item, budget, depth=depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, budget, depth=depth + 1) for item in value]
        case str():
            if _CONTROL.search(value):
                raise InvalidRequest("The request holds characters that cannot be printed.")
            return value
        case bool() | None:
            return value
        case int():
            if abs(value) > 10**18:
                raise InvalidRequest("The request holds a number with more than 18 digits.")
            return value
        case float():
            if value != value or value in (float("inf"), float("-inf")):
                raise InvalidRequest("The request holds a number that is not finite.")
            return value
    raise InvalidRequest(f"The request holds a {type(value).__name__}, which is no plain value.")


# --- key=value


def _from_pairs(text: str) -> Mapping[str, Any]:
    """``retrieve, class = od, step = 0/6`` or the same without the verb."""
    verb = _VERB.match(text)
    request: dict[str, Any] = {}
    for pair in _PAIR.findall(text[verb.end() :] if verb else text):
        key, equals, item = (part.strip() for part in pair.partition("="))
        if not key and not equals:
            continue  # a comma at the end of a line
        if not equals or '"' in key or "'" in key:
            raise InvalidRequest(
                f"The request cannot be read at {_shown(pair.strip())}: it must be 'key = value' pairs "
                "with commas between them, or YAML."
            )
        name = _key(key)
        if len(item) > 1 and item[0] == item[-1] and item[0] in "'\"":
            item = item[1:-1]
        if not item or "=" in item or '"' in item or "'" in item:
            raise InvalidRequest(f"The value {_shown(item)} of the key {name} is not accepted.")
        if name in request:
            raise InvalidRequest(f"The key {name} is given more than once.")
        request[name] = item
    return request


# --- YAML


def _from_yaml(text: str) -> Any:
    try:
        return _Builder(yaml.parse(text, Loader=yaml.SafeLoader)).document()
    except yaml.MarkedYAMLError as exc:
        place = _place(exc.problem_mark)
        raise InvalidRequest(f"The request is not valid YAML{place}: {exc.problem}.") from exc
    except (yaml.YAMLError, ValueError) as exc:
        raise InvalidRequest("The request is not valid YAML.") from exc
    except RecursionError as exc:
        raise InvalidRequest(f"The request is nested more than {MAX_DEPTH} deep.") from exc


class _Builder:
    """Values from YAML events, so that nothing is built before it has been looked at."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._events = iter(events)
        self._values = 0

    def document(self) -> Any:
        value: Any = None
        documents = 0
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    _refuse(event, "there is more than one document")
                value = self._value(next(self._events), typed=False, depth=1)
        return value

    def _value(self, event: Event, *, typed: bool, depth: int) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            _refuse(event, f"there are more than {MAX_VALUES} values")
        if depth > MAX_DEPTH:
            _refuse(event, f"it is nested more than {MAX_DEPTH} deep")
        if isinstance(event, AliasEvent):
            _refuse(event, "aliases are not accepted")
        if getattr(event, "anchor", None) is not None:
            _refuse(event, "anchors are not accepted")
        if isinstance(event, ScalarEvent):
            if event.tag not in (None, "!"):
                _refuse(event, f"the tag {_shown(event.tag)} is not accepted")
            return _scalar(event, typed=typed)
        if isinstance(event, CollectionStartEvent) and event.tag is not None:
            _refuse(event, f"the tag {_shown(event.tag)} is not accepted")
        if isinstance(event, SequenceStartEvent):
            return self._list(typed=typed, depth=depth)
        if isinstance(event, MappingStartEvent):
            return self._mapping(typed=typed, depth=depth)
        return _refuse(event, "this is not understood")

    def _list(self, *, typed: bool, depth: int) -> list[Any]:
        items = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            items.append(self._value(event, typed=typed, depth=depth + 1))
        return items

    def _mapping(self, *, typed: bool, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            if not isinstance(event, ScalarEvent) or event.tag not in (None, "!"):
                _refuse(event, "a key must be a text")
            if event.anchor is not None:
                _refuse(event, "anchors are not accepted")
            key = event.value
            numbers = typed or (depth == 1 and key.lower() == "feature")
            value = self._value(next(self._events), typed=numbers, depth=depth + 1)
            if key == "<<" and event.implicit[0]:
                if not isinstance(value, Mapping):
                    _refuse(event, "what follows << must be keys and values")
                merged = {**value, **merged}
            elif key in mapping:
                _refuse(event, f"the key {_shown(key)} is given more than once")
            else:
                mapping[key] = value
        return {**merged, **mapping}


def _scalar(event: ScalarEvent, *, typed: bool) -> Any:
    text: str = event.value
    if not event.implicit[0]:
        return text  # it was quoted, or a block
    if text.lower() in _NULLS:
        return None
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    if typed and _FLOAT.fullmatch(text):
        return float(text)
    return text


def _refuse(event: Event, why: str) -> NoReturn:
    raise InvalidRequest(f"The request cannot be read{_place(event.start_mark)}: {why}.")


def _place(mark: Any) -> str:
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
