"""The Authorization header as clients of this service write it: several credentials, by commas."""

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Final

from polytope_server.errors import NotAuthenticated

MAX_HEADER_CHARACTERS: Final = 16 * 1024
MAX_CREDENTIALS: Final = 8

_BLANK: Final = " \t"
_NOT_IN_A_QUOTED_STRING: Final = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class Credential:
    """One part of the header: a scheme as it was written, and what follows it."""

    scheme: str
    text: str = field(repr=False)


def parse(header: str | None) -> tuple[Credential, ...]:
    """The credentials of a header, in its order; a repeated one once. Nothing from no header.

    Parts without a word after the scheme are no credentials and left out.

    Raises:
        NotAuthenticated: the header is longer than any real one, or holds too many parts.
    """
    if not header:
        return ()
    if len(header) > MAX_HEADER_CHARACTERS:
        raise NotAuthenticated(
            f"The Authorization header is longer than {MAX_HEADER_CHARACTERS} characters."
        )
    found: dict[Credential, None] = {}
    for part in header.split(","):
        scheme, _, text = part.strip(_BLANK).partition(" ")
        text = text.strip(_BLANK)
        if not scheme or not text:
            continue
        found[Credential(scheme, text)] = None
        if len(found) > MAX_CREDENTIALS:
            raise NotAuthenticated(
                f"The Authorization header holds more than {MAX_CREDENTIALS} credentials."
            )
    return tuple(found)


def challenge(scheme: str, *, realm: str) -> str:
    """A standard challenge, e.g. ``Basic realm="example"``, safe to put into a header."""
    plain = _NOT_IN_A_QUOTED_STRING.sub("?", realm)
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'{scheme} realm="{escaped}"'


def login(credential: str) -> tuple[str, str]:
    """User name and password of a Basic credential; the password may hold colons and anything else.

    UTF-8, as the standard wishes; what cannot be that is Latin-1, which Python's own clients send.
    """
    try:
        raw = base64.b64decode(credential, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise NotAuthenticated("A Basic credential is base64 of user:password.") from exc
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    uid, colon, password = text.partition(":")
    if not colon:
        raise NotAuthenticated("A Basic credential is base64 of user:password.")
    return uid, password


def email_key(credential: str) -> tuple[str, str]:
    """Address and key of an EmailKey credential: what is before the first colon, and behind it."""
    email, _, key = (part.strip(_BLANK) for part in credential.partition(":"))
    if not (email and key and credential.isprintable()):
        raise NotAuthenticated("An EmailKey credential is address:key.")
    return email, key
