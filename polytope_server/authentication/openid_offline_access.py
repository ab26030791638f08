"""Refresh tokens that outlive the session (``offline_access``), as keys for programs; by ``Bearer``."""

import logging
from typing import Any

from polytope_server.authentication import header
from polytope_server.authentication.key_set import KeySet
from polytope_server.authentication.oauth import Provider
from polytope_server.authentication.outgoing import Service
from polytope_server.authentication.tokens import (
    MAX_TOKEN_CHARACTERS,
    Verifier,
    WrongAudience,
    unverified,
)
from polytope_server.config.identity_services import OpenidOfflineAccessSection
from polytope_server.errors import BackendUnavailable, NotAuthenticated
from polytope_server.user import User

logger = logging.getLogger(__name__)

_REFUSED = "The token is not accepted."


class OpenidOfflineAccessAuthenticator:
    """See `polytope_server.authentication.Authenticator`.

    The provider is asked whether the token is one for offline access (unless that is switched off), and for
    an access token in exchange, which is then verified like any other: it says who the user is.
    """

    Config = OpenidOfflineAccessSection
    scheme = "Bearer"
    cacheable = True

    def __init__(self, config: OpenidOfflineAccessSection, *, realm: str) -> None:
        self._config, self._realm = config, realm
        name = f"openid_offline_access of {realm}"
        service = Service(name, timeout_s=config.timeout, ca_file=config.ca_file)
        self._name = name
        self._provider = Provider(service, base=config.iam_url, realm=config.iam_realm)
        self._verifier = Verifier(
            KeySet(service, config.cert_url),
            algorithms=config.algorithms,
            audience=[config.jwt_aud] if config.jwt_aud else [],
            issuer=config.jwt_iss,
            client_id=config.jwt_aud or config.public_client_id,
            leeway_s=config.leeway,
        )

    def challenge(self) -> str:
        return header.challenge(self.scheme, realm=self._realm)

    def login_name(self, credential: str) -> str:  # noqa: ARG002
        """Nobody: tokens are too long to be guessed, and say nothing of their users."""
        return ""

    def authenticate(self, credential: str) -> User:
        if not _may_be_a_token(credential) or self._is_something_else(credential):
            raise NotAuthenticated(_REFUSED)
        ends_at = None if self._config.disable_check else self._introspected(credential)
        access_token = self._provider.token(
            {
                "grant_type": "refresh_token",
                "client_id": self._config.public_client_id,
                "refresh_token": credential,
            }
        )
        try:
            claims = self._verifier.verified(access_token)
        except WrongAudience:
            logger.warning("The user's tokens are not for this service", extra={"of": self._name})
            raise
        except NotAuthenticated as exc:
            text = f"{self._name}: the token that it gives out is not good by cert_url and jwt_iss"
            raise BackendUnavailable(text) from exc
        return User(
            username=claims.subject,
            realm=self._realm,
            roles=claims.roles | {"default"},
            valid_until=min(claims.expires_at, ends_at or claims.expires_at),
        )

    def _introspected(self, token: str) -> float | None:
        """Until when the token is good, if that is known."""
        secret = self._config.private_client_secret
        said = self._provider.introspection(
            token,
            client_id=self._config.private_client_id,
            client_secret=secret.get_secret_value() if secret else "",
        )
        if not said["active"] or not _is_offline(said):
            raise NotAuthenticated(_REFUSED)
        ends_at = said.get("exp")
        # 0 is a token that never ends
        return float(ends_at) if isinstance(ends_at, int | float) and ends_at > 0 else None

    def _is_something_else(self, token: str) -> bool:
        """Whether it says itself that it is for something else, or of somebody else: then nobody sees it."""
        try:
            head, said = unverified(token)
        except NotAuthenticated:
            return False  # no signed token; it may be good all the same
        issuer, kind = said.get("iss"), said.get("typ", "Offline")
        is_foreign = self._config.jwt_iss is not None and issuer not in (None, self._config.jwt_iss)
        return is_foreign or head.get("typ") == "at+jwt" or kind != "Offline"


def _may_be_a_token(text: str) -> bool:
    return 0 < len(text) <= MAX_TOKEN_CHARACTERS and text.isascii() and text.isprintable()


def _is_offline(said: Any) -> bool:
    """Whether it is for offline access, as far as the provider says what kind of token it is."""
    kinds = [said[name] for name in ("typ", "token_type") if name in said]
    return all(isinstance(kind, str) and kind.lower() == "offline" for kind in kinds)
