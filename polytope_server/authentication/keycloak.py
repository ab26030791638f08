"""Users and passwords of a realm of Keycloak, by HTTP Basic."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from polytope_server.authentication import header
from polytope_server.authentication.oauth import Provider
from polytope_server.authentication.outgoing import Service, text_of
from polytope_server.config.identity_services import KeycloakSection
from polytope_server.errors import NotAuthenticated
from polytope_server.user import User


class KeycloakAuthenticator:
    """See `polytope_server.authentication.Authenticator`.

    The user's name is the one that Keycloak has, not the one that was typed: case does not matter there, and
    an e-mail address may do.
    """

    Config = KeycloakSection
    scheme = "Basic"
    cacheable = True

    def __init__(self, config: KeycloakSection, *, realm: str) -> None:
        self._config, self._realm = config, realm
        service = Service(
            f"keycloak of {realm}",
            timeout_s=config.timeout,
            proxy=config.proxy,
            ca_file=config.ca_file,
            verifies=not config.skip_tls,
        )
        self._provider = Provider(service, base=config.url, realm=config.keycloak_realm)

    def challenge(self) -> str:
        return header.challenge(self.scheme, realm=self._realm)

    def login_name(self, credential: str) -> str:
        try:
            name, _ = header.login(credential)
        except NotAuthenticated:
            return ""
        return name.lower()

    def authenticate(self, credential: str) -> User:
        name, password = header.login(credential)
        if not name or not password:
            raise NotAuthenticated("User name or password are not accepted.")
        form = {
            "grant_type": "password",
            "scope": "openid",  # without it, there is no userinfo
            "client_id": self._config.client_id,
            "username": name,
            "password": password,
        }
        if self._config.client_secret is not None:
            form["client_secret"] = self._config.client_secret.get_secret_value()
        said = self._provider.userinfo(self._provider.token(form))
        known_as = said.get("preferred_username")
        return User(
            username=known_as if isinstance(known_as, str) and known_as else name,
            realm=self._realm,
            attributes=MappingProxyType(dict(_attributes(said, self._config.attributes))),
        )


def _attributes(said: Mapping[str, Any], wanted: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Those that the provider tells."""
    for ours, theirs in wanted.items():
        text = text_of(said.get(theirs))
        if text is not None:
            yield ours, text
