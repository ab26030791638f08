"""GRIB messages in a file that nobody vouches for: where each begins and ends, and what it says it is."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import eccodes

from polytope_server.errors import DatasourceFailed

_INDICATOR_BYTES = 16
_SECTION_HEAD_BYTES = 5
_END = b"7777"
_LARGE = 0x800000
_LARGE_UNIT_BYTES = 120
_HAS_GRID, _HAS_BITMAP = 0x80, 0x40


def messages(path: Path, *, max_message_bytes: int) -> Iterator[bytes]:
    """The messages of a file, one after the other; holds one at a time.

    A message in edition 2 must hold a single field: of several, an archive would see only the first.

    Raises:
        DatasourceFailed: there is none, or something else before, between or behind them; one is cut
            off, larger than allowed, or not of a known edition. The text counts messages from 1.
    """
    with path.open("rb") as stream:
        number = 0
        while head := stream.read(_INDICATOR_BYTES):
            number += 1
            size = _message_bytes(head, stream, number)
            if size > max_message_bytes:
                raise DatasourceFailed(
                    f"Message {number} has {size} bytes; at most {max_message_bytes} are archived."
                )
            message = head + stream.read(size - len(head))
            if len(message) != size or not message.endswith(_END):
                raise DatasourceFailed(f"Message {number} is cut off or damaged.")
            if message[7] == 2:
                _check_single(message, number)
            yield message
    if number == 0:
        raise DatasourceFailed("There are no data: the file is empty.")


def mars_keys(message: bytes, *, number: int) -> Mapping[str, str]:
    """What an archive files a message under, and `shortName` as ``short_name``.

    Raises:
        DatasourceFailed: it cannot be decoded.
    """
    try:
        handle = eccodes.codes_new_from_message(message)
        try:
            keys = {}
            iterator = eccodes.codes_keys_iterator_new(handle, "mars")
            try:
                while eccodes.codes_keys_iterator_next(iterator):
                    name = eccodes.codes_keys_iterator_get_name(iterator)
                    keys[name] = eccodes.codes_get_string(handle, name)
            finally:
                eccodes.codes_keys_iterator_delete(iterator)
            keys["short_name"] = eccodes.codes_get_string(handle, "shortName")
        finally:
            eccodes.codes_release(handle)
    except eccodes.CodesInternalError as exc:
        raise DatasourceFailed(f"Message {number} cannot be decoded as GRIB.") from exc
    return MappingProxyType(keys)


def _message_bytes(head: bytes, stream: BinaryIO, number: int) -> int:
    if not head.startswith(b"GRIB"):
        what = (
            "The data are not GRIB"
            if number == 1
            else f"Something other than GRIB follows message {number - 1}"
        )
        raise DatasourceFailed(f"{what}; send GRIB messages and nothing else.")
    if len(head) < _INDICATOR_BYTES:
        raise DatasourceFailed(f"Message {number} is cut off or damaged.")
    match head[7]:
        case 1:
            size = _edition_1_bytes(head, stream, number)
        case 2:
            size = int.from_bytes(head[8:16])
        case edition:
            raise DatasourceFailed(
                f"Message {number} is of GRIB edition {edition}; 1 and 2 are known."
            )
    if size < _INDICATOR_BYTES + len(_END):
        raise DatasourceFailed(f"Message {number} is cut off or damaged.")
    return size


def _edition_1_bytes(head: bytes, stream: BinaryIO, number: int) -> int:
    """Three bytes hold at most 8 MiB, so ECMWF counts larger messages in units of 120 bytes.

    That is marked by the highest bit, and by a length of section 4 that is below one unit: how
    much the last one has too many.
    """
    size = int.from_bytes(head[4:7])
    if not size & _LARGE:
        return size
    begin = stream.tell() - len(head)

    def read(offset: int, count: int) -> bytes:
        stream.seek(begin + offset)
        found = stream.read(count)
        if len(found) != count:
            raise DatasourceFailed(f"Message {number} is cut off or damaged.")
        return found

    offset = 8
    flags = read(offset + 7, 1)[0]
    offset += int.from_bytes(read(offset, 3))
    for flag in (_HAS_GRID, _HAS_BITMAP):
        if flags & flag:
            offset += int.from_bytes(read(offset, 3))
    surplus = int.from_bytes(read(offset, 3))
    stream.seek(begin + len(head))
    if surplus >= _LARGE_UNIT_BYTES:
        return size
    return (size & ~_LARGE) * _LARGE_UNIT_BYTES - surplus + len(_END)


def _check_single(message: bytes, number: int) -> None:
    offset, end, fields = _INDICATOR_BYTES, len(message) - len(_END), 0
    while offset < end:
        size = int.from_bytes(message[offset : offset + 4])
        if size < _SECTION_HEAD_BYTES or offset + size > end:
            raise DatasourceFailed(f"Message {number} is cut off or damaged.")
        fields += message[offset + 4] == 7
        offset += size
    if fields != 1:
        raise DatasourceFailed(
            f"Message {number} holds {fields} fields; send one field in each message."
        )
