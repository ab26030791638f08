"""Signed tokens (JWT) of an issuer: whether one is good, whose it is, and until when."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

from polytope_server.authentication.key_set import KeySet
from polytope_server.errors import NotAuthenticated

logger = logging.getLogger(__name__)

MAX_TOKEN_CHARACTERS: Final = 16 * 1024
_COMPACT: Final = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)
_FOR_SOMETHING_ELSE: Final = frozenset({"id", "refresh", "offline", "logout"})
"""What Keycloak calls tokens, signed with the same keys, that are not for calling a service."""
_OF_IDENTITY_TOKENS: Final = frozenset({"at_hash", "c_hash"})
"""Claims that only identity tokens have, as the standard calls them; others than Keycloak say no kind."""
_ACCESS: Final = "at+jwt"
"""What the header of an access token may say; many say nothing, or just JWT."""
_UNREADABLE: Final = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)
_NEVER: Final = 1 << 40
_REFUSED: Final = "The token is not accepted."


class WrongAudience(NotAuthenticated):
    """The token is good, and meant for somebody else."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good token says."""

    subject: str
    expires_at: float
    """Unix time."""
    roles: frozenset[str]


class Verifier:
    """Takes tokens of one issuer for one service. Safe between threads.

    Which algorithms and keys are used is never up to the token: its ``alg`` must be one that is configured
    and that goes with the key of its ``kid``; keys, and addresses of keys, in its header are not looked at.

    Args:
        audience: at least one must be in the token. If there are none, the token must be for *client_id* or
            for nobody in particular.
        issuer: None takes any whose signature is good.
        client_id: whose roles count, besides those of the realm.
        leeway_s: how far clocks may be apart.
    """

    def __init__(
        self,
        keys: KeySet,
        *,
        algorithms: Iterable[str],
        audience: Sequence[str],
        issuer: str | None,
        client_id: str,
        leeway_s: float,
    ) -> None:
        self._keys = keys
        self._algorithms = frozenset(algorithms)
        self._audience = frozenset(audience)
        self._issuer, self._client_id, self._leeway_s = issuer, client_id, leeway_s

    def verified(self, token: str) -> Claims:
        """The claims of a token that is good here and now.

        Raises:
            NotAuthenticated: it is not; `WrongAudience` if that is all that is wrong.
            BackendUnavailable: nobody can tell, as its issuer does not answer.
        """
        header, said = unverified(token)
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise _refusal("its algorithm is not allowed")
        if not isinstance(key_id, str | None) or "crit" in header:
            raise _refusal("its header is not understood")
        if _is_for_something_else(header.get("typ")):
            raise _refusal("it is no access token")
        if self._issuer is not None and said.get("iss") != self._issuer:
            raise _refusal("it is of another issuer")  # before anybody is asked for keys
        key = self._keys.find(key_id)
        allowed = self._algorithms & key.algorithms if key is not None else frozenset()
        if key is None or not allowed:
            raise _refusal("its issuer has no such key")
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=sorted(allowed),
                issuer=self._issuer,
                leeway=self._leeway_s,
                options={"require": ["exp", "sub"], "verify_aud": False},
            )
        except _UNREADABLE as exc:
            raise _refusal(type(exc).__name__) from exc
        return self._judged(claims)

    def _judged(self, claims: Mapping[str, Any]) -> Claims:
        subject, kind = claims["sub"], claims.get("typ")
        if not isinstance(subject, str) or not subject:
            raise _refusal("it names nobody")
        is_other = isinstance(kind, str) and kind.lower() in _FOR_SOMETHING_ELSE
        if is_other or _OF_IDENTITY_TOKENS & claims.keys():
            raise _refusal("it is no access token")
        if not self._is_for_us(claims.get("aud")):
            raise _refusal("it is for another audience", kind=WrongAudience)
        return Claims(subject, expiry(claims), roles(claims, self._client_id))

    def _is_for_us(self, audience: Any) -> bool:
        if audience is None:
            return not self._audience
        listed = audience if isinstance(audience, list) else [audience]
        named = {each for each in listed if isinstance(each, str)}
        return bool(named & (self._audience or {self._client_id}))


def _is_for_something_else(kind: Any) -> bool:
    """Whether the header says so: logout, events and the like are ``logout+jwt`` and so on."""
    if not isinstance(kind, str):
        return False
    plain = kind.lower().removeprefix("application/")
    return plain.endswith("+jwt") and plain != _ACCESS


def _refusal(reason: str, *, kind: type[NotAuthenticated] = NotAuthenticated) -> NotAuthenticated:
    """An error that says nothing; why is for the log."""
    logger.info("a token was refused", extra={"reason": reason})
    return kind(_REFUSED)


def unverified(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Header and claims as the token itself says; nothing of it is to be believed.

    Raises:
        NotAuthenticated: it is no signed token.
    """
    if len(token) > MAX_TOKEN_CHARACTERS or not _COMPACT.fullmatch(token):
        raise NotAuthenticated(_REFUSED)
    try:
        read = jwt.api_jwt.decode_complete(token, options={"verify_signature": False})
    except _UNREADABLE as exc:
        raise NotAuthenticated(_REFUSED) from exc
    return read["header"], read["payload"]


def expiry(claims: Mapping[str, Any]) -> float:
    """Unix time of the ``exp`` of claims whose signature is good."""
    return float(min(int(claims["exp"]), _NEVER))


def roles(claims: Mapping[str, Any], client_id: str) -> frozenset[str]:
    """Those of the realm and those of the client; what is not of the usual shape is no role."""
    of_clients = claims.get("resource_access")
    of_client = of_clients.get(client_id) if isinstance(of_clients, Mapping) else None
    found: set[str] = set()
    for holder in (claims.get("realm_access"), of_client):
        listed = holder.get("roles") if isinstance(holder, Mapping) else None
        if isinstance(listed, list):
            found.update(role for role in listed if isinstance(role, str) and role)
    return frozenset(found)
