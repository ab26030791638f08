"""How messages show what somebody wrote: short, on one line, and never with an error of its own."""

from typing import Final

_SHORT: Final = 60
_LARGEST: Final = 10**18
_CUT: Final = 1000


def shown(value: object) -> str:
    """Text between quotes, anything else as JSON would almost write it; at most about 60 characters."""
    text = _text(value)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:_CUT])
    if len(text) <= _SHORT:
        return text
    return f"{text[: _SHORT - 4]}...{text[-1] if isinstance(value, str) else ''}"


def _text(value: object) -> str:
    match value:
        case str():
            return f"'{value[:_CUT]}'"
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() if abs(value) >= _LARGEST:
            return "a number of many digits"
        case int() | float():
            return str(value)
        case list() | tuple():
            # whatever is in there, a few items fill what is shown
            return f"[{', '.join(_inner(item) for item in value[:_SHORT])}]"
    return "an object"


def _inner(value: object) -> str:
    return "[...]" if isinstance(value, list | tuple) else _text(value)
