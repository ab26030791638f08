"""Names of keys: one spelling for each."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from polytope_server.language.showing import shown

MAX_LENGTH: Final = 64

ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "levtyp": "levtype",
        "leve": "levelist",
        "level": "levelist",
        "levellist": "levelist",
        "parameter": "param",
        "parameters": "param",
        "dbase": "database",
        "field": "fieldset",
    }
)
"""Other names under which FDB and MARS know a key. A rule on the key must see them too."""

FEATURE: Final = "feature"
"""Holds an object that says which shape to cut out of the data."""
PATHS: Final = frozenset({"target"})
"""Keys whose text may hold a ``/`` that parts nothing."""
REPEATING: Final = frozenset({"grid", "area", "rotation"})
"""Keys whose values mean something by their place, so that one may come again."""

_COMPLETE: Final = frozenset({"time", "param", "tile", "resol", "source"})
"""Keys whose whole names are the beginnings of others."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def key_name(key: object) -> str:
    """The one name of a key, in lower case.

    Raises:
        ValueError: it is no identifier; the text says so in full.
    """
    if not isinstance(key, str) or not _NAME.fullmatch(key) or len(key) > MAX_LENGTH:
        raise ValueError(
            f"{shown(key)} is no key: a key is made of letters, digits and _, does not begin with "
            f"a digit and has {MAX_LENGTH} characters at most"
        )
    name = key.lower()
    return ALIASES.get(name, name)


def abbreviated(key: str, *, full: frozenset[str]) -> str | None:
    """The key of *full* that this one may be short for: MARS completes names of keys."""
    if key in full or key in _COMPLETE:
        return None
    for name in sorted(full):
        others = (alias for alias, meant in ALIASES.items() if meant == name)
        if any(spelling.startswith(key) for spelling in (name, *others)):
            return name
    return None
