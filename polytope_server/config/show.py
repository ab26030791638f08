"""The effective configuration for people: every value with its origin, and no secret."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Final

from polytope_server.config.loading import Loaded
from polytope_server.config.realms import AUTH_O_TRON
from polytope_server.config.secrecy import HIDDEN, looks_secret, masked
from polytope_server.config.tree import Node

_UNQUOTED: Final = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./-]+)*", re.ASCII)
_NOT_TEXT: Final = re.compile(r"true|false|null|yes|no|on|off|[yn]|[0-9._xe-]+", re.IGNORECASE)
_SECTIONS: Final = frozenset({"api-keys", AUTH_O_TRON})
"""Sound like secrets, and are sections, whose models say what is one."""
_INDENT: Final = "  "


def show(loaded: Loaded) -> Iterator[str]:
    """Lines of YAML, each value followed by a comment that says where it comes from.

    Hidden is what a model takes for a secret, what was read with ``!file``, everything under a key
    whose name sounds like one, and keys that nobody knows; user-info in URLs is masked. Datasources
    are shown where they are used, in collections, with all they inherit.
    """
    for key, node in loaded.tree.children.items():
        if key == "datasources":
            continue
        yield from _entry(_quoted(key), node, indent="", hidden=_is_secret(key))


def _is_secret(key: str) -> bool:
    return key not in _SECTIONS and looks_secret(key)


def _entry(label: str, node: Node, *, indent: str, hidden: bool) -> Iterator[str]:
    hidden = hidden or node.is_hidden
    match node.value:
        case Mapping() as items if items:
            yield f"{indent}{label}:"
            yield from _mapping(items, indent=indent + _INDENT, hidden=hidden)
        case tuple() as items if items:
            yield f"{indent}{label}:"
            yield from _list(items, indent=indent + _INDENT, hidden=hidden)
        case _:
            yield f"{indent}{label}: {_leaf(node, hidden=hidden)}"


def _mapping(items: Mapping[str, Node], *, indent: str, hidden: bool) -> Iterator[str]:
    for key, node in items.items():
        yield from _entry(_quoted(key), node, indent=indent, hidden=hidden or _is_secret(key))


def _list(items: tuple[Node, ...], *, indent: str, hidden: bool) -> Iterator[str]:
    for item in items:
        is_hidden = hidden or item.is_hidden
        deeper = indent + _INDENT
        match item.value:
            case Mapping() as below if below:
                lines = _mapping(below, indent=deeper, hidden=is_hidden)
            case tuple() as below if below:
                lines = _list(below, indent=deeper, hidden=is_hidden)
            case _:
                lines = iter([f"{deeper}{_leaf(item, hidden=is_hidden)}"])
        first = next(lines)
        yield f"{indent}- {first.removeprefix(deeper)}"
        yield from lines


def _leaf(node: Node, *, hidden: bool) -> str:
    match node.value:
        case _ if hidden and node.value not in (None, (), {}):
            text = json.dumps(HIDDEN)
        case Mapping():
            text = "{}"
        case tuple():
            text = "[]"
        case str() as value:
            text = _quoted(masked(value))
        case value:
            text = json.dumps(value)
    return f"{text}  # {_one_line(str(node.source))}"


def _quoted(text: str) -> str:
    if _UNQUOTED.fullmatch(text) and not _NOT_TEXT.fullmatch(text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)
