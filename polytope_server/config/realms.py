"""All who tell users apart, wherever the configuration names them: one mapping of realms."""

from collections.abc import Mapping
from typing import Any, Final

from polytope_server.config.identity import RealmSection
from polytope_server.config.model import Config

AUTH_O_TRON: Final = "auth-o-tron"
"""The child of ``authentication`` that is used alone, if it is there."""
REALM_OF_API_KEYS: Final = "polytope"
"""Of the users whom ``api-keys.authenticator`` knows."""
FEDERATION: Final = "federation"
"""Stands for the realms that peers speak for; the users are of those."""


def realms(config: Config) -> Mapping[str, RealmSection]:
    """By name; ``federation`` and ``api-keys`` come after what stands in ``authentication``."""
    found = dict(config.authentication)
    if AUTH_O_TRON in found:
        return {AUTH_O_TRON: found[AUTH_O_TRON]}
    if config.api_keys.authenticator:
        _add(found, REALM_OF_API_KEYS, {"api-keys": config.api_keys.authenticator})
    if config.federation:
        _add(
            found,
            FEDERATION,
            {
                f"federation.{name}": {
                    "type": "federation",
                    "secret": peer.secret.get_secret_value(),
                    "allowed-realms": list(peer.allowed_realms),
                }
                for name, peer in config.federation.items()
            },
        )
    return found


def _add(
    sections: dict[str, RealmSection], realm: str, authenticators: Mapping[str, Mapping[str, Any]]
) -> None:
    known = sections.get(realm, RealmSection())
    sections[realm] = known.model_copy(
        update={"authenticators": {**known.authenticators, **authenticators}}
    )
