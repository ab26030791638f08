"""HTTP answers that are there in time as a whole, or not at all.

The time-out of a socket is for each piece that comes. A server that sends a byte now and then, in the head of
its answer or between the parts of a body, would keep its caller for as long as it likes.
"""

import io
import math
import time
from http.client import HTTPResponse
from typing import Any, Final

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection


class InTimeAdapter(HTTPAdapter):
    """The time-out of a request holds for its whole answer, from the moment when it has been sent."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _hurry(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> ProxyManager:
        manager: ProxyManager = super().proxy_manager_for(*args, **kwargs)
        _hurry(manager)
        return manager


class _Answer(HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_InTime(self.fp.detach(), sock))


class _InTime(io.RawIOBase):
    """What comes from a socket within the time-out that it has now."""

    def __init__(self, stream: io.RawIOBase, sock: Any) -> None:
        self._stream, self._socket = stream, sock
        seconds = sock.gettimeout()
        self._end = time.monotonic() + (math.inf if seconds is None else seconds)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._end - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the answer takes too long")
        if left_s < math.inf:
            self._socket.settimeout(left_s)
        return self._stream.readinto(buffer)

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            super().close()


class _Connection(HTTPConnection):
    response_class = _Answer


class _TlsConnection(HTTPSConnection):
    response_class = _Answer


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS: Final = {"http": _Pool, "https": _TlsPool}


def _hurry(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = _POOLS
