"""Any bytes on a socket of the object store and of the frontend, which are the real processes.

Never a 5xx but 501 and 505, never an answer that does not come, never a file where none belongs, and never
bytes that are somebody else's. The logs hold no traceback, and the processes live on as small as they were.
"""

import base64
import json
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
import requests
from damage import damaged
from deployment import USERS, Deployment, free_port
from effort import tries
from hypothesis import assume, given
from hypothesis import strategies as st

pytestmark = pytest.mark.xdist_group("fuzz_http")

TOKEN = "object-store-token-of-fuzzing-8e2"
MARK = b"MARK-"
"""Begins the bytes of every object; what follows is whose they are."""
LATE_S = 5.0
GRACE_S = 10.0
"""For the end of an answer, or of a connection once we have nothing more to say."""
GROWTH_MIB = 96
NAMES = ("alpha-1.grib", "beta-1.grib", "uploads", "..x")
OBJECTS = NAMES[:3]

_STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3}) ", re.MULTILINE)
_OBJECT = re.compile(r"objects/(..?)/\1[A-Za-z0-9._-]*")
_UPLOAD = re.compile(r"uploads/[0-9a-f]{32}")
_MIB = 1 << 20


# --- the servers


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """A deployment with the object store, and what is in it."""

    deployment: Deployment
    store_port: int
    root: Path
    anns_link: str
    """Of her result, which begins with ``MARK-ann``; as path and query."""
    joes_link: str
    joes_id: str
    anns_id: str
    late: dict[bytes, float] = field(default_factory=dict, repr=False)
    """What was sent and not answered to the end, and when: what it does may still be seen for a while."""

    def logs(self) -> str:
        return self.deployment.log("object-store") + self.deployment.log("frontend")

    def resident_bytes(self, name: str) -> int:
        """Of a process and its children."""
        group = self.deployment.processes[name].pid
        total = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[2]) == group:
                    pages = int((stat.parent / "statm").read_text().split()[1])
                    total += pages * 4096
            except OSError:
                continue  # it has ended
        return total


def result_of(deployment: Deployment, user: str) -> tuple[str, str]:
    """The id of a request whose result begins with the mark of that user, and its link."""
    request_id = deployment.submit(f"MARK-{user}", user=user)
    location = deployment.finished(request_id, user=user).headers["Location"]
    assert requests.get(location, timeout=30).content.startswith(MARK + user.encode())
    parts = urlsplit(location)
    return request_id, f"{parts.path}?{parts.query}"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    directory = tmp_path_factory.mktemp("fuzz")
    port = free_port()
    section = {
        "port": port,
        "bind_to": "127.0.0.1",
        "root_dir": str(directory / "objects-of-fuzzing"),
        "token": TOKEN,
        "max_object": "1M",
    }
    (directory / "outside").write_bytes(MARK + b"outside")
    with Deployment(
        directory,
        replaced={"staging": {"polytope": section}},
        changes={"frontend": {"long_poll": 0, "max_request": "64K", "max_upload": "1M"}},
        names=("object-store", "frontend", "broker", "worker"),
    ) as deployment:
        for name in OBJECTS:
            put(port, name)
        anns_id, anns_link = result_of(deployment, "ann")
        joes_id, joes_link = result_of(deployment, "joe")
        running = Servers(
            deployment=deployment,
            store_port=port,
            root=directory / "objects-of-fuzzing",
            anns_link=anns_link,
            joes_link=joes_link,
            anns_id=anns_id,
            joes_id=joes_id,
        )
        before = {name: running.resident_bytes(name) for name in ("object-store", "frontend")}
        yield running
        for name, least in before.items():
            assert deployment.processes[name].poll() is None
            assert running.resident_bytes(name) - least < GROWTH_MIB * _MIB, name
        assert requests.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200
        assert requests.get(f"{deployment.url}/readyz", timeout=10).status_code == 200
        anns = requests.get(deployment.url + anns_link, timeout=10)
        assert anns.content.startswith(MARK + b"ann")
        log = running.logs()
        assert "Traceback" not in log
        assert "unexpected error" not in log
        assert TOKEN not in log
        assert not [word for word in USERS.values() if word in log]


