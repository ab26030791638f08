"""API keys: what users get for their password, so that programs need not have it.

A key is ``polytope_``, 43 characters for 256 random bits, and 6 for a checksum. The prefix lets scanners find
keys that were published by mistake, the checksum lets them, and us, tell keys from what only looks like one
without asking anybody.

What is kept is the SHA-256 of the key. Nothing slower is needed: slow hashes make up for passwords that can
be guessed, and nobody goes through 2^256 keys. With a digest that is not salted, a key is found by one look
at an index. How long that takes depends on the digest, not on the key, and tells nothing about it.
"""

import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import replace
from typing import Final

from polytope_server.authentication import header
from polytope_server.authentication.header import Credential
from polytope_server.errors import NotAuthenticated
from polytope_server.request_store import RequestStore
from polytope_server.user import User

PREFIX: Final = "polytope_"
HINT_CHARACTERS: Final = 4
"""Of the end of a key, by which its user recognises it; they are of the checksum."""

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_CHARACTERS: Final = 43  # 62^43 > 2^256
_CHECKSUM_CHARACTERS: Final = 6  # 62^6 > 2^32
_KEY: Final = re.compile(
    rf"{PREFIX}[0-9A-Za-z]{{{_SECRET_CHARACTERS + _CHECKSUM_CHARACTERS}}}", re.ASCII
)
_NAME_CHARACTERS: Final = len(PREFIX) + 8


def new_key() -> str:
    """A key that nobody has: ASCII letters, digits and ``_`` only."""
    secret = _base62(secrets.randbits(256), _SECRET_CHARACTERS)
    return f"{PREFIX}{secret}{_checksum(secret)}"


def is_key(text: str) -> bool:
    """Whether a text has the shape and the checksum of a key of ours."""
    if not _KEY.fullmatch(text):
        return False
    secret, checksum = text[len(PREFIX) : -_CHECKSUM_CHARACTERS], text[-_CHECKSUM_CHARACTERS:]
    return _checksum(secret) == checksum


def digest(key: str) -> str:
    """What is kept of a key, and what it is found by."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_in(credential: Credential) -> str | None:
    """The key of ours in a credential, if it is one.

    Clients send a key as ``Bearer KEY``, or as ``EmailKey ADDRESS:KEY`` if they know an address as well.
    """
    return _key(credential.text) if credential.scheme.lower() in ("bearer", "emailkey") else None


class ApiKeyAuthenticator:
    """See `polytope_server.authentication.Authenticator`; of no realm: a key acts for who made it.

    Its answers are not to be remembered, for a key that is revoked is no key from then on.
    """

    scheme = "Bearer"
    cacheable = False

    def __init__(self, store: RequestStore) -> None:
        self._store = store

    def challenge(self) -> str:
        return header.challenge(self.scheme, realm="API keys")

    def login_name(self, credential: str) -> str:
        # Each key is somebody else, as far as anybody can tell: who guesses is slowed by address.
        key = _key(credential)
        return key[:_NAME_CHARACTERS] if key is not None else ""

    def authenticate(self, credential: str) -> User:
        key = _key(credential)
        known = self._store.key(digest(key)) if key is not None else None
        if key is None or known is None or not hmac.compare_digest(known.digest, digest(key)):
            raise NotAuthenticated("This is not an API key that is good here.")
        return replace(known.user, valid_until=known.expires_at)


def _key(credential: str) -> str | None:
    """The key in the text after the scheme, alone or behind an address."""
    text = credential.rpartition(":")[2]
    return text if is_key(text) else None


def _checksum(secret: str) -> str:
    return _base62(zlib.crc32(secret.encode()), _CHECKSUM_CHARACTERS)


def _base62(number: int, characters: int) -> str:
    digits = []
    for _ in range(characters):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
