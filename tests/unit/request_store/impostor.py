"""A server that speaks just enough of MongoDB's protocol to say what it is."""

import socketserver
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import bson

_OP_REPLY: Final = 1
_OP_QUERY: Final = 2004
_OP_MSG: Final = 2013
_HEADER: Final = struct.Struct("<iiii")
_HELLO: Final = {
    "isWritablePrimary": True,
    "ismaster": True,
    "helloOk": True,
    "maxBsonObjectSize": 16 * 1024 * 1024,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "minWireVersion": 0,
    "maxWireVersion": 21,
    "ok": 1.0,
}


@contextmanager
def saying(build: Mapping[str, Any], *, port: int = 0) -> Iterator[int]:
    """The port of a server that answers `buildInfo` like this, `ping` well, and refuses everything else."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while message := self._received():
                number, code, body = message
                if code == _OP_QUERY:
                    reply = struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(_HELLO)
                    self._send(number, _OP_REPLY, reply)
                else:
                    command = bson.decode(body[5:])  # after flags and the kind of the section
                    answer = _answer(command, build)
                    self._send(number, _OP_MSG, b"\0\0\0\0\0" + bson.encode(answer))

        def _received(self) -> tuple[int, int, bytes] | None:
            header = self._exactly(_HEADER.size)
            if header is None:
                return None
            length, number, _, code = _HEADER.unpack(header)
            body = self._exactly(length - _HEADER.size)
            return None if body is None else (number, code, body)

        def _exactly(self, size: int) -> bytes | None:
            data = b""
            while len(data) < size:
                piece = self.request.recv(size - len(data))
                if not piece:
                    return None
                data += piece
            return data

        def _send(self, number: int, code: int, body: bytes) -> None:
            header = _HEADER.pack(_HEADER.size + len(body), 1, number, code)
            self.request.sendall(header + body)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(timeout=10)


def _answer(command: Mapping[str, Any], build: Mapping[str, Any]) -> Mapping[str, Any]:
    match next(iter(command)):
        case "hello" | "isMaster" | "ismaster":
            return _HELLO
        case "ping":
            return {"ok": 1.0}
        case "buildInfo":
            return {**build, "ok": 1.0}
        case name:
            return {"ok": 0.0, "code": 59, "codeName": "CommandNotFound", "errmsg": f"no {name}"}
