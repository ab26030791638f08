"""What may be removed: pure decisions about names, ages and sizes."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from polytope_server.request import EXTENSIONS
from polytope_server.request_store import Staged
from polytope_server.staging import StoredObject

_UUID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_SUFFIX: Final = "|".join(re.escape(suffix) for suffix in sorted(set(EXTENSIONS.values())))
_RESULT = re.compile(rf"({_UUID})-[1-9][0-9]{{0,8}}(?:{_SUFFIX})", re.ASCII)
_INPUT = re.compile(rf"({_UUID})-in-[0-9a-f]{{32}}\.bin", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """An object of ours and the request that its name says it belongs to."""

    object: StoredObject
    request_id: str


def ours(objects: Iterable[StoredObject]) -> Iterator[Ours]:
    """Those objects whose names we could have given; any other is somebody else's and left alone."""
    for stored in objects:
        match = _RESULT.fullmatch(stored.name) or _INPUT.fullmatch(stored.name)
        if match:
            yield Ours(object=stored, request_id=match[1])


def old_enough(objects: Iterable[Ours], *, now: float, age_s: float) -> Iterator[Ours]:
    """Those that were last modified so long ago, or longer; a clock that runs ahead makes none old."""
    for each in objects:
        if now - each.object.modified_at >= age_s:
            yield each


def surplus(
    oldest_first: Iterable[Staged], *, total_bytes: int, limit_bytes: int
) -> Iterator[Staged]:
    """The oldest results whose removal brings the total below the limit, and no more."""
    for staged in oldest_first:
        if total_bytes < limit_bytes:
            return
        yield staged
        total_bytes -= staged.size_bytes
