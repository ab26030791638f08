"""Fails whatever is asked of it, in one of the ways in which datasources fail."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from polytope_server.config.datasources import RaiseConfig
from polytope_server.datasource import Query
from polytope_server.errors import DatasourceFailed
from polytope_server.request import BINARY

_EXIT_STATUS = 3
_PIECE_BYTES = 16 << 20


class RaiseDatasource:
    """For trying out what users see of a fault. See `polytope_server.datasource.Datasource`."""

    media_type = BINARY
    Config = RaiseConfig

    def __init__(self, config: RaiseConfig) -> None:
        self._config = config

    def retrieve(self, query: Query) -> Iterator[bytes]:  # noqa: ARG002 -- part of the interface
        self._fail()

    def archive(self, query: Query, data: Path) -> None:  # noqa: ARG002 -- part of the interface
        self._fail()

    def _fail(self) -> NoReturn:
        match self._config.mode:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os._exit(_EXIT_STATUS)
            case "hang":
                while True:
                    time.sleep(3600)
            case "memory":
                held = []
                while True:
                    held.append(b"x" * _PIECE_BYTES)
        raise DatasourceFailed(self._config.error_message)
