"""The part of an object that a client asks for: RFC 9110, section 14, for single ranges of bytes."""

import re
from dataclasses import dataclass
from typing import Final

_BLANK: Final = " \t"
# More digits than any size has, fewer than what int() refuses.
_RANGE: Final = re.compile(r"bytes=[ \t]*(\d{0,64})-(\d{0,64})[ \t]*", re.ASCII | re.IGNORECASE)


class RangeNotSatisfiable(ValueError):
    """The range is well formed but begins behind the last byte, or is empty: HTTP's 416."""


@dataclass(frozen=True, slots=True)
class Range:
    """*length* bytes from *start* on."""

    start: int
    length: int

    def content_range(self, size: int) -> str:
        """The header ``Content-Range`` of a 206 about an object of *size* bytes."""
        return f"bytes {self.start}-{self.start + self.length - 1}/{size}"


def parse_range(
    header: str | None, size: int, *, if_range: str | None = None, etag: str | None = None
) -> Range | None:
    """What a ``Range`` header asks for of an object of *size* bytes; None means all of it, with a 200.

    Several ranges, other units and what is malformed are ignored, as the RFC allows, and so is the header
    if *if_range* is there and is not *etag*, which must be a strong one: dates are not compared.

    Raises:
        RangeNotSatisfiable
    """
    if header is None or (if_range is not None and if_range.strip(_BLANK) != etag):
        return None
    match = _RANGE.fullmatch(header.strip(_BLANK))
    if match is None:
        return None
    first, last = match.groups()
    if not first:
        return _suffix(last, size)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise RangeNotSatisfiable(f"byte {start} is behind the end of {size} bytes")
    end = min(int(last) + 1, size) if last else size
    return Range(start, end - start)


def _suffix(last: str, size: int) -> Range | None:
    if not last:
        return None
    length = min(int(last), size)
    if int(last) == 0:
        raise RangeNotSatisfiable("the last 0 bytes are none")
    # the whole of an empty object cannot be said in a Content-Range
    return Range(size - length, length) if length else None
