"""What may be believed of a cache that others can read and write."""

import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from polytope_server.caching import Cache
from polytope_server.signatures import derived_key

Secret = Callable[[], bytes | None]
"""What processes share that may believe each other; None as long as this one does not know it."""

_PURPOSE: Final = "remembered logins v1"
"""Processes of another version find nothing."""


class SealedCache:
    """Mappings in a cache under names that tell nothing. Safe between threads.

    The cache holds neither what a value is found by nor anything made of it without a key that the cache
    does not hold. What it holds is signed, and says when it ends: whoever can write to the cache can
    neither make up a value, nor move one, nor bring one back that is over.

    Args:
        secret: processes with the same one find what the others have put there; left out, and until it
            is known, each process finds its own.
        date: Unix seconds; the machines that share a cache should agree about them.
    """

    def __init__(
        self, cache: Cache, *, secret: Secret | None = None, date: Callable[[], float] = time.time
    ) -> None:
        self._cache = cache
        self._secret = secret
        self._date = date
        self._key = secrets.token_bytes(32)
        self._is_shared = False

    def put(self, *place: str, value: Mapping[str, Any], lifetime_s: float) -> None:
        """Remember a mapping of JSON values so long at most."""
        name = self._digest("name", *place)
        text = json.dumps({"value": value, "ends_at": self._date() + lifetime_s})
        signed = {"text": text, "signature": self._digest("value", name, text)}
        self._cache.put(name, signed, lifetime_s=lifetime_s)

    def get(self, *place: str) -> Mapping[str, Any] | None:
        """What was put there; None where nothing trustworthy is found."""
        name = self._digest("name", *place)
        match self._cache.get(name):
            case {"text": str(text), "signature": str(signature)}:
                known = self._digest("value", name, text)
                if hmac.compare_digest(signature.encode("utf-8", "replace"), known.encode()):
                    found = json.loads(text)
                    value: Mapping[str, Any] = found["value"]
                    return value if self._date() < found["ends_at"] else None
        return None

    def _digest(self, *parts: str) -> str:
        if not self._is_shared and self._secret is not None:
            shared = self._secret()
            if shared is not None:
                self._key, self._is_shared = derived_key(shared, purpose=_PURPOSE), True
        return keyed_digest(self._key, *parts).hex()


def keyed_digest(key: bytes, *parts: str) -> bytes:
    """32 bytes that tell nothing of the parts to whoever has not the key."""
    # with the lengths, so that no two lists of parts read the same
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hmac.digest(key, text.encode("utf-8", "surrogatepass"), "sha256")
