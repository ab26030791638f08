"""Small HTTP servers of our own, for protocols whose real servers cannot be had: in a thread."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

Reply = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body."""

_LONGEST_S: Final = 60.0


class WebServer(ABC):
    """A context manager. `stop` and `start` are a service that is away and comes back, on the same port.

    Set at any time: `delay_s` before each answer, `forced` in place of the answers; ask `hits`.
    """

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.forced: Reply | None = None
        self.hits = 0
        self.port = 0
        self._end = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @abstractmethod
    def reply(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """What is answered when nothing is forced; header names are in lower case."""

    def start(self) -> Self:
        self._end.clear()
        self._server = _Server(("127.0.0.1", self.port), _handler(self))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse connections from now on; what is being answered is cut off."""
        self._end.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.cut()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        self.hits += 1
        if self.delay_s:
            self._end.wait(min(self.delay_s, _LONGEST_S))
        return self.forced or self.reply(method, target, headers, body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        self._open: set[Any] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is nothing to print."""

    def cut(self) -> None:
        for request in list(self._open):
            super().shutdown_request(request)


def _handler(owner: WebServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, extra, content = owner.answer(self.command, self.path, headers, body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **extra}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    return Handler
