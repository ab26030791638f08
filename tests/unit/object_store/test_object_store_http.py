"""The object store as its clients meet it: tokens, links, ranges, cut transfers."""

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from polytope_server.observability.health import ask
from polytope_server.request import GRIB
from polytope_server.signatures import SignedLinks
from polytope_server.staging.wire import PART_BYTES, signing_key

TOKEN = "token-of-the-store-for-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
MIB = 1 << 20


class Store:
    """A running object store."""

    def __init__(self, directory: Path, **options: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self.root = directory / "root"
        self.url = f"http://127.0.0.1:{self.port}"
        section = {"port": self.port, "root_dir": str(self.root), "token": TOKEN, **options}
        file = directory / "config.yaml"
        file.write_text(json.dumps({"staging": {"polytope": section}}))
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "polytope_server.object_store", "-f", str(file)], stderr=log
            )
        until(self._answers)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return requests.get(f"{self.url}/healthz", timeout=5).ok
        except requests.ConnectionError:
            return False

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        """With the token, unless other headers are given."""
        return requests.request(
            method, f"{self.url}{path}", **{"headers": BEARER, "timeout": 20, **options}
        )

    def put(self, name: str, data: bytes) -> None:
        assert self.call("PUT", f"/{name}", data=data).status_code == 201

    def names(self) -> list[str]:
        return [each["name"] for each in self.call("GET", "/").json()["objects"]]

    def files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file()]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def until(condition: Callable[[], Any], *, deadline_s: float = 20.0) -> Any:
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"did not come true within {deadline_s} s"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    running = Store(tmp_path_factory.mktemp("store"), max_object="8M")
    yield running
    running.stop()


@pytest.fixture
def store(shared: Store) -> Store:
    for path in shared.files():
        path.unlink()
    return shared


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    started: list[Store] = []

    def begin(**options: Any) -> Store:
        started.append(Store(tmp_path, **options))
        return started[-1]

    yield begin
    for each in started:
        each.stop()


def link(name: str, *, expires_in_s: int = 60, token: str = TOKEN, **extra: str) -> str:
    links = SignedLinks(signing_key(token))
    return f"/{name}?" + links.query(
        name,
        expires_at=int(time.time()) + expires_in_s,
        extra=extra or {"name": "id.grib", "type": GRIB},
    )


ANYTHING = [
    ("GET", "/"),
    ("GET", "/a"),
    ("HEAD", "/a"),
    ("PUT", "/a"),
    ("DELETE", "/a"),
    ("POST", "/uploads/new"),
    ("PUT", "/uploads/00000000000000000000000000000000?offset=0"),
    ("POST", "/uploads/00000000000000000000000000000000?name=a&size=0"),
    ("DELETE", "/uploads/00000000000000000000000000000000"),
    ("DELETE", "/uploads/stale?age=0"),
]


@pytest.mark.parametrize(("method", "path"), ANYTHING)
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer ä"],
)
def test_nothing_is_done_without_the_token(
    store: Store, method: str, path: str, authorization: str | None
) -> None:
    store.put("a", b"data")
    headers = {} if authorization is None else {"Authorization": authorization.encode()}
    answer = store.call(method, path, headers=headers, data=b"x" if method == "PUT" else None)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    if method != "HEAD":
        assert list(answer.json()) == ["message"]
    assert store.call("GET", "/a").content == b"data"
    assert store.names() == ["a"]


def test_who_has_no_token_is_told_so_at_once_whatever_body_is_announced(store: Store) -> None:
    with socket.create_connection(("127.0.0.1", store.port), timeout=4) as client:
        client.sendall(b"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(("method", "path"), [each for each in ANYTHING if each[0] != "HEAD"])
def test_a_link_to_an_object_opens_nothing_else(store: Store, method: str, path: str) -> None:
    store.put("b", b"data")
    query = link("b").partition("?")[2]
    answer = store.call(method, path + ("&" if "?" in path else "?") + query, headers={})
    assert answer.status_code == (403 if (method, path) == ("GET", "/a") else 401)
    assert store.names() == ["b"]


def test_health_is_open_to_all(store: Store) -> None:
    alive = store.call("GET", "/healthz", headers={})
    assert (alive.status_code, alive.json()) == (200, {"status": "alive"})
    ready = store.call("GET", "/readyz", headers={})
    assert (ready.status_code, ready.json()) == (200, {"staging": "ok"})
    host, _, port = store.url.removeprefix("http://").rpartition(":")
    assert ask(host, int(port)) == (True, {"staging": "ok"})


def test_every_answer_has_the_headers_that_protect_browsers(store: Store) -> None:
    store.put("a", b"data")
    for path in ("/a", "/missing", "/", "/healthz", "/no/such/path"):
        headers = store.call("GET", path).headers
        assert headers["Cache-Control"] == "no-cache, no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-XSS-Protection"] == "1; mode=block"


