"""Requests as MARS users write them: ``retrieve, class = od, step = 0/to/24/by/6``.

Commas part the keys, slashes their values; blanks and line ends mean nothing; quotes, single or double,
keep a text together; ``#`` begins a comment, up to the end of the line.
"""

import re
from typing import Final, NoReturn

from polytope_server.errors import InvalidRequest
from polytope_server.language.keys import key_name
from polytope_server.language.showing import shown
from polytope_server.language.yaml_text import integer

# possessive, so that a long comment costs no more than its length
_BLANK = r"(?:\s++|#[^\n]*+)*+"
_GAP = re.compile(_BLANK)
_BEGINNING = re.compile(
    rf"{_BLANK}(?:retrieve{_BLANK},|[A-Za-z_]\w*{_BLANK}=)", re.IGNORECASE | re.ASCII
)
_VERB = re.compile(rf"retrieve{_BLANK},", re.IGNORECASE | re.ASCII)
_KEY = re.compile(r"[^\s,=/\"'#]+")
_BARE = re.compile(r"[^\s,=/\"'#][^,=/\"'#\r\n]*")
_QUOTED = re.compile(r"\"([^\"\r\n]*)\"|'([^'\r\n]*)'")

_EXAMPLE: Final = "such as 'class = od, param = 2t/msl'"


def is_mars(text: str) -> bool:
    """Whether a text begins as a request of this kind does, and no YAML mapping can."""
    return _BEGINNING.match(text) is not None


def read(text: str) -> dict[str, str | int]:
    """The keys, under their one name each, and the text or number of each value.

    Raises:
        InvalidRequest: names line and column.
    """
    return _Reader(text).request()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def request(self) -> dict[str, str | int]:
        request: dict[str, str | int] = {}
        self._skip_blanks()
        if verb := _VERB.match(self._text, self._position):
            self._position = verb.end()
            self._skip_blanks()
        while not self._at_end():
            begin = self._position
            name = self._key()
            if name in request:
                self._refuse(f"the key {name} is given more than once", at=begin)
            request[name] = self._value(name)
            if not self._at_end():
                self._take(",", "a comma before the next key")
        return request

    def _key(self) -> str:
        match = _KEY.match(self._text, self._position)
        if match is None:
            self._refuse(f"a key is wanted here, {_EXAMPLE}")
        try:
            name = key_name(match[0])
        except ValueError as exc:
            self._refuse(str(exc))
        self._position = match.end()
        self._skip_blanks()
        self._take("=", f"= after the key {name}")
        return name

    def _value(self, name: str) -> str | int:
        begin = self._position
        items = [self._item(name)]
        while self._text.startswith("/", self._position):
            self._take("/", "/")
            items.append(self._item(name))
        if len(items) > 1 and any("/" in item for item, _ in items):
            self._refuse("a text with / between quotes cannot be part of a list", at=begin)
        text, is_quoted = items[0]
        if len(items) == 1 and not is_quoted:
            number = integer(text)
            return text if number is None else number
        return "/".join(item for item, _ in items)

    def _item(self, name: str) -> tuple[str, bool]:
        """A text, and whether it stood between quotes."""
        if quoted := _QUOTED.match(self._text, self._position):
            self._position = quoted.end()
            self._skip_blanks()
            return quoted[1] if quoted[1] is not None else quoted[2], True
        bare = _BARE.match(self._text, self._position)
        if bare is None:
            self._refuse(
                f"a value of the key {name} is wanted here, between quotes if it is a path"
            )
        self._position = bare.end()
        self._skip_blanks()
        return bare[0].strip(), False

    def _take(self, character: str, meaning: str) -> None:
        if not self._text.startswith(character, self._position):
            self._refuse(f"{meaning} is wanted here")
        self._position += 1
        self._skip_blanks()

    def _skip_blanks(self) -> None:
        match = _GAP.match(self._text, self._position)
        if match is not None:
            self._position = match.end()

    def _at_end(self) -> bool:
        return self._position >= len(self._text)

    def _refuse(self, why: str, *, at: int | None = None) -> NoReturn:
        position = self._position if at is None else at
        line = self._text.count("\n", 0, position) + 1
        column = position - self._text.rfind("\n", 0, position)
        found = self._text[position : position + 20]
        here = f", where {shown(found)} stands" if found and at is None else ""
        raise InvalidRequest(
            f"The request cannot be read (line {line}, column {column}){here}: {why}."
        )
