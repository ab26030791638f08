"""Users whom another server of this kind speaks for, by ``Federation secret:user:realm``."""

import hmac
import logging
import secrets

from polytope_server.authentication import header
from polytope_server.config.identity_services import FederationSection
from polytope_server.errors import NotAuthenticated
from polytope_server.user import User

logger = logging.getLogger(__name__)

_REFUSED = "The credential of this server is not accepted."


class FederationAuthenticator:
    """See `polytope_server.authentication.Authenticator`.

    The peer has asked its user for a password, or for whatever it takes; its secret is all that we ask. It
    speaks for users of the realms that it was allowed, and of no other.
    """

    Config = FederationSection
    scheme = "Federation"
    cacheable = True

    def __init__(self, config: FederationSection, *, realm: str) -> None:
        self._realm = realm
        self._allowed = frozenset(config.allowed_realms)
        self._key = secrets.token_bytes(32)
        self._known = self._digest(config.secret.get_secret_value())

    def challenge(self) -> str:
        return header.challenge(self.scheme, realm=self._realm)

    def login_name(self, credential: str) -> str:
        return credential.partition(":")[2]

    def authenticate(self, credential: str) -> User:
        secret, _, rest = credential.partition(":")
        username, _, realm = rest.partition(":")
        is_right = hmac.compare_digest(self._digest(secret), self._known)
        if not (is_right and username and realm and rest.isprintable()):
            raise NotAuthenticated(_REFUSED)
        if realm not in self._allowed:
            logger.warning(
                "A peer speaks for a realm that it was not allowed",
                extra={"realm": realm, "allowed": sorted(self._allowed)},
            )
            raise NotAuthenticated(_REFUSED)
        return User(username=username, realm=realm)

    def _digest(self, secret: str) -> bytes:
        # of equal length whatever is given
        return hmac.digest(self._key, secret.encode("utf-8", "surrogatepass"), "sha256")