def test_a_link_gives_the_headers_that_clients_go_by(store: Store) -> None:
    store.put("id-1.grib", b"GRIB" * 1000)
    for method in ("GET", "HEAD"):
        answer = store.call(method, link("id-1.grib"), headers={"Accept-Encoding": "gzip, br"})
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "application/x-grib"
        assert answer.headers["Content-Length"] == "4000"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="id.grib"'
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert "Content-Encoding" not in answer.headers
        assert "Transfer-Encoding" not in answer.headers
        assert "Content-Range" not in answer.headers


def test_a_good_link_is_good_whatever_else_is_said(store: Store) -> None:
    store.put("a", b"data")
    answer = store.call("GET", link("a"), headers={"Authorization": "Basic am9lOmpvZQ=="})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        lambda url: url.replace("/a?", "/b?"),
        lambda url: url.replace("id.grib", "id.html"),
        lambda url: url.replace("x-grib", "octet-stream"),
        lambda url: url.replace("expires=1", "expires=2"),
        lambda url: url + "&extra=1",
        lambda url: url + "&name=other",
        lambda url: url + "x",
        lambda url: url[:-1],
        lambda url: url.partition("&")[0] + "&signature=",
        lambda url: link("a", token="another-token-altogether"),
    ],
)
def test_a_link_that_was_changed_is_refused(store: Store, change: Callable[[str], str]) -> None:
    store.put("a", b"data")
    store.put("b", b"secret")
    answer = store.call("GET", change(link("a")), headers={})
    assert answer.status_code == 403
    assert list(answer.json()) == ["message"]


def test_a_link_that_has_expired_says_so(store: Store) -> None:
    store.put("a", b"data")
    answer = store.call("GET", link("a", expires_in_s=-1), headers={})
    assert answer.status_code == 410
    assert "expired" in answer.json()["message"]


def test_a_good_link_to_what_is_not_there_is_404(store: Store) -> None:
    answer = store.call("GET", link("missing"), headers={})
    assert answer.status_code == 404
    assert list(answer.json()) == ["message"]


