"""Distinguished names of directories, as RFC 4514 writes them."""

import re
from collections.abc import Iterator
from typing import Final

_ASSERTION: Final = re.compile(
    r"""
    [ ]* (?P<type> [A-Za-z][A-Za-z0-9-]* | \d+ (?:\.\d+)* ) [ ]* = [ ]*
    (?P<value> (?: \\[0-9A-Fa-f]{2} | \\[^0-9A-Fa-f] | [^\\,;+"<>\x00] )* )
    (?P<end> [,;+] | $ )
    """,
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_PIECE: Final = re.compile(r"\\([0-9A-Fa-f]{2})|\\(.)|([^\\]+)", re.DOTALL)

Rdn = tuple[tuple[str, str], ...]
"""One level of a name: attribute types in lower case, and their values."""


def parsed(dn: str) -> tuple[Rdn, ...]:
    """The levels of a name, the entry's own first; none for an empty name.

    Raises:
        ValueError: that is no distinguished name; the text does not hold it.
    """
    if not dn.strip():
        return ()
    levels: list[Rdn] = []
    level: list[tuple[str, str]] = []
    for kind, value, end in _assertions(dn):
        level.append((kind.lower(), value))
        if end != "+":
            levels.append(tuple(level))
            level = []
    return tuple(levels)


def own_common_name(dn: str) -> str | None:
    """The CN of the entry itself; None if it is called by something else.

    Raises:
        ValueError: see `parsed`.
    """
    levels = parsed(dn)
    return next((value for kind, value in levels[0] if kind == "cn"), None) if levels else None


def _assertions(dn: str) -> Iterator[tuple[str, str, str]]:
    place = 0
    while True:
        match = _ASSERTION.match(dn, place)
        if match is None:
            raise ValueError(f"not a distinguished name from character {place + 1} on")
        yield match["type"], _plain(match["value"]), match["end"]
        if not match["end"]:
            return
        place = match.end()


def _plain(written: str) -> str:
    """The value without its escapes. One in hexadecimal, ``#04...``, is left as it is written."""
    data = bytearray()
    for pair, character, text in _PIECE.findall(_without_trailing_blanks(written)):
        data += bytes.fromhex(pair) if pair else (character or text).encode()
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("a distinguished name with a value that is no UTF-8") from None


def _without_trailing_blanks(written: str) -> str:
    """Blanks at the end do not belong to the value, unless they are escaped."""
    bare = written.rstrip(" ")
    slashes = len(bare) - len(bare.rstrip("\\"))
    return bare + " " if slashes % 2 else bare
