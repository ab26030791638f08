"""Calls of identity services: bounded, without cookies and redirects, and without secrets in errors."""

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from services.web import Reply, WebServer

from polytope_server.authentication.outgoing import MAX_ANSWER_BYTES, PAUSE_S, Service
from polytope_server.errors import BackendUnavailable, ConfigurationError


class Echo(WebServer):
    """Answers with what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Mapping[str, str], bytes]] = []

    def reply(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        self.seen.append((target, headers, body))
        return 200, {"Set-Cookie": "session=alice; Path=/"}, b'{"a": 1}'


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        yield server


def service(*, timeout_s: float = 5.0, **options: object) -> Service:
    return Service("some service", timeout_s=timeout_s, **options)  # type: ignore[arg-type]


def test_an_answer_is_status_headers_and_body(echo: Echo) -> None:
    answer = service().call("GET", f"{echo.url}/x", params={"token": "a b&c=d/é%"})
    assert (answer.status, answer.json(), answer.headers["set-cookie"][:7]) == (
        200,
        {"a": 1},
        "session",
    )
    assert echo.seen[0][0] == "/x?token=a+b%26c%3Dd%2F%C3%A9%25"
    assert "{" not in repr(answer)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'"text"', b"null"])
def test_what_is_no_json_object_is_none(echo: Echo, body: bytes) -> None:
    echo.forced = (200, {}, body)
    assert service().call("GET", echo.url).json() is None


def test_cookies_of_one_user_do_not_come_with_the_next(echo: Echo) -> None:
    asked = service()
    for _ in range(2):
        asked.call("POST", echo.url, form={"user": "x"})
    assert not any("cookie" in headers for _, headers, _ in echo.seen)


def test_redirects_are_not_followed(echo: Echo) -> None:
    with Echo() as elsewhere:
        echo.forced = (307, {"Location": elsewhere.url}, b"")
        with pytest.raises(BackendUnavailable, match="elsewhere"):
            service().call("POST", echo.url, form={"password": "hunter2"})
        assert elsewhere.hits == 0


def test_the_environment_changes_nothing(
    echo: Echo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert service().call("GET", echo.url).status == 200
    assert "authorization" not in echo.seen[0][1]


def test_a_proxy_that_is_configured_is_used(echo: Echo) -> None:
    service(proxy=echo.url).call("GET", "http://api.example.invalid/who")
    assert echo.seen[0][0] == "http://api.example.invalid/who"


def test_slow_services_are_away_in_time(echo: Echo) -> None:
    echo.delay_s = 30
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match=r"no answer within 0\.2 seconds"):
        service(timeout_s=0.2).call("GET", echo.url)
    assert time.monotonic() - began < 3
    assert echo.hits == 1  # who is slow is not asked twice


_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
SLOWLY = {
    "a body": (_OK + b"Content-Length: 100000\r\n\r\n", b"x"),
    "a status line": (b"HTTP/1.1 200 ", b"x"),
    "a header": (_OK + b"X: ", b"x"),
    "headers": (_OK, b"X: x\r\n"),
    "answers that are none yet": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "pieces": (_CHUNKED, b"1\r\nx\r\n"),
    "the length of a piece": (_CHUNKED + b"1;", b"x"),
    "what comes behind the pieces": (_CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: x\r\n"),
}
"""What comes at once, and what comes again and again then."""


@pytest.mark.parametrize("where", SLOWLY)
@pytest.mark.parametrize("tunnels", [False, True])
def test_an_answer_that_comes_byte_by_byte_is_given_up(where: str, tunnels: bool) -> None:
    first, again = SLOWLY[where]
    ended = threading.Event()

    def drip(listener: socket.socket) -> None:
        while not ended.is_set():
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1000)
                connection.sendall(first)
                while not ended.wait(0.02):
                    connection.sendall(again)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        began = time.monotonic()
        asked = service(timeout_s=0.3, proxy=url if tunnels else None)
        with pytest.raises(BackendUnavailable):
            asked.call("GET", "https://api.example.invalid" if tunnels else url)
        assert time.monotonic() - began < 1.0
        ended.set()
        thread.join(10)


def test_answers_are_bounded(echo: Echo) -> None:
    echo.forced = (200, {}, b" " * (MAX_ANSWER_BYTES + 1))
    with pytest.raises(BackendUnavailable, match="longer"):
        service().call("GET", echo.url)
    echo.forced = (200, {"Content-Encoding": "gzip"}, b"x")
    with pytest.raises(BackendUnavailable, match="encoding"):
        service().call("GET", echo.url)


def test_a_connection_that_ends_under_a_call_is_opened_again_once() -> None:
    """As a kept one does when the service closes it at that moment."""
    answered = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    per_connection = [[answered, b""], [answered], [b""], [b""], [answered]]
    opened = 0
    second_closed = threading.Event()

    def serve(listener: socket.socket) -> None:
        nonlocal opened
        for answers in per_connection:
            connection, _ = listener.accept()
            opened += 1
            with connection:
                for answer in answers:
                    connection.recv(4096)
                    connection.sendall(answer)
            if opened == 2:
                second_closed.set()

    now = [0.0]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        asked = service(clock=lambda: now[0])
        for _ in range(2):
            assert asked.call("GET", url).status == 200
        assert opened == 2
        assert second_closed.wait(
            10
        )  # else the next call may meet its end, and count that as the break
        with pytest.raises(BackendUnavailable, match="no connection"):
            asked.call("GET", url)
        assert opened == 4  # not again and again
        now[0] += PAUSE_S
        assert asked.call("GET", url).status == 200
        thread.join(10)


def test_no_error_holds_what_was_sent(echo: Echo) -> None:
    echo.stop()
    with pytest.raises(BackendUnavailable, match="Connection refused") as caught:
        service().call("GET", echo.url, params={"token": "hunter2"})
    error: BaseException | None = caught.value
    while error is not None:  # as far as a log would show it
        assert "hunter2" not in repr(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_while_it_is_away_one_asks_and_the_others_know() -> None:
    now = [0.0]
    with Echo() as echo:
        asked = service(timeout_s=0.3, clock=lambda: now[0])
        echo.delay_s = 30
        with pytest.raises(BackendUnavailable, match="no answer"):
            asked.call("GET", echo.url)
        with pytest.raises(BackendUnavailable, match="a moment ago"):
            asked.call("GET", echo.url)
        assert echo.hits == 1
        now[0] += PAUSE_S
        texts: list[str] = []

        def ask() -> None:
            try:
                asked.call("GET", echo.url)
            except BackendUnavailable as exc:
                texts.append(str(exc))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert echo.hits == 2
        assert sum("a moment ago" in text for text in texts) == 7
        now[0] += PAUSE_S
        echo.delay_s = 0
        for _ in range(2):
            assert asked.call("GET", echo.url).status == 200


class Tls(Echo):
    """The same over TLS, with a certificate of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.certificate = directory / "certificate.pem"
        self._key = directory / "key.pem"
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        now = datetime.datetime.now(datetime.UTC)
        alternative = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(alternative, critical=False)
            .sign(key, hashes.SHA256())
        )
        encoding = serialization.Encoding.PEM
        self.certificate.write_bytes(certificate.public_bytes(encoding))
        self._key.write_bytes(
            key.private_bytes(
                encoding,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def start(self) -> "Tls":
        super().start()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self._key)
        assert self._server is not None
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        return self

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")


def test_certificates_are_verified(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Tls(tmp_path) as server:
        with pytest.raises(BackendUnavailable, match="no safe connection: self-signed certificate"):
            service().call("GET", server.url)
        assert server.hits == 0
        assert service(ca_file=server.certificate).call("GET", server.url).status == 200
        with pytest.raises(BackendUnavailable, match=r"no safe connection: .*localhost"):
            service(ca_file=server.certificate).call(
                "GET", server.url.replace("127.0.0.1", "localhost")
            )
        assert "not verified" not in caplog.text
        assert service(verifies=False).call("GET", server.url).status == 200
        assert "not verified" in caplog.text


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_file_without_certificates_is_refused_at_start(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError, match="ca_file must be"):
        service(ca_file=file)
