"""What operators write about the requests of one datasource: rules, defaults and patches."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from polytope_server.errors import ConfigurationError
from polytope_server.language import rules
from polytope_server.language.coercion import coerce_key, joined
from polytope_server.language.keys import PATHS, key_name
from polytope_server.language.options import CoercionOptions
from polytope_server.language.showing import shown

Report = Callable[[str, str, str], None]
"""Told of each fault: the part, such as ``match``; the key, as it was written; and a text."""

_SAFE: Final = re.compile(r"[A-Za-z0-9_.~+:*@%()/ -]+", re.ASCII)
"""Of texts that go into a MARS request, where nothing else may begin a new key or value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Under the keys' one name each, as in requests; what is wrong is left out.

    Defaults and patches are as they were written, for dates in them may be relative.
    """

    rules: Sequence[rules.Rule]
    defaults: Mapping[str, Any]
    patch: Mapping[str, Any]


def read_written(
    *,
    match: Mapping[str, Any],
    defaults: Mapping[str, Any],
    patch: Mapping[str, Any],
    options: CoercionOptions,
    now: datetime,
    takes_objects: bool | None,
    report: Report,
) -> Written:
    """What stands in the three parts of a datasource, each fault reported.

    Args:
        takes_objects: whether the datasource is given values that are no text; None if it reads the user's
            own text, or nothing is known of it, so that nobody can say what would be handed to it.
    """
    found = []
    for name, (key, value) in _named("match", match, report).items():
        try:
            found.append(rules.read(name, value, options, now=now, where=""))
        except ConfigurationError as exc:
            report("match", key, str(exc).removeprefix(": "))
    kept = {
        part: dict(_good(part, written, options, now, takes_objects, report))
        for part, written in (("defaults", defaults), ("patch", patch))
    }
    return Written(rules=tuple(found), **kept)


def _named(part: str, written: Mapping[str, Any], report: Report) -> Mapping[str, tuple[str, Any]]:
    """By the keys' one name each: the key as it was written, and its value."""
    named: dict[str, tuple[str, Any]] = {}
    for key, value in written.items():
        try:
            name = key_name(key)
        except ValueError as exc:
            report(part, key, str(exc))
            continue
        if name in named:
            report(part, key, f"{name} is given more than once")
        named[name] = (key, value)
    return named


def _good(
    part: str,
    written: Mapping[str, Any],
    options: CoercionOptions,
    now: datetime,
    takes_objects: bool | None,
    report: Report,
) -> Iterator[tuple[str, Any]]:
    for name, (key, value) in _named(part, written, report).items():
        if value is not None or part == "defaults":
            try:
                final = joined(
                    {name: coerce_key(name, value, options.for_operators(name), now=now)}
                )
            except ValueError as exc:
                report(part, key, f"{shown(value)}: {exc}")
                continue
            if takes_objects is not None:
                for _, reason in unfit(final, takes_objects=takes_objects):
                    report(part, key, reason)
        yield name, value


def unfit(final: Mapping[str, Any], *, takes_objects: bool) -> Iterator[tuple[str, str]]:
    """Keys of a request, and why their values cannot be handed on: they could mean something else there."""
    for key, value in final.items():
        if isinstance(value, str):
            if reason := _unsafe(key, value):
                yield key, reason
        elif not takes_objects:
            yield key, "an object is not allowed"


def _unsafe(key: str, text: str) -> str | None:
    """Why a text could be taken for more than the value of its key."""
    if not _SAFE.fullmatch(text):
        return f"{shown(text)} holds characters other than letters, digits, blanks and _.~+:*@%()/-"
    if key not in PATHS and not all(part.strip() for part in text.split("/")):
        return f"{shown(text)} holds an empty value between slashes"
    return None
