"""A user's side of the API over one kept connection, with as little work as that takes."""

import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

FIRST_PAUSE_S = 0.1
PAUSE_FACTOR = 1.05
LONGEST_PAUSE_S = 120.0
"""How polytope-client waits between two polls."""


class Failed(Exception):
    """The server answered otherwise than a benchmark can go on with."""


class Client:
    """Not safe between threads. A connection that the server has closed is made again."""

    def __init__(self, url: str, authorization: str) -> None:
        parts = urlsplit(url)
        make = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._connection = make(parts.hostname or "", parts.port, timeout=120)
        self._prefix = parts.path.rstrip("/") + "/api/v1"
        self.authorization = authorization
        self._headers = {"Authorization": authorization}

    def call(self, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        """One call below ``/api/v1``; the answer is read, its body is `HTTPResponse.body`."""
        headers = self._headers | ({"Content-Type": "application/json"} if body else {})
        for attempt in (1, 2):
            try:
                self._connection.request(method, self._prefix + path, body, headers)
                response = self._connection.getresponse()
                break
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                self._connection.close()
                if attempt == 2:
                    raise
        response.body = response.read()  # type: ignore[attr-defined]
        return response

    def submit(self, collection: str, request: Any) -> str:
        """The id of a new retrieve."""
        body = json.dumps({"verb": "retrieve", "request": request}).encode()
        response = self.call("POST", f"/requests/{collection}", body)
        if response.status != 202:
            raise Failed(f"submission: {response.status} {_text(response)}")
        return (response.headers["Location"] or "").rpartition("/")[2]

    def until_processed(self, request_id: str) -> str:
        """Poll as polytope-client does; the address of the result."""
        pause_s = FIRST_PAUSE_S
        while True:
            response = self.call("GET", f"/requests/{request_id}")
            if response.status == 303:
                return str(response.headers["Location"])
            if response.status != 202:
                raise Failed(f"{request_id}: {response.status} {_text(response)}")
            time.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * PAUSE_FACTOR)

    def revoke(self, request_id: str) -> None:
        self.call("DELETE", f"/requests/{request_id}")

    def close(self) -> None:
        self._connection.close()


def download(url: str) -> int:
    """Fetch a result, hold a mebibyte of it at a time, and say how many bytes came."""
    parts = urlsplit(url)
    make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = make(parts.hostname or "", parts.port, timeout=120)
    try:
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != 200:
            raise Failed(f"download: {response.status}")
        buffer = memoryview(bytearray(1 << 20))
        total = 0
        while count := response.readinto(buffer):
            total += count
        if total != int(response.headers["Content-Length"]):
            raise Failed(f"download: {total} bytes came of {response.headers['Content-Length']}")
        return total
    finally:
        connection.close()


def _text(response: http.client.HTTPResponse) -> str:
    return response.body.decode(errors="replace")[:300]  # type: ignore[attr-defined, no-any-return]
