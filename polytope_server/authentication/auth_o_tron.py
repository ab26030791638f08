"""Users whom an auth-o-tron server identifies, whatever they come with."""

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, overload

import jwt

from polytope_server.authentication import Authenticator, header
from polytope_server.authentication.outgoing import Answer, Service, text_of
from polytope_server.authentication.tokens import expiry
from polytope_server.config.identity_services import AuthOTronSection
from polytope_server.errors import BackendUnavailable, NotAuthenticated
from polytope_server.user import User

SCHEMES: Final = ("Basic", "Bearer", "EmailKey")
"""What is handed on; the last as ``Bearer``, which is how the server takes keys."""

_IN_A_HEADER: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?", re.ASCII)
_REFUSED = "The credentials are not accepted."


class AuthOTronAuthenticators(Sequence[Authenticator]):
    """One authenticator for each scheme that the server reads; all ask the same one."""

    Config = AuthOTronSection

    def __init__(self, config: AuthOTronSection, *, realm: str) -> None:
        server = _Server(config, realm=realm)
        self._all = tuple(_AuthOTronAuthenticator(scheme, server) for scheme in SCHEMES)

    def __len__(self) -> int:
        return len(self._all)

    @overload
    def __getitem__(self, index: int) -> Authenticator: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Authenticator]: ...
    def __getitem__(self, index: int | slice) -> Authenticator | Sequence[Authenticator]:
        return self._all[index]


class _Server:
    """Says who somebody is, in a token that only it and we can have made."""

    def __init__(self, config: AuthOTronSection, *, realm: str) -> None:
        self.realm = realm
        self._url = f"{config.url.rstrip('/')}/authenticate"
        self._secret = config.secret.get_secret_value()
        self._service = Service("auth-o-tron", timeout_s=config.timeout, ca_file=config.ca_file)

    def user(self, authorization: str) -> User:
        """Raises: NotAuthenticated, BackendUnavailable."""
        answer = self._service.call("GET", self._url, headers={"Authorization": authorization})
        if answer.status in (400, 401, 403):
            raise NotAuthenticated(_REFUSED)
        if answer.status != 200:
            raise BackendUnavailable(f"auth-o-tron: it answers nothing of use ({answer.status})")
        claims = self._claims(answer)
        username, realm = claims.get("username"), claims.get("realm")
        if not (isinstance(username, str) and username and isinstance(realm, str) and realm):
            raise BackendUnavailable("auth-o-tron: its token says neither who nor of which realm")
        return User(
            username=username,
            realm=realm,
            roles=frozenset({"default", *_texts(claims.get("roles"))}),
            attributes=MappingProxyType(dict(_attributes(claims.get("attributes")))),
            valid_until=expiry(claims) if "exp" in claims else None,
        )

    def _claims(self, answer: Answer) -> Mapping[str, Any]:
        scheme, _, token = answer.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise BackendUnavailable("auth-o-tron: its answer has no token")
        try:
            return jwt.decode(
                token.strip(),
                self._secret,
                algorithms=["HS256"],
                options={"verify_aud": False},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as exc:
            text = "auth-o-tron: its token is not good by our secret, or not at this time"
            raise BackendUnavailable(text) from exc


class _AuthOTronAuthenticator:
    """See `polytope_server.authentication.Authenticator`."""

    cacheable = True

    def __init__(self, scheme: str, server: _Server) -> None:
        self.scheme, self._server = scheme, server

    def challenge(self) -> str:
        return header.challenge(self.scheme, realm=self._server.realm)

    def login_name(self, credential: str) -> str:
        match self.scheme:
            case "Basic":
                try:
                    return header.login(credential)[0]
                except NotAuthenticated:
                    return ""
            case "EmailKey":
                return credential.partition(":")[0].strip().lower()
        return ""

    def authenticate(self, credential: str) -> User:
        if self.scheme == "Basic":
            header.login(credential)
        text = header.email_key(credential)[1] if self.scheme == "EmailKey" else credential
        if not _IN_A_HEADER.fullmatch(text):
            raise NotAuthenticated(_REFUSED)
        scheme = "Bearer" if self.scheme == "EmailKey" else self.scheme
        return self._server.user(f"{scheme} {text}")


def _texts(value: Any) -> Iterator[str]:
    for each in value if isinstance(value, list) else ():
        if isinstance(each, str) and each:
            yield each


def _attributes(value: Any) -> Iterator[tuple[str, str]]:
    for name, each in value.items() if isinstance(value, Mapping) else ():
        text = text_of(each)
        if text is not None:
            yield name, text
