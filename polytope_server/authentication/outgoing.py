"""Calls of identity services over HTTP: bounded in time and size, and without a secret in any error.

Nobody who asks such a service is to wait because it is slow: once it has not answered, one caller at a time
tries it again, and the others are told at once that it is away.
"""

import contextlib
import json
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, Final

import requests
import urllib3

from polytope_server.authentication.http_in_time import InTimeAdapter
from polytope_server.circuit_breaker import CircuitBreaker
from polytope_server.errors import BackendUnavailable, ConfigurationError

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES: Final = 1 << 20
PAUSE_S: Final = 1.0
"""How long a service that did not answer is left alone."""

_PIECE_BYTES: Final = 16 * 1024
_CONNECTIONS: Final = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service said; whatever its status is. The body may hold secrets."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    def json(self) -> Mapping[str, Any] | None:
        """The JSON object in the body; None if there is none."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None


def text_of(value: Any) -> str | None:
    """A JSON value as the text of an attribute; None if there is nothing to say."""
    return value if isinstance(value, str | None) else json.dumps(value)


class Service:
    """One identity service. Safe between threads.

    Neither proxies nor passwords come from the environment, cookies are not kept, and redirects are not
    followed: credentials go where the configuration says, and nowhere else.

    Args:
        name: as the log calls it: its kind and its realm.
        timeout_s: for the connection, and again for the whole answer.
        ca_file: certificates to go by, instead of the public ones.
        verifies: False takes any certificate.
    """

    def __init__(
        self,
        name: str,
        *,
        timeout_s: float,
        proxy: str | None = None,
        ca_file: Path | None = None,
        verifies: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._timeout_s, self._clock = timeout_s, clock
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self._session.headers.update({"Accept": "application/json", "Accept-Encoding": "identity"})
        if proxy:
            self._session.proxies = {"http": proxy, "https": proxy}
        self._session.verify = _verification(name, ca_file, verifies=verifies)
        adapter = InTimeAdapter(pool_maxsize=_CONNECTIONS)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        # while one tries whether it is there again, the others need not
        self._breaker = CircuitBreaker(name, pause_s=timeout_s * 2, clock=clock)

    def call(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        basic: tuple[str, str] | None = None,
    ) -> Answer:
        """One call; again if the connection breaks, so it must do no harm twice.

        Raises:
            BackendUnavailable: no answer, too late, too long, or a redirect. The text holds no secret.
        """
        if not self._breaker.lets_through():
            raise BackendUnavailable(f"{self.name}: it did not answer a moment ago")
        try:
            try:
                answer = self._ask(method, url, params, form, headers, basic)
            except _Broken:  # as a kept connection is that the service has closed meanwhile
                answer = self._ask(method, url, params, form, headers, basic)
        except BackendUnavailable as exc:
            self._breaker.failed(exc, pause_s=PAUSE_S)
            raise
        self._breaker.succeeded()
        if answer.status in range(300, 400):
            raise BackendUnavailable(
                f"{self.name}: it sent us elsewhere ({answer.status}), where credentials do not go; "
                "is the address right?"
            )
        return answer

    def _ask(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None,
        form: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        basic: tuple[str, str] | None,
    ) -> Answer:
        # Errors of the libraries hold the URL with its query, so they are not handed on as causes.
        try:
            response = self._session.request(
                method,
                url,
                params=params,
                data=form,
                headers=headers,
                auth=basic,
                timeout=self._timeout_s,
                allow_redirects=False,
                stream=True,
            )
            with contextlib.closing(response):
                return Answer(response.status_code, response.headers, self._body(response))
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            late = f"{self.name}: no answer within {self._timeout_s:g} seconds"
            raise BackendUnavailable(late) from None
        except requests.exceptions.SSLError as exc:
            text = f"{self.name}: no safe connection: {_innermost(exc)}"
            raise BackendUnavailable(text) from None
        except (requests.ConnectionError, urllib3.exceptions.ProtocolError) as exc:
            raise _Broken(f"{self.name}: no connection: {_innermost(exc)}") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            text = f"{self.name}: it cannot be asked ({type(exc).__name__})"
            raise BackendUnavailable(text) from None

    def _body(self, response: requests.Response) -> bytes:
        if response.headers.get("Content-Encoding", "identity") not in ("", "identity"):
            raise BackendUnavailable(f"{self.name}: it answers in an encoding nobody asked for")
        body = bytearray()
        while piece := response.raw.read1(_PIECE_BYTES):
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                raise BackendUnavailable(f"{self.name}: its answer is longer than any real one")
        return bytes(body)


class _Broken(BackendUnavailable):
    """The connection was refused, or it ended before there was an answer."""


def _verification(name: str, ca_file: Path | None, *, verifies: bool) -> bool | str:
    if not verifies:
        logger.warning(
            "TLS certificates are not verified: whoever is in between can read all passwords",
            extra={"service": name},
        )
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # said once, by us
        return False
    if ca_file is None:
        return True
    try:
        ssl.create_default_context(cafile=ca_file)
    except OSError as exc:
        raise ConfigurationError(
            f"{name}: ca_file must be a file of certificates in PEM form that can be read"
        ) from exc
    return str(ca_file)


def _innermost(error: BaseException) -> str:
    """What the operating system or the TLS library says, which holds no URL; the kind of error if nothing."""
    found, text = [error], type(error).__name__
    for each in found:  # grows on the way
        if isinstance(each, ssl.SSLCertVerificationError):
            return each.verify_message
        if isinstance(each, OSError) and isinstance(each.strerror, str):
            text = each.strerror
        inner = (*each.args, getattr(each, "reason", None), each.__cause__, each.__context__)
        found += [one for one in inner if isinstance(one, BaseException) and one not in found]
    return text
