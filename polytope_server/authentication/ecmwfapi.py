"""Keys of the ECMWF web API, by ``EmailKey address:key``."""

import logging
from types import MappingProxyType
from typing import Any

from polytope_server.authentication import header
from polytope_server.authentication.outgoing import Service
from polytope_server.config.identity_services import EcmwfApiSection
from polytope_server.errors import BackendUnavailable, NotAuthenticated
from polytope_server.user import User

logger = logging.getLogger(__name__)

_REFUSED = "The e-mail address or the key are not accepted."


class EcmwfApiAuthenticator:
    """See `polytope_server.authentication.Authenticator`.

    Gives the attributes ``ecmwf-email`` and ``ecmwf-apikey``, by which datasources act for the user. Such a
    user is never put into a shared cache.
    """

    Config = EcmwfApiSection
    scheme = "EmailKey"
    cacheable = True

    def __init__(self, config: EcmwfApiSection, *, realm: str) -> None:
        self._realm = realm
        self._url = f"{config.url.rstrip('/')}/who-am-i"
        self._service = Service(
            f"ecmwfapi of {realm}",
            timeout_s=config.timeout,
            proxy=config.proxy,
            ca_file=config.ca_file,
        )

    def challenge(self) -> str:
        return header.challenge(self.scheme, realm=self._realm)

    def login_name(self, credential: str) -> str:
        return credential.partition(":")[0].strip().lower()

    def authenticate(self, credential: str) -> User:
        email, key = header.email_key(credential)
        answer = self._service.call("GET", self._url, params={"token": key})
        if answer.status in (400, 401, 403):
            raise NotAuthenticated(_REFUSED)
        said = answer.json()
        if answer.status != 200 or said is None:
            raise BackendUnavailable(
                f"{self._service.name}: who-am-i answers nothing of use ({answer.status})"
            )
        uid, known_email = _text(said.get("uid")), _text(said.get("email"))
        if not uid or not known_email:
            raise BackendUnavailable(f"{self._service.name}: who-am-i tells neither who nor where")
        if known_email.lower() != email.lower():
            raise NotAuthenticated(_REFUSED)
        return User(
            username=uid,
            realm=self._realm,
            attributes=MappingProxyType({"ecmwf-email": known_email, "ecmwf-apikey": key}),
        )


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