@pytest.mark.parametrize(
    ("header", "status", "content", "content_range"),
    [
        ("bytes=0-", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=3-", 206, b"3456789", "bytes 3-9/10"),
        ("bytes=3-5", 206, b"345", "bytes 3-5/10"),
        ("bytes=-4", 206, b"6789", "bytes 6-9/10"),
        ("bytes=8-100", 206, b"89", "bytes 8-9/10"),
        ("bytes=5-3", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
        ("rubbish", 200, b"0123456789", None),
    ],
)
def test_ranges(
    store: Store, header: str, status: int, content: bytes, content_range: str | None
) -> None:
    store.put("a", b"0123456789")
    for method in ("GET", "HEAD"):
        answer = store.call(method, link("a"), headers={"Range": header})
        assert answer.status_code == status
        assert answer.headers["Content-Length"] == str(len(content))
        assert answer.headers.get("Content-Range") == content_range
        assert answer.content == (content if method == "GET" else b"")


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_a_range_behind_the_end_is_416(store: Store, header: str) -> None:
    store.put("a", b"0123456789")
    answer = store.call("GET", "/a", headers={**BEARER, "Range": header})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == "bytes */10"
    assert list(answer.json()) == ["message"]


def test_a_range_of_what_was_replaced_meanwhile_is_all_of_the_new(store: Store) -> None:
    store.put("a", b"0123456789")
    etag = store.call("HEAD", "/a").headers["ETag"]
    headers = {**BEARER, "Range": "bytes=5-", "If-Range": etag}
    assert store.call("GET", "/a", headers=headers).status_code == 206
    store.put("a", b"abcdefghij")
    answer = store.call("GET", "/a", headers=headers)
    assert (answer.status_code, answer.content) == (200, b"abcdefghij")


def test_a_range_goes_by_the_digest_in_the_link(store: Store) -> None:
    data = b"0123456789"
    store.put("a", data)
    sha256 = hashlib.sha256(data).hexdigest()
    good = link("a", sha256=sha256)
    headers = {"Range": "bytes=5-", "If-Range": f'"{sha256}"'}
    answer = store.call("GET", good, headers=headers)
    assert (answer.status_code, answer.content) == (206, b"56789")
    assert answer.headers["Repr-Digest"].startswith("sha-256=:")
    headers["If-Range"] = f'"{"0" * 64}"'
    assert store.call("GET", good, headers=headers).status_code == 200
    changed = good.replace(sha256, "0" * 64)
    assert store.call("GET", changed, headers={}).status_code == 403


def test_deleting_twice_is_no_error(store: Store) -> None:
    store.put("a", b"data")
    assert [store.call("DELETE", "/a").status_code for _ in range(2)] == [204, 204]
    assert store.call("GET", "/a").status_code == 404


@pytest.mark.parametrize(
    "path", ["/..", "/.hidden", "/a%2Fb", "/%2e%2e%2fetc", "/a%00b", "/%C3%A4"]
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_names_that_cannot_be_are_refused(store: Store, method: str, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", store.port, timeout=20)
    connection.request(method, path, body=b"x" if method == "PUT" else None, headers=BEARER)
    answer = connection.getresponse()
    assert answer.status in (400, 404, 405)
    assert list(json.loads(answer.read())) == ["message"]
    connection.close()
    assert store.files() == []


def test_an_upload_that_is_cut_off_leaves_nothing(store: Store) -> None:
    with socket.create_connection(("127.0.0.1", store.port), timeout=20) as connection:
        connection.sendall(
            b"PUT /a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
            + TOKEN.encode()
            + b"\r\nContent-Length: 4000000\r\n\r\n"
            + b"x" * 2_500_000
        )
        until(store.files)
    until(lambda: not store.files())
    assert store.names() == []


def test_a_part_that_is_cut_off_is_taken_back(store: Store) -> None:
    upload = store.call("POST", "/uploads/new").json()["upload"]
    store.call("PUT", f"/uploads/{upload}?offset=0", data=b"0123456789").raise_for_status()
    (file,) = store.files()
    with socket.create_connection(("127.0.0.1", store.port), timeout=20) as connection:
        connection.sendall(
            f"PUT /uploads/{upload}?offset=10 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Length: 4000000\r\n\r\n".encode()
            + b"x" * 2_500_000
        )
        until(lambda: file.stat().st_size > 10)
        while_written = store.call("PUT", f"/uploads/{upload}?offset=10", data=b"y")
        assert while_written.status_code == 503
    until(lambda: file.stat().st_size == 10)
    assert store.call("POST", f"/uploads/{upload}?name=a&size=11").status_code == 409
    assert store.call("POST", f"/uploads/{upload}?name=a&size=10").status_code == 201
    assert store.call("GET", "/a").content == b"0123456789"


def test_a_part_that_is_sent_again_replaces_itself(store: Store) -> None:
    upload = store.call("POST", "/uploads/new").json()["upload"]
    for offset, data in ((0, b"01234"), (5, b"xxxxxxx"), (5, b"56789")):
        answer = store.call("PUT", f"/uploads/{upload}?offset={offset}", data=data)
        assert answer.json() == {"size_bytes": offset + len(data)}
    assert store.call("PUT", f"/uploads/{upload}?offset=11", data=b"z").status_code == 409
    store.call("POST", f"/uploads/{upload}?name=a&size=10").raise_for_status()
    assert store.call("GET", "/a").content == b"0123456789"
    assert store.call("POST", f"/uploads/{upload}?name=b&size=10").status_code == 404


@pytest.mark.parametrize("name", ["..", "../a", "/etc/passwd", ".a", ""])
def test_an_upload_cannot_end_outside(store: Store, name: str) -> None:
    upload = store.call("POST", "/uploads/new").json()["upload"]
    answer = store.call("POST", f"/uploads/{upload}", params={"name": name, "size": 0})
    assert answer.status_code == 400
    assert store.names() == []


@pytest.mark.parametrize("upload", ["0" * 32, "x", "%2e%2e%2fobjects", "A" * 32])
def test_uploads_that_were_never_begun_are_not_there(store: Store, upload: str) -> None:
    assert store.call("PUT", f"/uploads/{upload}?offset=0", data=b"x").status_code == 404
    assert store.files() == []


def test_a_body_without_a_length_is_refused(store: Store) -> None:
    answer = store.call("PUT", "/a", data=iter([b"x"]))
    assert answer.status_code == 400
    assert "Content-Length" in answer.json()["message"]
    assert store.files() == []


def test_objects_have_a_largest_size(store: Store) -> None:
    assert store.call("PUT", "/a", data=b"x" * (8 * MIB)).status_code == 201
    upload = store.call("POST", "/uploads/new").json()["upload"]
    for offset in (0, PART_BYTES):
        path = f"/uploads/{upload}?offset={offset}"
        assert store.call("PUT", path, data=b"x" * PART_BYTES).status_code == 200
    answer = store.call("PUT", f"/uploads/{upload}?offset={2 * PART_BYTES}", data=b"x")
    assert answer.status_code == 413


@pytest.mark.parametrize("query", ["limit=-1", "limit=100000", "limit=x"])
def test_pages_have_a_sane_length(store: Store, query: str) -> None:
    answer = store.call("GET", f"/?{query}")
    assert answer.status_code == 400
    assert list(answer.json()) == ["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/a/b/c", 404), ("POST", "/", 405)])
def test_wrong_paths_and_methods_have_the_shape_of_every_error(
    store: Store, method: str, path: str, status: int
) -> None:
    answer = store.call(method, path)
    assert answer.status_code == status
    assert list(answer.json()) == ["message"]


def test_clients_that_go_away_leave_no_file_open(store: Store) -> None:
    store.put("a", b"x" * (8 * MIB))
    (worker,) = (
        Path(f"/proc/{store.process.pid}/task/{store.process.pid}/children").read_text().split()
    )
    object_ = str(next(iter(store.files())))

    def opened() -> int:
        descriptors = Path(f"/proc/{worker}/fd")
        return sum(os.readlink(each) == object_ for each in descriptors.iterdir() if each.exists())

    held = []
    for _ in range(30):
        answer = store.call("GET", "/a", stream=True)
        next(answer.iter_content(1))
        held.append(answer)
    assert opened() > 0
    for answer in held:
        answer.close()
    until(lambda: opened() == 0)
    assert "Traceback" not in store.log


def test_no_secret_is_logged(store: Store) -> None:
    store.put("a", b"data")
    path = link("a")
    store.call("GET", path, headers={})
    store.call("GET", "/a", headers={"Authorization": "Bearer almost-the-token"})
    for secret in (TOKEN, path.rpartition("signature=")[2], "almost-the-token"):
        assert secret not in store.log


def test_a_download_is_finished_after_sigterm(start: Callable[..., Store]) -> None:
    store = start()
    store.put("a", b"x" * (64 * MIB))
    answer = store.call("GET", "/a", stream=True)
    chunks = answer.iter_content(MIB)
    size = len(next(chunks))
    store.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    size += sum(len(chunk) for chunk in chunks)
    assert size == 64 * MIB
    assert store.process.wait(10) == 0


def test_many_downloads_need_no_more_threads_than_there_are(start: Callable[..., Store]) -> None:
    store = start(threads=2)
    data = os.urandom(MIB) * 8
    store.put("a", data)
    whole: list[bool] = []

    def download() -> None:
        whole.append(store.call("GET", "/a").content == data)

    readers = [threading.Thread(target=download) for _ in range(20)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert whole == [True] * 20


def test_another_staging_is_refused_with_what_would_be_right(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"staging": {"local": {"root_dir": str(tmp_path)}}}))
    ended = subprocess.run(
        [sys.executable, "-m", "polytope_server.object_store", "-f", str(file)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
    )
    assert ended.returncode == 78
    assert "polytope: {root_dir: /data, token: ${STORE_TOKEN}}" in ended.stderr
