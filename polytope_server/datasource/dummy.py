"""As many bytes as the request says."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

from polytope_server.config.datasources import DummyConfig
from polytope_server.datasource import Query
from polytope_server.errors import DatasourceFailed
from polytope_server.request import GRIB

_NUMBER = re.compile(r"0*(\d{1,19})", re.ASCII)
_PIECES_PER_SECOND = 10


class DummyDatasource:
    """For measuring a deployment: the request is a number N, the result N times the byte ``x``.

    Memory in use is one chunk. See `polytope_server.datasource.Datasource`.
    """

    media_type = GRIB
    Config = DummyConfig

    def __init__(self, config: DummyConfig) -> None:
        self._config = config

    def retrieve(self, query: Query) -> Iterator[memoryview]:
        size = self._size(query.text)
        rate = self._config.bytes_per_second
        chunk = self._config.chunk
        if rate is not None:
            chunk = min(chunk, max(1, rate // _PIECES_PER_SECOND))
        data = memoryview(b"x" * min(chunk, size))
        begun = time.monotonic()
        for start in range(0, size, chunk):
            if rate is not None:
                time.sleep(max(0.0, begun + start / rate - time.monotonic()))
            yield data[: size - start]

    def archive(self, query: Query, data: Path) -> None:  # noqa: ARG002 -- part of the interface
        raise DatasourceFailed("This datasource takes no data; it only makes them.")

    def _size(self, text: str) -> int:
        match = _NUMBER.fullmatch(text.strip().strip("\"'"))
        if not match:
            raise DatasourceFailed(
                "The request must be one whole number, not negative: how many bytes to make, "
                "such as 1048576."
            )
        size = int(match[1])
        if size > self._config.max_bytes:
            raise DatasourceFailed(
                f"{size} bytes are more than this datasource makes; "
                f"ask for at most {self._config.max_bytes}."
            )
        return size
