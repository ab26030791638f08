"""Radar scans: one file of BUFR messages for each radar and day."""

import datetime as dt
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from polytope_server.config.section import DatasourceSection, Size
from polytope_server.datasource import Query
from polytope_server.errors import DatasourceFailed
from polytope_server.request import BINARY, Verb

_KEYS: Final = frozenset({"radar", "date"})
_RADAR: Final = re.compile(r"[a-z]{1,20}", re.ASCII)
_BUFR: Final = b"BUFR"


class RadarConfig(DatasourceSection):
    """``type: radar``"""

    verbs: ClassVar[frozenset[Verb]] = frozenset({Verb.RETRIEVE, Verb.ARCHIVE})

    root_dir: Path
    """Where the scans lie, as ``RADAR/YYYYMMDD.bufr``."""
    chunk: Annotated[Size, Field(ge=1, le=64 << 20)] = 1 << 20
    """Bytes that are handed on at once."""


class RadarDatasource:
    """See `polytope_server.datasource.Datasource`. Files of several days come one behind the other."""

    media_type = BINARY
    Config = RadarConfig

    def __init__(self, config: RadarConfig) -> None:
        self._config = config

    def retrieve(self, query: Query) -> Iterator[bytes]:
        files = self._files(query)
        for file in files:  # all of them before the first byte: better nothing than a part
            if not file.exists():
                raise DatasourceFailed(f"There are no scans of {file.parent.name} on {file.stem}.")
        for file in files:
            with file.open("rb") as scans:
                while chunk := scans.read(self._config.chunk):
                    yield chunk

    def archive(self, query: Query, data: Path) -> None:
        file, *others = self._files(query)
        if others:
            raise DatasourceFailed("Scans are archived one day at a time.")
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{query.id}")
        try:
            with data.open("rb") as source, partial.open("wb") as target:
                if source.read(len(_BUFR)) != _BUFR:
                    raise DatasourceFailed("These data do not begin with a BUFR message.")
                source.seek(0)
                shutil.copyfileobj(source, target, self._config.chunk)
                target.flush()
                os.fsync(target.fileno())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def _files(self, query: Query) -> Sequence[Path]:
        if unknown := query.request.keys() - _KEYS:  # nobody gets anything but what was asked for
            raise DatasourceFailed(
                f"Scans have no {min(unknown)}; they are asked for by radar and date."
            )
        if missing := _KEYS - query.request.keys():
            raise DatasourceFailed(f"The key {min(missing)} is missing.")
        radar, date = query.request["radar"], query.request["date"]
        if not _RADAR.fullmatch(radar):  # a path is made of it
            raise DatasourceFailed("The key radar must be the name of one radar in small letters.")
        return [self._config.root_dir / radar / f"{day:%Y%m%d}.bufr" for day in days(date)]


def days(date: str) -> Sequence[dt.date]:
    """The days of a date as a datasource is given it: ``a``, ``a/b/c``, ``a/to/b`` or ``a/to/b/by/n``."""
    match date.split("/"):
        case [first, "to", last, *by]:
            begin, end = _day(first), _day(last)
            step = int(by[1]) if by else 1
            behind = (end - begin).days + (1 if step > 0 else -1)
            return [begin + dt.timedelta(days=number) for number in range(0, behind, step)]
        case several:
            return [_day(text) for text in several]


def _day(text: str) -> dt.date:
    return dt.datetime.strptime(text, "%Y%m%d").date()
