"""What a slot process and its supervisor say to each other.

Jobs go down as one JSON line each. Frames come up: a byte for the kind, four for the length (network
order), then so many bytes. A job is answered by STARTED (a media type), any number of DATA, and
then DONE or FAILED; an end of file instead means that the slot process died.
"""

import itertools
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, BinaryIO

from polytope_server.request import Verb
from polytope_server.user import User

MAX_PAYLOAD_BYTES = 1 << 20
VALID_FOR = 3
"""A frame's payload stays as it is until so many more have been read: one may still be worked on then."""
_HEADER = struct.Struct("!BI")


class Kind(IntEnum):
    """What a frame is."""

    READY = 0
    """The process is up; no payload."""
    STARTED = 1
    """The media type of what comes, as text."""
    DATA = 2
    DONE = 3
    """All data have been sent, or the archive holds them; no payload."""
    FAILED = 4
    """The request cannot be done; a text for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request for a slot process. `data` is the file to archive."""

    id: str
    user: User
    verb: Verb
    datasource: str
    options: Mapping[str, Any]
    request: Mapping[str, Any]
    text: str
    data: str | None = None

    def line(self) -> bytes:
        names = (field.name for field in fields(self))
        values = {name: getattr(self, name) for name in names} | {"user": self.user.as_json()}
        return json.dumps(values, default=dict).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Job":
        values = json.loads(line)
        user, verb = User.from_json(values["user"]), Verb(values["verb"])
        return cls(**(values | {"user": user, "verb": verb}))


def write_frame(
    stream: BinaryIO, kind: Kind, payload: bytes | bytearray | memoryview = b""
) -> None:
    """Send one thing; data of any length, in as many frames as it takes."""
    view = memoryview(payload).cast("B")
    if kind is not Kind.DATA:
        stream.write(_HEADER.pack(kind, len(view[:MAX_PAYLOAD_BYTES])))
        stream.write(view[:MAX_PAYLOAD_BYTES])
    for start in range(0, len(view) if kind is Kind.DATA else 0, MAX_PAYLOAD_BYTES):
        part = view[start : start + MAX_PAYLOAD_BYTES]
        stream.write(_HEADER.pack(kind, len(part)))
        stream.write(part)
    stream.flush()


class FrameReader:
    """Reads frames into `VALID_FOR` + 1 buffers of `MAX_PAYLOAD_BYTES`, by turns."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._header = memoryview(bytearray(_HEADER.size))
        size = MAX_PAYLOAD_BYTES
        self._buffers = itertools.cycle([memoryview(bytearray(size)) for _ in range(VALID_FOR + 1)])

    def read(self) -> tuple[Kind, memoryview] | None:
        """The next frame, or None where the stream ends, even in the middle of one."""
        if not self._fill(self._header):
            return None
        kind, length = _HEADER.unpack(self._header)
        if length > MAX_PAYLOAD_BYTES or kind not in Kind.__members__.values():
            return None  # foreign code has written here: nothing after this can be trusted
        payload = next(self._buffers)[:length]
        return (Kind(kind), payload) if self._fill(payload) else None

    def _fill(self, buffer: memoryview) -> bool:
        got = 0
        while got < len(buffer):
            count = self._stream.readinto(buffer[got:])  # type: ignore[attr-defined]
            if not count:
                return False
            got += count
        return True
