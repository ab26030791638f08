"""Wrong and hostile input at every door of the running server: never a 5xx, and it goes on serving."""

import base64
import hashlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from argon2 import PasswordHasher
from deployment import REALM, USERS, Deployment, until

JOE = base64.b64encode(f"joe:{USERS['joe']}".encode()).decode()


@pytest.fixture(autouse=True)
def it_goes_on_serving(server: Deployment) -> Iterator[None]:
    yield
    assert server.result(server.submit("3", collection="bytes")) == b"xxx"


def talk(server: Deployment, data: bytes, *, wait_s: float = 20.0) -> bytes:
    """Send raw bytes; what comes back until the server closes, or the time is up."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait_s) as connection:
        try:
            connection.sendall(data)
            while chunk := connection.recv(65536):
                received += chunk
                if b"\r\n\r\n" in received and b"close" not in received.lower():
                    break
        except (ConnectionError, TimeoutError):
            pass
    return received


def is_refused(response: requests.Response) -> None:
    assert 400 <= response.status_code < 500, (response.status_code, response.text)
    body = response.json()
    assert list(body) == ["message"]
    assert "Traceback" not in body["message"]


REQUESTS: list[Any] = [
    "a: &x [1]\nb: *x",
    "x: !!python/object/apply:os.system ['true']",
    "? [a, b]\n: c",
    "{" * 5000,
    "- " * 5000 + "a",
    "a: " + "[" * 3000,
    "class: od\n---\nclass: rd",
    "date: 99999999999999999999",
    "step: " + "9" * 5000,
    "number: 1/to/99999999",
    "date: 00010101/to/99991231",
    "param: '2t,class=rd'",
    "class: 'od\x00'",
    "step: 0/to/24/by/0",
    {"date": 1e308},
    {"class": {"a": {"b": 1}}},
    {"class": []},
    {"class": [[]]},
    {"step": True},
    {"": "x"},
    {"a b": "x"},
    {"class": "od", "CLASS": "rd"},
    {"x" * 10_000: 1},
    {"time": "1e1"},
    {"expver": "²"},
    {"param": "a" * 100_000},
]


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
def test_requests_that_make_no_sense(server: Deployment, request_: Any) -> None:
    begin = time.monotonic()
    response = server.call(
        "POST", "/requests/c1", json={"verb": "retrieve", "request": request_}, user="eve"
    )
    is_refused(response)
    assert time.monotonic() - begin < 5


BODIES = [
    b'{"verb": "retrieve", "request": "x", "request": "y"' ,
    b'{"verb": "retrieve", "request": ' + b"[" * 50_000,
    b'{"verb": "retrieve", "request": {"a": 1e999}}',
    b'{"verb": "retrieve", "request": {"a": NaN}}',
    b'{"verb": "retrieve", "request": {"a": -Infinity}}',
    b'{"verb": "retrieve", "request": "\\ud800"}',
    b'{"verb": "\\ud800", "request": "x"}',
    b'{"verb": "retrieve", "request": ["\\ud800"]}',
    b'{"\\ud800": 1, "\\ud800": 2}',
    b'{"verb": "retrieve", "request": {"a": ' + b"9" * 5000 + b"}}",
    b"\x00" * 100,
    b"\xef\xbb\xbf{}",
    "{\"verb\": \"retrieve\"}".encode("utf-16"),
    b'{"verb": "archive", "request": {"class": "rd"}, "url": 5}',
    b'{"verb": "archive", "request": {"class": "rd"}, "url": false}',
    b'{"verb": "archive", "request": {"class": "rd"}, "url": []}',
    b'{"verb": "archive", "request": {"class": "rd"}, "url": "file:///etc/passwd"}',
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_bodies_that_make_no_sense(server: Deployment, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    is_refused(server.call("POST", "/requests/c1", data=body, headers=headers, user="eve"))


def test_a_body_of_very_many_keys_does_not_stop_the_others(server: Deployment) -> None:
    pairs = [f'"{number:x}":1' for number in range(20_000)]
    body = "{" + ",".join(pairs) + ',"zz":1,"zz":2}'
    headers = {"Content-Type": "application/json"}
    begin = time.monotonic()
    is_refused(server.call("POST", "/requests/c1", data=body, headers=headers, user="eve"))
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize(
    "path",
    [
        "/requests/..%2f..%2fetc%2fpasswd",
        "/requests/%00",
        "/requests/%ff%fe",
        "/requests/" + "a" * 3000,
        "/requests/%F0%9F%8C%8D",
        "/requests/' OR 1=1 --",
        "/downloads/../../etc/passwd",
        "/downloads/x/y/z",
        "/downloads/%2e%2e%2fpassword",
        "/uploads/..",
        "/requests/a\\b",
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
def test_paths_that_lead_nowhere(server: Deployment, path: str, method: str) -> None:
    url = server.api + path
    prepared = requests.Request(method, url, auth=("joe", USERS["joe"])).prepare()
    prepared.url = url.replace(" ", "%20")
    with requests.Session() as session:
        is_refused(session.send(prepared, timeout=60, allow_redirects=False))


@pytest.mark.parametrize(
    "header",
    [
        "Basic " + "A" * 7000,
        ", ".join(["Basic bad"] * 200),
        "Basic " + base64.b64encode(b"joe").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
        "Basic " + base64.b64encode(b"joe\x00:x").decode(),
        "Bearer eyJhbGciOiJub25lIn0.e30.",
        "basic",
        ":" * 100,
        "=?utf-8?q?joe?=",
    ],
)
def test_credentials_that_are_none(server: Deployment, header: str) -> None:
    headers = {"Authorization": header}
    response = requests.get(f"{server.api}/user", headers=headers, timeout=60)
    assert response.status_code == 401


RAW = [
    b"garbage\r\n\r\n",
    b"GET /api/v1/test HTTP/9.9\r\n\r\n",
    b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /api/v1/test HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
    b"GET /api/v1/test HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    b"POST /api/v1/requests/c1 HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /api/v1/requests/c1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    b"POST /api/v1/requests/c1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    b"POST /api/v1/requests/c1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00" * 1000,
]


@pytest.mark.parametrize("data", RAW, ids=range(len(RAW)))
def test_what_is_no_http(server: Deployment, data: bytes) -> None:
    answer = talk(server, data, wait_s=3)
    assert not answer.startswith(b"HTTP/1.1 5") or b" 501 " in answer or b" 505 " in answer, answer
    assert b"Traceback" not in answer


def test_pipelined_requests_are_answered_one_by_one(server: Deployment) -> None:
    one = b"GET /api/v1/test HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /api/v1/test HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = talk(server, last)
    assert b"alive" in answer
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(one * 5 + last)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert received.count(b"Polytope server is alive") == 6


def test_a_body_that_is_cut_off_is_refused(server: Deployment) -> None:
    head = (
        f"POST /api/v1/requests/c1 HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {JOE}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    ).encode()
    before = server.call("GET", "/user").json()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head + b'{"verb": "retrieve", "request": "x"}')
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)
    assert server.call("GET", "/user").json() == before


def test_an_interrupted_upload_leaves_nothing_and_can_be_repeated(server: Deployment) -> None:
    response = server.call(
        "POST", "/requests/c1", json={"verb": "archive", "request": {"class": "rd"}}
    )
    location = response.headers["Location"]
    request_id = location.rpartition("/")[2]
    data = b"d" * 5_000_000
    checksum = hashlib.md5(data).hexdigest()
    staging = server.directory / "staging"
    files = {path for path in staging.rglob("*") if path.is_file()}
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(
            f"POST {urlsplit(location).path} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {JOE}\r\n"
            f"X-Checksum: {checksum}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data[:4_000_000]
        )
        until(lambda: {path for path in staging.rglob("*") if path.is_file()} - files)
    until(lambda: {path for path in staging.rglob("*") if path.is_file()} <= files)
    assert server.call("GET", location).json()["status"] == "uploading"
    headers = {"X-Checksum": checksum}
    assert server.call("POST", location, data=data, headers=headers).status_code == 202
    until(lambda: server.call("GET", location).status_code == 200)
    assert request_id in json.dumps(server.call("GET", "/requests").json())


@pytest.mark.parametrize(
    "value",
    [
        "bytes=0-" + "9" * 5000,
        "bytes=-0",
        "bytes=" + "0-1," * 1500,
        "bytes=9-8",
        "\xff",
        "x" * 7000,
    ],
)
def test_ranges_that_make_no_sense(server: Deployment, value: str) -> None:
    link = server.finished(server.submit("hello")).headers["Location"]
    response = requests.get(link, headers={"Range": value.encode("latin-1")}, timeout=60)
    assert response.status_code in (200, 206, 416)


def test_waiting_connections_do_not_shut_others_out(server: Deployment) -> None:
    idle = []
    try:
        for _ in range(300):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            connection.sendall(b"GET /api/v1/test HTT")
            idle.append(connection)
        assert server.call("GET", "/test").status_code == 200
    finally:
        for connection in idle:
            connection.close()


def test_a_flood_of_logins_keeps_no_known_user_waiting(tmp_path: Path) -> None:
    """Each refusal costs an Argon2 verification, of which few run at once."""
    hashed = PasswordHasher().hash("hash-pw")
    users = [{"uid": "joe", "password": USERS["joe"]}, {"uid": "hashed", "password": hashed}]
    realm = {"authenticators": {"local": {"type": "plain", "users": users}}}
    deployment = Deployment(
        tmp_path / "d", replaced={"authentication": {REALM: realm}}, names=("frontend",)
    )
    over = threading.Event()
    answers: Counter[int] = Counter()

    def flood(number: int) -> None:
        tries = 0
        while not over.is_set():
            tries += 1
            auth = (f"user-{number}-{tries}", "x")
            answers[requests.get(f"{server.api}/user", auth=auth, timeout=60).status_code] += 1

    with deployment as server:
        assert server.call("GET", "/user").status_code == 200
        threads = [threading.Thread(target=flood, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: answers.total() >= 40)
            for _ in range(5):
                begin = time.monotonic()
                assert server.call("GET", "/user").status_code == 200
                assert time.monotonic() - begin < 2
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert set(answers) <= {401, 503}