def put(port: int, name: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = f"http://127.0.0.1:{port}/{name}"
    data = MARK + name.encode() + b"." * 1000
    assert requests.put(url, data=data, headers=headers, timeout=30).status_code == 201


# --- talking


def talk(port: int, data: bytes, *, patience_s: float) -> bytes:
    """What comes back, until there is a whole answer or the server closes.

    If nothing comes for a while the server may wait for more: it is told that there is none.
    """
    received = b""
    end = time.monotonic() + GRACE_S
    with socket.create_connection(("127.0.0.1", port), timeout=patience_s) as connection:
        try:
            connection.sendall(data)
        except ConnectionError:
            pass  # it has heard enough; what it says is still to be read
        except TimeoutError:
            raise AssertionError("the server neither reads nor closes") from None
        while not is_whole(received):
            try:
                chunk = connection.recv(65536)
            except TimeoutError:
                assert time.monotonic() < end, ("no answer and no end", received[:200])
                try:
                    connection.shutdown(socket.SHUT_WR)
                except OSError:
                    break
                connection.settimeout(GRACE_S)
                continue
            except ConnectionError:
                break
            if not chunk:
                break
            received += chunk
    return received


def is_whole(received: bytes) -> bool:
    """Whether one answer, at least, is there with all its body."""
    head, end, rest = received.partition(b"\r\n\r\n")
    if not end or b" 100 " in head.partition(b"\r\n")[0]:
        return False
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return length is not None and len(rest) >= int(length[1])


def is_no_fault(answer: bytes) -> None:
    for status in map(int, _STATUS.findall(answer)):
        assert 100 <= status < 500 or status in (501, 505), answer[:1000]
    assert b"Traceback" not in answer
    assert b'File "' not in answer


# --- what is sent

TAME_SEGMENTS = st.sampled_from(
    [
        *NAMES,
        "..%2foutside",
        "%2e%2e",
        "%00",
        "gamma.bin",
        "a" * 199,
        "%61lpha-1.grib",
        "%252e",
        "new",
        "stale",
        "c1",
        "-",
    ]
)
SEGMENTS = TAME_SEGMENTS | st.sampled_from(
    [*NAMES, "", ".", "..", "%2e%2e", "..%2f..%2foutside", "%2fetc%2fpasswd", "..\\outside", "%5c..",
    "%00", "%ff",
     "%c0%ae%c0%ae", "%", "%zz", "%252e%252e", "outside", "objects", "new", "stale", "healthz", "readyz",
     "al",
     "a" * 199, "a" * 250, "%61lpha-1.grib", "alpha-1.grib%00", "alpha-1.grib/", "\u00e9", "0" * 32, "~",
     "*", ";x",
     "api", "v1", "requests", "downloads", "collections", "user", "test", "auth", "keys", "all", "c1",
     "ui", "-"]
) | st.text(st.characters(max_codepoint=255), max_size=6)  # fmt: skip
TAME_QUERIES = st.sampled_from(
    ["", "?", "?limit=-1", "?limit=1&limit=2", "?limit=" + "9" * 5000, "?limit=x",
    "?prefix=..&after=%00", "?prefix=a",
     "?offset=0", "?offset=-1", "?offset=" + "9" * 30, "?name=../outside&size=0",
     "?name=beta-1.grib&size=0",
     "?name=%00&size=0", "?name=a&name=b&size=1", "?size=1", "?age=0", "?age=nan", "?age=1e400", "?age=-1",
     "?signature=x&expires=1", "?signature=%ff&expires=%ff", "?signature=a&signature=b",
     "?expires=" + "9" * 15,
     "?a" * 300, "?%", "?=&=&="]
)  # fmt: skip
QUERIES = TAME_QUERIES | st.text(st.characters(max_codepoint=255), max_size=8).map("?{}".format)
TAME_LINES = st.sampled_from(
    [
        "Connection: close",
        "Range: bytes=0-3",
        "Range: bytes=-5",
        "Range: bytes=5000-",
        "Range: bytes=0-1,3-4",
        "Range: bytes=9-0",
        'If-Range: "x"',
        "If-None-Match: *",
        "Expect: 100-continue",
        "Content-Type: application/json",
        "Content-Type: ;;",
        "X-Checksum: d41d8cd98f00b204e9800998ecf8427e",
        "Idempotency-Key: a",
        "Idempotency-Key: " + "k" * 300,
        "Accept: x",
        "Origin: null",
        "Upgrade: websocket\r\nConnection: Upgrade",
        "X-Forwarded-For: ::1%x",
        'Forwarded: for="[',
        "Cookie: a=b",
    ]
)
LINES = TAME_LINES | st.sampled_from(
    ["Host: x", "Host: ", "Host: a, b", "Host: [", "Host: x\r\nHost: y", "Connection: close",
    "Connection: keep-alive",
     "Range: bytes=0-3", "Range: bytes=-5", "Range: bytes=5000-", "Range: bytes=0-1,3-4",
     "Range: bytes=9-0",
     "Range: bytes=-0", "Range: " + "9" * 5000, "If-Range: \"x\"", "If-None-Match: *",
     "If-Modified-Since: x",
     "Expect: 100-continue", "Expect: x", "Upgrade: websocket\r\nConnection: Upgrade", "Upgrade: h2c",
     "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
     "Transfer-Encoding: chunked",
     "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: x", "Transfer-Encoding: chunked, chunked",
     "Content-Length: 5", "Content-Length: -1", "Content-Length: +5", "Content-Length: 5, 5",
     "Content-Length: x",
     "Content-Length: " + "9" * 30, "Content-Length: " + "9" * 5000, "Content-Length: 0",
     "Content-Length: \u00b2",
     "Content-Type: application/json", "Content-Type: text/plain", "Content-Type: ;;",
     "Content-Encoding: gzip",
     "X-Checksum: d41d8cd98f00b204e9800998ecf8427e", "X-Checksum: \xff", "Idempotency-Key: a",
     "Idempotency-Key: ",
     "Idempotency-Key: " + "k" * 300, "Idempotency-Key: \xff\x7f", "Accept: x",
     "Accept-Encoding: *;q=\xff", "Origin: null",
     "X-Forwarded-For: ::1%x", "X-Forwarded-Host: a\tb", "X-Forwarded-Proto: x", "Forwarded: for=\"[",
     "Cookie: a=b;\xff",
     " folded", "no colon", ": no name", "A b: c", "X: " + "y" * 9000, "\x00: x", "X: \x00", "X:\x0b"]
) | st.builds("{}: {}".format, st.sampled_from(["X", "Range", "Authorization", "If-Range", "Accept"]),
              st.text(st.characters(max_codepoint=255), max_size=8))  # fmt: skip
TAME_METHODS = st.sampled_from(["GET"] * 4 + ["HEAD", "PUT", "PUT", "POST", "POST", "DELETE"])
METHODS = TAME_METHODS | st.sampled_from(
    ["OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "G T", "", "PRI", "\x00", "M-SEARCH"]
)
VERSIONS = st.sampled_from(
    ["HTTP/1.1"] * 8
    + ["HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.10", "http/1.1", "", "HTTP/1.1 x"]
)
JSON_BODIES = st.builds(
    lambda verb, request: json.dumps({"verb": verb, "request": request}).encode(),
    st.sampled_from(["retrieve", "archive", None]),
    st.sampled_from(["text", {"class": "rd"}, {"a": "\ud800"}, 1]),
)
CHUNKED = st.sampled_from(
    [b"5\r\nMARK-\r\n0\r\n\r\n", b"5;x=y\r\nabcde\r\n0\r\nX: y\r\n\r\n", b"fffffffffffffffff\r\n",
    b"-1\r\nx\r\n",
     b"5\r\nab", b"0x5\r\nabcde\r\n0\r\n\r\n", b"\r\n", b"5\nabcde\n0\n\n",
     b"0\r\n" + b"X: y\r\n" * 500 + b"\r\n"]
)  # fmt: skip
BODIES = st.just(b"") | JSON_BODIES | CHUNKED | st.binary(max_size=30) | st.just(b"x" * 200_000)
PIECES = [
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b": ",
    b"/",
    b"%2f",
    b"../",
    b"?",
    b"\r",
    b"\t",
    b"HTTP/1.1",
    b"%00",
    b"\xf0\x9f",
]


def requests_of(
    tame_targets: st.SearchStrategy[str],
    targets: st.SearchStrategy[str],
    credentials: Sequence[str],
) -> st.SearchStrategy[bytes]:
    """HTTP requests, well formed or nearly so, or anything else."""

    def written(
        method: str,
        target: str,
        version: str,
        lines: list[str],
        credential: str,
        body: bytes,
        announces: bool,
    ) -> bytes:
        lines = ["Host: x", *([f"Authorization: {credential}"] if credential else []), *lines]
        if announces:
            lines.append(f"Content-Length: {len(body)}")
        head = "".join(f"{line}\r\n" for line in (f"{method} {target} {version}", *lines))
        return head.encode("latin-1", "replace") + b"\r\n" + body

    credential = st.sampled_from(["", *credentials])
    tame = st.builds(
        written,
        TAME_METHODS,
        tame_targets,
        st.just("HTTP/1.1"),
        st.lists(TAME_LINES, max_size=2),
        credential,
        BODIES,
        st.just(True),
    )
    json_tame = st.builds(
        written,
        st.just("POST"),
        tame_targets,
        st.just("HTTP/1.1"),
        st.just(["Content-Type: application/json"]),
        credential,
        JSON_BODIES,
        st.just(True),
    )
    wild = st.builds(
        written,
        METHODS,
        targets,
        VERSIONS,
        st.lists(LINES, max_size=3),
        credential,
        BODIES,
        st.booleans(),
    )
    several = st.lists(tame | wild, min_size=2, max_size=3).map(b"".join)
    hardly_http = st.one_of(
        wild, wild, damaged(tame, PIECES), damaged(wild, PIECES), several, st.binary(max_size=80)
    )
    # what is no HTTP is refused before anything of ours sees it
    return st.one_of(tame, tame, tame, tame, json_tame, hardly_http.map(bytes))


def path_of(segments: list[str]) -> str:
    return "/" + "/".join(segments)


def spoken(data: bytes) -> bytes:
    """All that a request may mean, once and twice decoded."""
    once = unquote_to_bytes(data)
    return data + once + unquote_to_bytes(once)


PATIENCE_S = 0.25


# --- the object store

TAME_STORE_TARGETS = st.one_of(
    TAME_SEGMENTS.map("/{}".format),
    st.builds("{}{}".format, TAME_SEGMENTS.map("/{}".format), TAME_QUERIES),
    st.builds("{}{}".format, st.just("/") | TAME_SEGMENTS.map("/uploads/{}".format), TAME_QUERIES),
    st.builds("/uploads/{}{}".format, st.sampled_from(["new", "stale", "0" * 32]), TAME_QUERIES),
)
STORE_TARGETS = TAME_STORE_TARGETS | st.builds(
    "{}{}{}".format,
    st.sampled_from([""] * 8 + ["http://x", "//x", "*", "x:80", " "]),
    st.lists(SEGMENTS, max_size=3).map(path_of) | st.sampled_from(NAMES).map("/{}".format),
    QUERIES,
)
STORE_CREDENTIALS = [
    *([f"Bearer {TOKEN}"] * 8),
    f"bearer  {TOKEN} ",
    f"Basic {TOKEN}",
    f"Bearer {TOKEN[:-1]}",
    "Bearer \xff",
    "Bearer",
]


def objects(root: Path) -> dict[str, bytes]:
    """Each object's path and how it begins. All other files are uploads, and lie where they belong."""
    found = {}
    for path in root.rglob("*"):
        if path.is_dir():
            continue
        name = str(path.relative_to(root))
        assert _OBJECT.fullmatch(name) or _UPLOAD.fullmatch(name), name
        if _OBJECT.fullmatch(name):
            with suppress(FileNotFoundError):  # taken away just now
                found[name] = path.read_bytes()[:20]
    return found


@given(data=requests_of(TAME_STORE_TARGETS, STORE_TARGETS, STORE_CREDENTIALS))
@tries(300)
def test_bytes_to_the_object_store(servers: Servers, data: bytes) -> None:
    directory = servers.deployment.directory
    before = objects(servers.root)
    answer = talk(servers.store_port, data, patience_s=PATIENCE_S)
    is_no_fault(answer)
    for name in OBJECTS:
        if MARK + name.encode() in answer:
            assert TOKEN.encode() in data
            assert name.encode() in spoken(data)
    if TOKEN.encode() not in data:
        assert answer.count(MARK) <= data.count(MARK)
    assert MARK + b"outside" not in answer

    after = objects(servers.root)
    changed = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    now = time.monotonic()
    for sent in [sent for sent, at in servers.late.items() if now - at >= LATE_S]:
        del servers.late[sent]
    may = [data, *servers.late]
    for path in changed:
        name = path.rpartition("/")[2].encode()
        assert any(TOKEN.encode() in each and name in spoken(each) for each in may), path
        (servers.root / path).unlink(missing_ok=True)
    if not is_whole(answer) or data.count(b"HTTP/") > 1:
        servers.late[data] = now
    for name in OBJECTS:
        path = f"objects/{name[:2]}/{name}"
        if path in changed or path not in after:
            put(servers.store_port, name)
    assert (directory / "outside").read_bytes() == MARK + b"outside"


# --- the frontend

API = "/api/v1"


def login(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


FRONTEND_CREDENTIALS = [
    *([login("joe", USERS["joe"])] * 8),
    f"{login('joe', USERS['joe'])}, Basic x",
    "Basic \xff",
    "Basic =",
    "Bearer x",
    ",,,",
]


def frontend_requests(servers: Servers) -> st.SearchStrategy[bytes]:
    ids = st.sampled_from([servers.joes_id, servers.anns_id])
    damaged_links = damaged(
        st.sampled_from([servers.joes_link, servers.anns_link.partition("?")[0]]).map(str.encode),
        [b"&", b"=", b"%", b"0", b"a"],
    ).map(lambda link: link.decode("latin-1"))
    known = st.builds(
        "{}{}{}".format,
        st.sampled_from([f"{API}/requests/", f"{API}/downloads/", f"{API}/uploads/", f"{API}/"]),
        ids | TAME_SEGMENTS,
        TAME_QUERIES | st.sampled_from(["?" + servers.joes_link.partition("?")[2]]),
    )
    fixed = st.sampled_from(
        ["/", "/openapi.json", "/healthz", "/ui/..", f"{API}/user", f"{API}/collections", f"{API}/requests",
         f"{API}/requests/c1", f"{API}/requests/all", f"{API}/auth/keys", f"{API}/openapi"]
    )  # fmt: skip
    anything = st.builds("{}{}".format, st.lists(SEGMENTS, max_size=4).map(path_of), QUERIES)
    tame = st.just(servers.joes_link) | known | fixed
    wild = damaged_links | anything | anything.map(lambda path: API + path)
    return requests_of(tame, tame | wild, FRONTEND_CREDENTIALS)


@given(draw=st.data())
@tries(300)
def test_bytes_to_the_frontend(servers: Servers, draw: st.DataObject) -> None:
    data = draw.draw(frontend_requests(servers))
    # joe revoking what he has is no fault, but leaves nothing to look for
    assume(not (b"DELETE" in data and servers.joes_id.encode() in spoken(data)))
    answer = talk(servers.deployment.port, data, patience_s=PATIENCE_S)
    is_no_fault(answer)
    assert MARK + b"ann" not in answer
    assert not re.search(servers.anns_id.encode() + rb"[^\s\"]*signature=", answer)
    if MARK + b"joe" in answer:
        # the last letters may be others that mean the same
        has_password = login("joe", USERS["joe"])[len("Basic ") : -4].encode() in data
        signature = servers.joes_link.rpartition("=")[2].encode()
        assert has_password or signature in spoken(data)
    assert MARK + b"outside" not in answer
    outside = servers.deployment.directory / "outside"
    assert outside.read_bytes() == MARK + b"outside"
    objects(servers.root)
