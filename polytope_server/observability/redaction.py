"""What must never be seen: secrets in logged fields and in texts, found by name and by shape.

This is the safety net below code that does not log secrets in the first place.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence, Set
from itertools import islice
from typing import Any, Final

from pydantic import SecretBytes, SecretStr

from polytope_server.config.secrecy import HIDDEN, NAMES_OF_SECRETS, looks_secret

MAX_TEXT_CHARACTERS: Final = 64 * 1024
"""Of one text in a log; the middle of a longer one is left out."""

_MAX_DEPTH: Final = 8
_MAX_ITEMS: Final = 200
_MAX_BITS: Final = 256


_HARMLESS: Final = re.compile(r"[A-Za-z0-9_./(){}+-]{0,80}", re.ASCII)
"""Nothing that begins a URL, assigns, quotes, or comes behind a scheme: most texts, and seen quickly."""
_URL: Final = re.compile(r"://([^\s'\"<>]+)")
_ASSIGNED: Final = re.compile(
    # a name, and = as in key=value, or a quoted name and : as in a mapping; prose has neither
    rf"""(?:{NAMES_OF_SECRETS}|(?<![A-Za-z])(?:key|pwd))[\w.-]{{0,40}}(?:=|\\?['"]\s{{0,4}}[:=]\s{{0,4}})""",
    re.IGNORECASE,
)
_QUOTED: Final = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_BEGIN: Final = re.compile(rf"""\w{{0,2}}{_QUOTED}|\\['"][^'"]*['"]|['"]?""", re.DOTALL)
_TOKEN: Final = re.compile(
    rf"""(?P<open>[\[{{(])|(?P<close>[\]}})])|(?P<quoted>{_QUOTED})"""
    r"""|(?P<end>[\s&,;'"])|(?:\\.|[^\[{(\]})\s&,;'"\\])+|\\""",
    re.DOTALL,
)
_HEADER: Final = re.compile(
    # a scheme and what looks like a credential: prose such as "Basic authentication" does not
    r"\b(Basic|Bearer|EmailKey|Federation|Digest) +(?=[^\s,'\"]*[\d:=._])[^\s,'\"]{6,}",
    re.IGNORECASE,
)
_HEADER_LINE: Final = re.compile(r"\b((?:Proxy-)?Authorization: *)[^\r\n'\"]+", re.IGNORECASE)


def text_without_secrets(text: str) -> str:
    """A text for a log: bounded, without user-info in URLs, credentials and assigned secrets."""
    if _HARMLESS.fullmatch(text):
        return text
    if len(text) > MAX_TEXT_CHARACTERS:
        half = MAX_TEXT_CHARACTERS // 2 - 50  # with the words between, within the limit
        # cut before looking, and drop the words that were cut: half a secret has no shape
        head, tail = text[:half].rpartition(" ")[0], text[-half:].partition(" ")[2]
        text = f"{head} [... {len(text) - len(head) - len(tail)} characters ...] {tail}"
    text = _URL.sub(_without_user_info, text)
    text = _HEADER_LINE.sub(rf"\1{HIDDEN}", text)
    text = _HEADER.sub(rf"\1 {HIDDEN}", text)
    return _without_assigned(text)


def _without_assigned(text: str) -> str:
    """Without the values behind secret names, as in queries, ``repr`` and JSON; nested ones too."""
    kept: list[str] = []
    position = 0
    while match := _ASSIGNED.search(text, position):
        end = _end_of_value(text, match.end())
        kept += [text[position : match.end()], HIDDEN if end > match.end() else ""]
        position = end
    return "".join([*kept, text[position:]])


def _end_of_value(text: str, start: int) -> int:
    begin = _BEGIN.match(text, start)
    position, depth = begin.end() if begin else start, 0
    while token := _TOKEN.match(text, position):
        kind = token.lastgroup
        if depth == 0 and kind in ("close", "end", "quoted"):
            break
        depth += (kind == "open") - (kind == "close")
        position = token.end()
    return position


def _without_user_info(match: re.Match[str]) -> str:
    rest = match[1]
    before, at, after = rest.rpartition("@")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        host = authority.rpartition("@")[2]
        rest_of_it = rest[len(authority) :]
        # a password that holds a slash or the like ends at an @ further on
        return f"://{HIDDEN}@{after if ':' in before and '@' in rest_of_it else host + rest_of_it}"
    if at and ":" in before:
        return f"://{HIDDEN}@{after}"
    return match[0]


def without_secrets(value: Any, *, depth: int = _MAX_DEPTH) -> Any:
    """The same as JSON values, bounded in depth and length, secrets replaced by ``***``.

    What is neither a mapping, a sequence, a number nor a text is shown as its ``str``.
    """
    match value:
        case None | bool():
            return value
        case int():
            return value if value.bit_length() <= _MAX_BITS else f"[{value.bit_length()} bits]"
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            return text_without_secrets(value)
        case SecretStr() | SecretBytes():
            return HIDDEN
        case bytes() | bytearray() | memoryview():
            return f"[{len(value)} bytes]"
        case Mapping() | Sequence() | Set() if depth <= 0:
            return "[...]"
        case Mapping():
            return _mapping(value, depth=depth)
        case Sequence() | Set():
            items = [without_secrets(item, depth=depth - 1) for item in _first(value)]
            return [*items, f"[{len(value)} in all]"] if _is_long(value) else items
        case _:
            return text_without_secrets(_as_text(value))


def _mapping(value: Mapping[Any, Any], *, depth: int) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for key in _first(value):
        name = key if isinstance(key, str) else _as_text(key)
        hidden = looks_secret(name)
        shown[text_without_secrets(name)] = (
            HIDDEN if hidden else without_secrets(value[key], depth=depth - 1)
        )
    if _is_long(value):
        shown["..."] = f"[{len(value)} in all]"
    return shown


def _is_long(items: Collection[Any]) -> bool:
    # one more may stay, so that what was shortened once is not shortened again
    return len(items) > _MAX_ITEMS + 1


def _first(items: Collection[Any]) -> list[Any]:
    return list(islice(items, _MAX_ITEMS if _is_long(items) else None))


def _as_text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - foreign code, and a log line must not fail for it
        return f"[{type(value).__name__} without text]"
