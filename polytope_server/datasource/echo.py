"""Hands the request back as the user wrote it, and takes any data without keeping them."""

from collections.abc import Iterator
from pathlib import Path

from polytope_server.config.datasources import EchoConfig
from polytope_server.datasource import Query
from polytope_server.request import BINARY

_CHUNK_BYTES = 1 << 20


class EchoDatasource:
    """For trying out a deployment. See `polytope_server.datasource.Datasource`."""

    media_type = BINARY
    Config = EchoConfig

    def __init__(self, config: EchoConfig) -> None:
        self._config = config

    def retrieve(self, query: Query) -> Iterator[bytes]:
        yield query.text.encode()

    def archive(self, query: Query, data: Path) -> None:  # noqa: ARG002 -- part of the interface
        with data.open("rb") as stream:
            while stream.read(_CHUNK_BYTES):
                pass
