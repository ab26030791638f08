"""An OpenID provider that looks like Keycloak: a certified library, with Keycloak's paths and claims."""

import os
import shutil
from pathlib import Path
from typing import Any, Final

import requests

from services.base import INSTALLED, Server

USERS: Final = {"alice": "alicepw", "bob": "bob:pw"}
PUBLIC_CLIENT: Final = "api-public"
PRIVATE_CLIENT: Final = ("api-private", "private-secret")
"""May take users' passwords."""
INTROSPECTING_CLIENT: Final = ("api-introspect", "introspect-secret")
"""May ask about tokens."""


class OidcProvider(Server):
    """Forgets all tokens, and has new keys, after a restart.

    Args:
        access_ttl_s: how long its access tokens are good.
    """

    name = "oidc"
    installation = "apt-get install nodejs npm, then make services-install"
    programs = ("node", "node/node_modules/oidc-provider")

    def __init__(self, directory: Path | None = None, *, access_ttl_s: int = 300) -> None:
        super().__init__(directory)
        self._access_ttl_s = access_ttl_s

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port()}"

    @property
    def issuer(self) -> str:
        return f"{self.url}/realms/test"

    @property
    def cert_url(self) -> str:
        return f"{self.issuer}/protocol/openid-connect/certs"

    def tokens(self, user: str, *, scope: str = "openid offline_access") -> dict[str, Any]:
        """What a user's own program gets for a password: ``access_token`` and ``refresh_token``."""
        response = requests.post(
            f"{self.issuer}/protocol/openid-connect/token",
            data={
                "grant_type": "password",
                "client_id": PUBLIC_CLIENT,
                "username": user,
                "password": USERS[user],
                "scope": scope,
            },
            timeout=30,
        )
        response.raise_for_status()
        found: dict[str, Any] = response.json()
        return found

    def _launch(self) -> None:
        # modules are looked for beside the script
        script = self.directory / "oidc.mjs"
        shutil.copy(Path(__file__).with_suffix(".mjs"), script)
        modules = self.directory / "node_modules"
        if not modules.exists():
            os.symlink((INSTALLED / "node" / "node_modules").resolve(), modules)
        self._spawn(
            "oidc",
            [self.program("node"), "--no-warnings", str(script)],
            environment={"PORT": str(self.port()), "ACCESS_TTL": str(self._access_ttl_s)},
        )

    def _answers(self) -> bool:
        return requests.get(self.cert_url, timeout=2).status_code == 200
