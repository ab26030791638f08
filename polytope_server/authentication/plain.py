"""Users and passwords that stand in the configuration, by HTTP Basic."""

import hmac
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from threading import BoundedSemaphore
from types import MappingProxyType
from typing import Final

from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import (
    HashingError,
    InvalidHashError,
    VerificationError,
    VerifyMismatchError,
)

from polytope_server.authentication import header
from polytope_server.config.identity import PlainAuthenticatorSection
from polytope_server.errors import BackendUnavailable, ConfigurationError, NotAuthenticated
from polytope_server.user import User

_AT_ONCE: Final = 2
"""Argon2 takes 64 MiB or so each time: this bounds what a flood of logins can take."""
_PATIENCE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Entry:
    """A user; either the digest of a clear password or a hash is there."""

    digest: bytes | None = field(repr=False)
    hash: str | None = field(repr=False)
    attributes: Mapping[str, str] = field(repr=False)


class PlainAuthenticator:
    """See `polytope_server.authentication.Authenticator`.

    Nobody can tell from the time it takes whether a user exists: every refusal costs one comparison
    of digests, and one Argon2 verification if any user of the realm has a hash. A password that was
    proven against a hash is compared by its digest from then on, as long as the process lives.
    """

    Config = PlainAuthenticatorSection
    scheme = "Basic"
    cacheable = True

    def __init__(self, config: PlainAuthenticatorSection, *, realm: str) -> None:
        self._realm = realm
        self._key = secrets.token_bytes(32)
        self._nobodys_digest = secrets.token_bytes(32)
        self._hasher = PasswordHasher()
        self._turns = BoundedSemaphore(_AT_ONCE)
        self._proven: dict[str, bytes] = {}
        self._users: dict[str, _Entry] = {}
        for user in config.users:
            password = user.password.get_secret_value()
            self._users[user.uid] = _Entry(
                digest=None if user.is_hashed else self._digest(user.uid, password),
                hash=password if user.is_hashed else None,
                attributes=MappingProxyType(
                    {name: value.get_secret_value() for name, value in user.attributes.items()}
                ),
            )
        self._decoys = self._make_decoys()

    def challenge(self) -> str:
        return header.challenge(self.scheme, realm=self._realm)

    def login_name(self, credential: str) -> str:
        try:
            uid, _ = header.login(credential)
        except NotAuthenticated:
            return ""
        return uid

    def has_user(self, username: str) -> bool:
        return username in self._users

    def authenticate(self, credential: str) -> User:
        uid, password = header.login(credential)
        entry = self._users.get(uid)
        if not self._is_right(uid, entry, password) or entry is None:
            raise NotAuthenticated("User name or password are not accepted.")
        return User(username=uid, realm=self._realm, attributes=entry.attributes)

    def _is_right(self, uid: str, entry: _Entry | None, password: str) -> bool:
        given = self._digest(uid, password)
        known = entry.digest if entry else None
        if hmac.compare_digest(given, known or self._proven.get(uid) or self._nobodys_digest):
            return True
        if not self._decoys:
            return False
        if entry is None or entry.hash is None:
            self._matches(self._decoy(uid), password)  # takes the time, decides nothing
            return False
        if not self._matches(entry.hash, password):
            return False
        self._proven[uid] = given
        return True

    def _matches(self, hashed: str, password: str) -> bool:
        with self._turn():
            try:
                return self._hasher.verify(hashed, password)
            except VerifyMismatchError:
                return False
            except VerificationError as exc:  # no memory for it, for one
                raise BackendUnavailable("Passwords cannot be checked at present.") from exc

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._turns.acquire(timeout=_PATIENCE_S):
            raise BackendUnavailable("Too many logins at once; passwords are checked one by one.")
        try:
            yield
        finally:
            self._turns.release()

    def _digest(self, uid: str, password: str) -> bytes:
        text = f"{len(uid)} {uid} {password}"
        return hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), "sha256")

    def _make_decoys(self) -> tuple[str, ...]:
        """A hash of nobody's password for each set of parameters in use, so as to cost the same."""
        decoys: dict[tuple[object, ...], str] = {}
        for uid, entry in self._users.items():
            if entry.hash is None:
                continue
            try:
                parameters = extract_parameters(entry.hash)
                if astuple(parameters) not in decoys:
                    hasher = PasswordHasher.from_parameters(parameters)
                    decoys[astuple(parameters)] = hasher.hash(secrets.token_hex(16))
            except (InvalidHashError, HashingError) as exc:
                raise ConfigurationError(
                    f"authentication.{self._realm}: the password of {uid!r} must be clear text or a"
                    " whole Argon2 hash whose memory and time this machine can afford"
                ) from exc
        return tuple(decoys.values())

    def _decoy(self, uid: str) -> str:
        # the same one each time for the same name, as it would be if there were such a user
        return self._decoys[int.from_bytes(self._digest(uid, "")[:4]) % len(self._decoys)]
