"""The public keys of an issuer of tokens (JWKS), fetched when needed, and followed as they change."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from polytope_server.authentication.outgoing import Service
from polytope_server.errors import BackendUnavailable

logger = logging.getLogger(__name__)

FRESH_S: Final = 120.0
"""How long keys are used before somebody looks whether they are still the same."""
STALE_S: Final = 3600.0
"""How long they are used while their issuer does not answer."""
REFETCH_S: Final = 5.0
"""Between looks for a key that is not there: tokens with invented names of keys cost no more than that."""

MIN_RSA_BITS: Final = 2048
_MAX_KEYS: Final = 100
_ALGORITHMS: Final[Mapping[tuple[Any, Any], frozenset[str]]] = MappingProxyType(
    {
        ("RSA", None): frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
        ("EC", "P-256"): frozenset({"ES256"}),
        ("EC", "P-384"): frozenset({"ES384"}),
        ("EC", "P-521"): frozenset({"ES512"}),
        ("EC", "secp256k1"): frozenset({"ES256K"}),
        ("OKP", "Ed25519"): frozenset({"EdDSA"}),
        ("OKP", "Ed448"): frozenset({"EdDSA"}),
    }
)
"""Type and curve of a key to what it may be used with; never an algorithm with a shared secret."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key, and what may be verified with it."""

    key: Any
    algorithms: frozenset[str]


class KeySet:
    """The keys of one issuer. Safe between threads: one of them fetches, those with keys go on meanwhile."""

    def __init__(
        self, service: Service, url: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._service, self._url, self._clock = service, url, clock
        self._keys: Mapping[str | None, PublicKey] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._failure: BackendUnavailable | None = None
        self._lock = threading.Lock()

    def find(self, key_id: str | None) -> PublicKey | None:
        """The key of that name, or of none if tokens name none; None if the issuer has no such key.

        Raises:
            BackendUnavailable: whether there is one is not known, as the issuer does not answer.
        """
        known = self._known(key_id)
        is_due = known is None or self._age_s() > FRESH_S
        if is_due and self._clock() - self._tried_at > REFETCH_S:
            self._refresh(waits=known is None)
            known = self._known(key_id)
        if known is None and self._failure is not None:
            text = f"{self._service.name}: its keys are not known"
            raise BackendUnavailable(text) from self._failure
        return known

    def _known(self, key_id: str | None) -> PublicKey | None:
        keys = self._keys if self._age_s() <= STALE_S else {}
        if key_id is None and len(keys) == 1:
            (only,) = keys.values()
            return only
        return keys.get(key_id)

    def _age_s(self) -> float:
        return self._clock() - self._fetched_at

    def _refresh(self, *, waits: bool) -> None:
        """Fetch the keys, unless somebody else has done so while we waited for our turn."""
        asked_at = self._clock()
        if not self._lock.acquire(blocking=waits):
            return
        try:
            if self._tried_at <= asked_at:
                self._fetch()
        finally:
            self._lock.release()

    def _fetch(self) -> None:
        try:
            self._keys = self._published()
            self._fetched_at, self._failure = self._clock(), None
        except BackendUnavailable as exc:
            self._failure = exc
            logger.warning("keys of tokens cannot be fetched", exc_info=exc)
        finally:
            self._tried_at = self._clock()

    def _published(self) -> Mapping[str | None, PublicKey]:
        answer = self._service.call("GET", self._url)
        listed = (answer.json() or {}).get("keys") if answer.status == 200 else None
        usable = dict(_usable(listed[:_MAX_KEYS])) if isinstance(listed, list) else {}
        if not usable:
            raise BackendUnavailable(
                f"{self._service.name}: there are no keys to verify with at {self._url} ({answer.status})"
            )
        return usable


def _usable(listed: Sequence[Any]) -> Iterator[tuple[str | None, PublicKey]]:
    """The keys that can verify signatures, by name; one that has no name goes by None."""
    for each in listed:
        if not isinstance(each, Mapping) or each.get("use", "sig") != "sig":
            continue
        kind, curve, name = each.get("kty"), each.get("crv"), each.get("kid")
        if not (isinstance(kind, str) and isinstance(curve, str | None)):
            continue
        algorithms = _ALGORITHMS.get((kind, curve))
        if algorithms and "alg" in each:
            algorithms &= {str(each["alg"])}
        if not algorithms or not isinstance(name, str | None):
            continue  # a shared secret, a key to encrypt with, or of a kind that nobody knows yet
        if "d" in each:
            logger.error("a private key is published; it is not used", extra={"key": name})
            continue
        try:
            key = jwt.PyJWK(dict(each), algorithm=min(algorithms)).key
        except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError) as exc:
            logger.warning("a key cannot be read", extra={"key": name, "error": type(exc).__name__})
            continue
        if isinstance(key, RSAPublicKey) and key.key_size < MIN_RSA_BITS:
            logger.warning("a key is too short to be used", extra={"key": name})
            continue
        yield name, PublicKey(key, algorithms)
