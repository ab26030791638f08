"""The proxy that stands between our processes and a server when its network is to fail."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest
from services.proxy import ChaosProxy, Mode


class Upper(socketserver.StreamRequestHandler):
    """Answers each line in upper case, and remembers it."""

    heard: list[bytes]

    def handle(self) -> None:
        for line in self.rfile:
            self.heard.append(line)
            self.wfile.write(line.upper())


@pytest.fixture
def heard() -> list[bytes]:
    return []


@pytest.fixture
def proxy(heard: list[bytes]) -> Iterator[ChaosProxy]:
    handler = type("Handler", (Upper,), {"heard": heard})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with ChaosProxy(server.server_address[1]) as running:
            yield running
        server.shutdown()
        thread.join()


class Client:
    def __init__(self, proxy: ChaosProxy, *, timeout_s: float = 5.0) -> None:
        self.socket = socket.create_connection((proxy.host, proxy.port), timeout=timeout_s)
        self.replies = self.socket.makefile("rb")

    def say(self, text: bytes) -> None:
        self.socket.sendall(text + b"\n")

    def hear(self) -> bytes:
        return self.replies.readline().strip()

    def ask(self, text: bytes) -> bytes:
        self.say(text)
        return self.hear()


def test_what_passes_is_unchanged(proxy: ChaosProxy) -> None:
    client = Client(proxy)
    assert client.ask(b"a" * 1_000_000) == b"A" * 1_000_000
    client.socket.shutdown(socket.SHUT_WR)
    assert client.hear() == b"", "the end of one side reaches the other"


def test_refused_connections_are_reset_and_others_go_on(proxy: ChaosProxy) -> None:
    earlier = Client(proxy)
    assert earlier.ask(b"a") == b"A"
    proxy.mode = Mode.REFUSE
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        Client(proxy).ask(b"b")
    assert earlier.ask(b"c") == b"C"


def test_nothing_comes_through_a_black_hole_until_it_heals(
    proxy: ChaosProxy, heard: list[bytes]
) -> None:
    client = Client(proxy, timeout_s=0.3)
    assert client.ask(b"a") == b"A"
    proxy.mode = Mode.BLACKHOLE
    client.say(b"b")
    with pytest.raises(TimeoutError):
        client.socket.recv(1)
    assert heard == [b"a\n"]
    proxy.mode = Mode.PASS
    assert client.socket.recv(2) == b"B\n"


def test_a_request_whose_reply_is_lost_has_gone_through(
    proxy: ChaosProxy, heard: list[bytes]
) -> None:
    client = Client(proxy, timeout_s=0.3)
    proxy.mode = Mode.LOSE_REPLIES
    client.say(b"a")
    with pytest.raises(TimeoutError):
        client.socket.recv(1)
    assert heard == [b"a\n"]
    assert proxy.lost_bytes == 2
    proxy.mode = Mode.PASS
    with pytest.raises(ConnectionResetError):
        client.socket.recv(1)
    assert Client(proxy).ask(b"b") == b"B"


def test_a_reply_is_cut_off_where_it_is_asked_for(proxy: ChaosProxy) -> None:
    proxy.hamper(cut_after=10)
    client = Client(proxy)
    client.say(b"a" * 30)
    assert client.replies.read(10) == b"A" * 10
    with pytest.raises(ConnectionResetError):
        client.replies.read(1)
    proxy.hamper()
    assert Client(proxy).ask(b"a" * 30) == b"A" * 30


def test_delay_and_rate(proxy: ChaosProxy) -> None:
    client = Client(proxy)
    proxy.hamper(delay_s=0.1)
    begin = time.monotonic()
    client.ask(b"a")
    assert time.monotonic() - begin >= 0.2, "once in each direction"
    proxy.hamper(bytes_per_s=100_000)
    slow = Client(proxy)
    begin = time.monotonic()
    slow.ask(b"a" * 20_000)
    assert 0.35 < time.monotonic() - begin < 5
    proxy.hamper()


def test_all_connections_are_reset_at_once(proxy: ChaosProxy) -> None:
    clients = [Client(proxy) for _ in range(3)]
    assert [client.ask(b"a") for client in clients] == [b"A"] * 3
    assert proxy.connections == 3
    proxy.reset_all()
    for client in clients:
        with pytest.raises(ConnectionResetError):
            client.hear()
    assert Client(proxy).ask(b"b") == b"B"


def test_a_server_that_is_away_is_felt_as_a_reset() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ChaosProxy(port) as proxy, pytest.raises(ConnectionResetError):
        Client(proxy).hear()
