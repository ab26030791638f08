"""Links that anybody who has one may use, until it expires: HMAC-SHA256 over all that they say."""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlencode

from polytope_server.errors import ResultGone, ResultNotFound

EXPIRES: Final = "expires"
SIGNATURE: Final = "signature"

_SECONDS: Final = re.compile(r"[0-9]{1,15}")


def derived_key(secret: bytes, *, purpose: str) -> bytes:
    """A key for one purpose out of a secret that has others as well: 32 bytes."""
    return hmac.digest(secret, purpose.encode(), hashlib.sha256)


class SignedLinks:
    """Makes and checks the queries of links. What a link is about, its *subject*, is not in the query.

    Args:
        key: the same wherever links are made and checked.
    """

    def __init__(self, key: bytes) -> None:
        if not key:
            raise ValueError("a key must not be empty")
        self._key = derived_key(key, purpose="polytope signed links v1")

    def query(
        self, subject: str, *, expires_at: int, extra: Mapping[str, str] | None = None
    ) -> str:
        """The query of a link, for behind the ``?``.

        Args:
            expires_at: Unix seconds.
            extra: what else the link says, signed with it.
        """
        signed = {**(extra or {}), EXPIRES: str(expires_at)}
        return urlencode({**signed, SIGNATURE: self._signature(subject, signed)})

    def check(
        self, subject: str, params: Mapping[str, str | Sequence[str]], *, now: float
    ) -> Mapping[str, str]:
        """What else the link says, if it is one of ours and still good at *now*, in Unix seconds.

        Args:
            params: the whole query, decoded; more or less than was signed makes it a bad one.

        Raises:
            ResultNotFound: we never gave it out, or it has been changed.
            ResultGone: it has expired.
        """
        signed = {
            name: value
            for name, value in params.items()
            if isinstance(value, str) and name != SIGNATURE
        }
        given = params.get(SIGNATURE)
        if (
            not isinstance(given, str)
            or len(signed) != len(params) - 1
            or not hmac.compare_digest(
                given.encode("utf-8", "replace"), self._signature(subject, signed).encode()
            )
            or not _SECONDS.fullmatch(signed.get(EXPIRES, ""))
        ):
            raise ResultNotFound("This is not a download link of this server.")
        if now > int(signed.pop(EXPIRES)):
            raise ResultGone("This download link has expired; ask for the request's status again.")
        return signed

    def _signature(self, subject: str, signed: Mapping[str, str]) -> str:
        # JSON, so that no two links have the same text, whatever is in their values
        text = json.dumps([subject, sorted(signed.items())])
        digest = hmac.digest(self._key, text.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")
