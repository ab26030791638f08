"""Signed tokens of an issuer with public keys, such as access tokens of Keycloak; by ``Bearer``."""

from polytope_server.authentication import header
from polytope_server.authentication.key_set import KeySet
from polytope_server.authentication.outgoing import Service
from polytope_server.authentication.tokens import Verifier
from polytope_server.config.identity_services import JwtSection
from polytope_server.user import User


class JwtAuthenticator:
    """See `polytope_server.authentication.Authenticator`. Asks its issuer for keys, never for users."""

    Config = JwtSection
    scheme = "Bearer"
    cacheable = True

    def __init__(self, config: JwtSection, *, realm: str) -> None:
        self._realm = realm
        service = Service(f"jwt of {realm}", timeout_s=config.timeout, ca_file=config.ca_file)
        self._verifier = Verifier(
            KeySet(service, config.cert_url),
            algorithms=config.algorithms,
            audience=config.audience,
            issuer=config.issuer,
            client_id=config.client_id,
            leeway_s=config.leeway,
        )

    def challenge(self) -> str:
        return header.challenge(self.scheme, realm=self._realm)

    def login_name(self, credential: str) -> str:  # noqa: ARG002
        """Nobody: signatures are not guessed, and whoever speaks for many has a new token for each."""
        return ""

    def authenticate(self, credential: str) -> User:
        claims = self._verifier.verified(credential)
        return User(
            username=claims.subject,
            realm=self._realm,
            roles=claims.roles | {"default"},
            valid_until=claims.expires_at,
        )
