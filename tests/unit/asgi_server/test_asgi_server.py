"""The server with real sockets: hostile clients, the end of processes, cut transfers."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from polytope_server.asgi_server import SECURITY_HEADERS, listen
from polytope_server.errors import ConfigurationError

PROGRAM = Path(__file__).with_name("serving.py")
MIB = 1 << 20


class Served:
    """The program, running with some options."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self._errors = directory / "errors"
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAM), json.dumps(options)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.port = int(json.loads(line)["port"]) if line else 0
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(**options: Any) -> Served:
        started.append(Served(tmp_path, **options))
        return started[-1]

    yield start
    for served in started:
        served.stop()


def until(condition: Callable[[], Any], *, deadline_s: float = 20.0) -> Any:
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"did not come true within {deadline_s} s"
        time.sleep(0.02)
    return value


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed it; whatever it still says is thrown away."""
    connection.settimeout(0.01)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def test_port_0_takes_a_free_one_and_says_which(serve: Callable[..., Served]) -> None:
    served = serve()
    assert served.port > 0
    assert requests.get(served.url, timeout=10).json()["parent"] == served.process.pid


def test_a_port_that_is_taken_is_refused_with_its_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}"):
            listen("127.0.0.1", port)


def test_a_name_that_is_no_address_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"no-such-host\.invalid"):
        listen("no-such-host.invalid", 0)


def test_all_addresses_of_a_name_get_the_same_port() -> None:
    sockets = listen("localhost", 0)
    assert len({each.getsockname()[1] for each in sockets}) == 1
    for each in sockets:
        each.close()


def test_a_factory_that_fails_ends_the_server_and_its_reason_is_logged(
    serve: Callable[..., Served],
) -> None:
    served = serve(mode="factory-fails")
    assert served.process.wait(20) == 78
    assert "refused: the server could not start" in served.errors
    assert "cannot start" in served.errors


def test_a_start_up_that_fails_ends_the_server(serve: Callable[..., Served]) -> None:
    served = serve(mode="startup-fails")
    assert served.process.wait(20) == 78


def test_a_factory_that_waits_for_ever_can_be_stopped(serve: Callable[..., Served]) -> None:
    served = serve(mode="factory-hangs")
    until(lambda: "in the factory" in served.errors)
    began = time.monotonic()
    served.process.terminate()
    assert served.process.wait(20) == 0
    assert time.monotonic() - began < 5


def test_a_worker_process_that_dies_is_replaced(serve: Callable[..., Served]) -> None:
    served = serve()
    before = requests.get(served.url, timeout=10).json()["pid"]
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{served.url}/crash", timeout=10)
    assert until(lambda: requests.get(served.url, timeout=10).json()["pid"]) != before


def test_worker_processes_end_when_their_parent_is_killed(serve: Callable[..., Served]) -> None:
    served = serve()
    pid = requests.get(served.url, timeout=10).json()["pid"]
    served.process.kill()
    served.process.wait()
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_only_the_server_itself_returns_to_its_caller(serve: Callable[..., Served]) -> None:
    served = serve(processes=2)
    requests.get(served.url, timeout=10)
    served.stop()
    assert served.process.returncode == 0
    left = [line for line in served.errors.splitlines() if line.startswith("left by")]
    assert left == [f"left by {served.process.pid}"]


def test_nothing_but_our_own_lines_is_logged_for_requests(serve: Callable[..., Served]) -> None:
    served = serve()
    for _ in range(3):
        requests.get(served.url, timeout=10)
    served.stop()
    assert "gunicorn" not in served.errors


def test_a_running_download_is_finished_after_sigterm(serve: Callable[..., Served]) -> None:
    served = serve()
    with requests.get(f"{served.url}/slow?count=20", stream=True, timeout=20) as response:
        chunks = response.iter_content(MIB)
        size = len(next(chunks))
        served.process.terminate()
        size += sum(len(chunk) for chunk in chunks)
    assert size == 20 * MIB
    assert served.process.wait(10) == 0
    assert "lifespan ended" in served.errors


def test_after_sigterm_nobody_new_gets_in(serve: Callable[..., Served]) -> None:
    served = serve()
    with requests.get(f"{served.url}/slow?count=20", stream=True, timeout=20) as response:
        served.process.terminate()
        until(lambda: not _accepts(served.port))
        assert sum(len(chunk) for chunk in response.iter_content(MIB)) == 20 * MIB


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_what_does_not_finish_in_time_is_cut_off(serve: Callable[..., Served]) -> None:
    served = serve(graceful_timeout_s=0.5)
    with requests.get(f"{served.url}/slow?count=600", stream=True, timeout=20) as response:
        next(response.iter_content(MIB))
        began = time.monotonic()
        served.process.terminate()
        with pytest.raises(requests.RequestException):
            for _ in response.iter_content(MIB):
                pass
    assert served.process.wait(10) == 0
    assert time.monotonic() - began < 5
    assert "cutting off what did not finish in time" in served.errors


def test_idle_connections_do_not_delay_the_end(serve: Callable[..., Served]) -> None:
    served = serve()
    with requests.Session() as session:
        session.get(served.url, timeout=10)
        began = time.monotonic()
        served.process.terminate()
        assert served.process.wait(10) == 0
        assert time.monotonic() - began < 3


def test_a_client_that_goes_away_ends_the_stream(serve: Callable[..., Served]) -> None:
    served = serve()
    with requests.get(f"{served.url}/slow?count=600", stream=True, timeout=20) as response:
        next(response.iter_content(MIB))
    until(lambda: "stream closed early" in served.errors)
    assert "Traceback" not in served.errors


def test_headers_that_trickle_in_are_cut_off(serve: Callable[..., Served]) -> None:
    served = serve(idle_timeout_s=1.0)
    with served.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        began = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT012 -- whichever call notices first
            while time.monotonic() - began < 20:
                connection.sendall(b"X-A: b\r\n")
                time.sleep(0.1)
        assert time.monotonic() - began < 10


def test_a_connection_that_says_nothing_is_closed(serve: Callable[..., Served]) -> None:
    served = serve(idle_timeout_s=0.5)
    with served.connect() as connection:
        connection.settimeout(10)
        assert connection.recv(1) == b""


def test_a_kept_connection_is_closed_when_it_has_been_idle(serve: Callable[..., Served]) -> None:
    served = serve(idle_timeout_s=1.0)
    with served.connect() as connection:
        for _ in range(3):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(0.6)
        connection.settimeout(10)
        assert connection.recv(1) == b""


def test_a_client_that_takes_nothing_is_cut_off(serve: Callable[..., Served]) -> None:
    served = serve(idle_timeout_s=1.0)
    with served.connect() as connection:
        connection.sendall(b"GET /slow?count=100&pause=0 HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: "stream closed early" in served.errors)


def test_a_client_that_takes_slowly_is_not_cut_off(serve: Callable[..., Served]) -> None:
    served = serve(idle_timeout_s=1.0)
    with served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.sendall(b"GET /slow?count=8&pause=0 HTTP/1.1\r\nHost: x\r\n\r\n")
        received = 0
        while received < 8 * MIB:
            part = connection.recv(1 << 17)
            assert part, received
            received += len(part)
            time.sleep(0.06)


@pytest.mark.parametrize("drip", [b"", b"y"])
def test_a_body_that_does_not_go_on_is_cut_off(serve: Callable[..., Served], drip: bytes) -> None:
    """Neither silence nor a byte now and then holds a connection."""
    served = serve(idle_timeout_s=1.0)
    with served.connect() as connection:
        connection.sendall(
            b"POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + drip
        )
        deadline = time.monotonic() + 6
        while not is_closed(connection):
            assert time.monotonic() < deadline
            with suppress(OSError):
                connection.sendall(drip)
            time.sleep(0.1)
    assert "cut at" in served.errors


def test_a_body_that_is_slow_but_goes_on_is_not_cut_off(serve: Callable[..., Served]) -> None:
    served = serve(idle_timeout_s=1.0)
    with served.connect() as connection:
        connection.sendall(b"POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: 12000\r\n\r\n")
        for _ in range(12):
            time.sleep(0.3)
            connection.sendall(b"y" * 1000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_body_that_the_application_is_slow_to_take_is_not_cut_off(
    serve: Callable[..., Served],
) -> None:
    served = serve(idle_timeout_s=0.5)
    answer = requests.post(f"{served.url}/digest?pause=1.5", data=b"y" * 5 * MIB, timeout=30)
    assert answer.json()["size"] == 5 * MIB


def test_bodies_that_stop_keep_nobody_out(serve: Callable[..., Served]) -> None:
    served = serve(max_connections=20)
    stalled: list[socket.socket] = []
    try:
        for _ in range(30):
            connection = served.connect()
            connection.sendall(b"POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\ny")
            stalled.append(connection)
        began = time.monotonic()
        assert requests.get(served.url, timeout=60).status_code == 200
        assert time.monotonic() - began < 15
    finally:
        for connection in stalled:
            connection.close()


def test_an_answer_does_not_wait_for_the_rest_of_the_body(serve: Callable[..., Served]) -> None:
    served = serve()
    with served.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\ny")
        connection.settimeout(3)
        assert connection.recv(65536).startswith(b"HTTP/1.1 405")
        until(lambda: is_closed(connection), deadline_s=8)


def test_what_is_still_sent_after_the_answer_is_taken(serve: Callable[..., Served]) -> None:
    served = serve()
    with served.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (8 * MIB))
        assert connection.recv(65536).startswith(b"HTTP/1.1 405")
        connection.sendall(b"y" * 8 * MIB)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_cut_upload_is_told_from_a_whole_one_by_its_length(serve: Callable[..., Served]) -> None:
    served = serve()
    with served.connect() as connection:
        connection.sendall(
            b"POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b"y" * 10
        )
    until(lambda: "cut at 10" in served.errors)


def test_uploads_arrive_whole(serve: Callable[..., Served]) -> None:
    served = serve()
    data = os.urandom(1 << 16) * 256
    answer = requests.post(f"{served.url}/digest", data=data, timeout=30).json()
    assert answer == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_2000_idle_connections_keep_nobody_out(serve: Callable[..., Served]) -> None:
    served = serve(max_connections=50)
    idle: list[socket.socket] = []
    try:
        for number in range(2000):
            connection = served.connect()
            if number % 2:
                connection.sendall(b"GET / HTTP/1.1\r\nX-Never: ends")
            idle.append(connection)
        began = time.monotonic()
        assert requests.get(served.url, timeout=60).status_code == 200
        assert time.monotonic() - began < 30
    finally:
        for connection in idle:
            connection.close()


def test_idle_connections_give_way_but_those_at_work_do_not(serve: Callable[..., Served]) -> None:
    served = serve(max_connections=4)
    sizes: list[int] = []

    def download() -> None:
        response = requests.get(f"{served.url}/slow?count=20", timeout=30)
        sizes.append(len(response.content))

    downloads = [threading.Thread(target=download) for _ in range(3)]
    for thread in downloads:
        thread.start()
    time.sleep(0.3)
    idle = [served.connect() for _ in range(20)]
    assert requests.get(served.url, timeout=30).status_code == 200
    for thread in downloads:
        thread.join()
    assert sizes == [20 * MIB] * 3
    until(lambda: sum(is_closed(connection) for connection in idle) >= 16)
    for connection in idle:
        connection.close()


def test_at_the_limit_of_working_connections_new_ones_wait_their_turn(
    serve: Callable[..., Served],
) -> None:
    served = serve(max_connections=2)
    answers: list[int] = []

    def ask() -> None:
        answers.append(requests.get(f"{served.url}/slow?count=2&pause=0.1", timeout=30).status_code)

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 10


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        (b"\x16\x03\x01\x02\x00 hello\r\n\r\n", 400, "not a well-formed HTTP request."),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", 414, "address of this request is too"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431, "headers of this request"),
        (b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 2000 + b"\r\n", 431, "headers of this request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\npassword hunter2\r\n\r\n", 400, "well-formed HTTP"),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: foo, chunked\r\n\r\n",
            400,
            "well-formed",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
            400,
            "well-formed",
        ),
    ],
)
def test_what_is_no_http_is_refused_in_the_shape_of_every_error(
    serve: Callable[..., Served], request_: bytes, status: int, text: str
) -> None:
    served = serve()
    with served.connect() as connection:
        connection.sendall(request_)
        connection.settimeout(10)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    assert first.startswith(f"HTTP/1.1 {status} ")
    for name, value in SECURITY_HEADERS:
        assert headers.count(f"{name}: {value}") == 1, name
    assert "Content-Type: application/json" in headers
    (message,) = json.loads(body).values()
    assert text in message
    assert message.endswith(".")
    assert "hunter2" not in message
    assert "Traceback" not in served.errors


def test_who_asks_for_a_websocket_is_answered_as_if_not(serve: Callable[..., Served]) -> None:
    served = serve()
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    assert requests.get(served.url, headers=upgrade, timeout=10).status_code == 200
    assert "Traceback" not in served.errors


def test_a_hangup_starts_new_worker_processes(serve: Callable[..., Served]) -> None:
    served = serve()
    before = requests.get(served.url, timeout=10).json()["pid"]
    served.process.send_signal(signal.SIGHUP)
    until(lambda: _pid(served) not in (before, 0))


def _pid(served: Served) -> int:
    try:
        return int(requests.get(served.url, timeout=10).json()["pid"])
    except requests.ConnectionError:
        return 0  # the old process closed it
