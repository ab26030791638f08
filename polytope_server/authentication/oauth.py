"""The endpoints of an OpenID provider with Keycloak's paths, and what their answers mean."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from polytope_server.authentication.outgoing import Answer, Service
from polytope_server.errors import BackendUnavailable, NotAuthenticated

logger = logging.getLogger(__name__)

_THE_USERS: Final = frozenset(
    {"invalid_grant", "invalid_token", "invalid_request", "access_denied"}
)
"""What a token endpoint calls it when the user's credential is wrong; all else is ours, or passes.

Our requests have the same form each time, so an invalid one is so by what the user sent.
"""
_OURS: Final = frozenset(
    {"invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope"}
)

_REFUSALS: Final = (400, 401, 403)
_REFUSED: Final = "The credentials are not accepted."


class Provider:
    """One realm of a provider. Safe between threads.

    Args:
        base: its address, below which ``realms`` are.
    """

    def __init__(self, service: Service, *, base: str, realm: str) -> None:
        self._service = service
        self._base = f"{base.rstrip('/')}/realms/{realm}/protocol/openid-connect"

    def token(self, form: Mapping[str, str]) -> str:
        """An access token for what the form holds: a password or a refresh token.

        Raises:
            NotAuthenticated: the provider does not take it.
            BackendUnavailable: no answer, one that makes no sense, or we are not allowed to ask.
        """
        answer = self._service.call("POST", f"{self._base}/token", form=form)
        said = self._object(answer, "token")
        if answer.status == 200:
            token = said.get("access_token")
            if isinstance(token, str) and token:
                return token
        error = said.get("error")
        if answer.status in _REFUSALS and error in _THE_USERS:
            logger.info(
                "refused by the provider", extra={"by": self._service.name, "reason": error}
            )
            raise NotAuthenticated(_REFUSED)
        if answer.status in _REFUSALS and error in _OURS:
            raise self._misconfigured("token", f"{error}; see the client's id and secret there")
        raise self._senseless("token", answer)

    def introspection(self, token: str, *, client_id: str, client_secret: str) -> Mapping[str, Any]:
        """What the provider knows of a token; ``active`` says whether it is good.

        Raises:
            NotAuthenticated: it is of a kind that the provider knows nothing of.
            BackendUnavailable: no answer, one that makes no sense, or we are not allowed to ask.
        """
        answer = self._service.call(
            "POST",
            f"{self._base}/token/introspect",
            form={"token": token, "token_type_hint": "refresh_token"},
            basic=(client_id, client_secret),
        )
        if answer.status in (401, 403):
            raise self._misconfigured(
                "introspection", "see the private client's id and secret there"
            )
        said = self._object(answer, "introspection")
        if answer.status == 400 and said.get("error") not in _OURS:
            raise NotAuthenticated(_REFUSED)  # tokens of another kind, which it does not introspect
        if answer.status == 400:
            raise self._misconfigured("introspection", str(said["error"]))
        if answer.status == 200 and isinstance(said.get("active"), bool):
            return said
        raise self._senseless("introspection", answer)

    def userinfo(self, access_token: str) -> Mapping[str, Any]:
        """What the provider tells of the user of a token that it has just given out.

        Raises:
            BackendUnavailable: no answer, or one that makes no sense.
        """
        answer = self._service.call(
            "GET", f"{self._base}/userinfo", headers={"Authorization": f"Bearer {access_token}"}
        )
        if answer.status in (401, 403):
            raise self._misconfigured("userinfo", "its own token is not accepted there")
        said = self._object(answer, "userinfo")
        if answer.status != 200:
            raise self._senseless("userinfo", answer)
        return said

    def _object(self, answer: Answer, endpoint: str) -> Mapping[str, Any]:
        found = answer.json()
        if found is None:
            raise self._senseless(endpoint, answer)
        return found

    def _senseless(self, endpoint: str, answer: Answer) -> BackendUnavailable:
        return BackendUnavailable(
            f"{self._service.name}: its {endpoint} endpoint answers nothing of use ({answer.status})"
        )

    def _misconfigured(self, endpoint: str, reason: str) -> BackendUnavailable:
        return BackendUnavailable(
            f"{self._service.name}: its {endpoint} endpoint refuses us, not the user: {reason}"
        )
