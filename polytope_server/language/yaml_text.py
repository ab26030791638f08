"""YAML as requests are written in: values from events, each looked at before anything is built of it.

Scalars keep their spelling: what looks like a date, a time, an octal number, a fraction or ``no`` is
text, for YAML 1.1 would silently make something else of it. Only whole decimal numbers, null, true and
false are what they look like, and inside ``feature`` fractions too. Aliases and tags are refused.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from polytope_server.errors import InvalidRequest
from polytope_server.language.keys import FEATURE
from polytope_server.language.showing import shown

MAX_DEPTH: Final = 32
MAX_VALUES: Final = 200_000

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII)
_NUMBER = re.compile(
    r"[-+]?(?:(?:0|[1-9][0-9]{0,30})(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,3})?",
    re.ASCII,
)
_TRUTH: Final = {"true": True, "false": False}
_NULLS: Final = frozenset({"", "~", "null"})
_MERGE: Final = "<<"

# The same events, some twenty times faster, where PyYAML was built with libyaml.
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(text: str) -> Any:
    """The value of a text that is one YAML document; None if it holds nothing.

    Raises:
        InvalidRequest: names line and column.
    """
    try:
        return _Builder(yaml.parse(text, Loader=_LOADER)).document()
    except yaml.MarkedYAMLError as exc:
        place = _place(exc.problem_mark or exc.context_mark)
        problem = exc.problem or "this is not understood"
        raise InvalidRequest(f"The request is not valid YAML{place}: {problem}.") from exc
    except (yaml.YAMLError, ValueError, OverflowError) as exc:
        # PyYAML lets the latter two through for escapes out of range
        raise InvalidRequest("The request is not valid YAML.") from exc


def integer(text: str) -> int | None:
    """The whole number that a text is, if it is written in the one plain way."""
    return int(text) if _INTEGER.fullmatch(text) else None


class _Builder:
    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._values = 0

    def document(self) -> Any:
        value: Any = None
        documents = 0
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    _refuse(event, "a request is one document, and here begins a second one")
                value = self._value(next(self._events), in_feature=False, depth=0)
        return value

    def _value(self, event: Event, *, in_feature: bool, depth: int) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            _refuse(event, f"a request has {MAX_VALUES} values at most")
        if depth > MAX_DEPTH:
            _refuse(event, f"values are nested more than {MAX_DEPTH} deep")
        _refuse_aliases(event)
        match event:
            case ScalarEvent():
                _refuse_tag(event)
                return _scalar(event, in_feature=in_feature)
            case SequenceStartEvent():
                _refuse_tag(event)
                return self._list(in_feature=in_feature, depth=depth)
            case MappingStartEvent():
                _refuse_tag(event)
                return self._mapping(in_feature=in_feature, depth=depth, is_request=depth == 0)
        return _refuse(event, "this is not understood")

    def _list(self, *, in_feature: bool, depth: int) -> list[Any]:
        items = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            items.append(self._value(event, in_feature=in_feature, depth=depth + 1))
        return items

    def _mapping(self, *, in_feature: bool, depth: int, is_request: bool) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                _refuse(event, "a key is text")
            _refuse_aliases(event)
            _refuse_tag(event)
            key = str(event.value)
            if key == _MERGE and event.implicit[0]:
                below = self._merged(in_feature=in_feature, depth=depth, is_request=is_request)
                merged = {**below, **merged}
                continue
            if key in mapping:
                _refuse(event, f"the key {shown(key)} is given more than once")
            inside = in_feature or (is_request and key.lower() == FEATURE)
            mapping[key] = self._value(next(self._events), in_feature=inside, depth=depth + 1)
        return {**merged, **mapping}

    def _merged(self, *, in_feature: bool, depth: int, is_request: bool) -> Mapping[str, Any]:
        """What follows ``<<``: a mapping whose keys count unless they are given beside it."""
        event = next(self._events)
        if not isinstance(event, MappingStartEvent) or depth >= MAX_DEPTH:
            _refuse(event, "<< is followed by a mapping")
        _refuse_aliases(event)
        _refuse_tag(event)
        return self._mapping(in_feature=in_feature, depth=depth + 1, is_request=is_request)


def _scalar(event: ScalarEvent, *, in_feature: bool) -> Any:
    text = str(event.value)
    if not event.implicit[0]:
        return text  # between quotes, or a block
    folded = text.lower()
    if folded in _NULLS:
        return None
    if folded in _TRUTH:
        return _TRUTH[folded]
    if (whole := integer(text)) is not None:
        return whole
    return float(text) if in_feature and _NUMBER.fullmatch(text) else text


def _refuse_aliases(event: Event) -> None:
    if isinstance(event, AliasEvent):
        _refuse(event, "aliases (*) are not accepted; write the value out, or put quotes around it")
    if getattr(event, "anchor", None) is not None:
        _refuse(event, "anchors (&) are not accepted; leave it out, or put quotes around the value")


def _refuse_tag(event: ScalarEvent | SequenceStartEvent | MappingStartEvent) -> None:
    # a lone ! only says that it is no number
    if event.tag not in (None, "!"):
        _refuse(event, f"the tag {shown(event.tag)} is not accepted")


def _refuse(event: Event, why: str) -> NoReturn:
    raise InvalidRequest(f"The request cannot be read{_place(event.start_mark)}: {why}.")


def _place(mark: Any) -> str:
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
