"""Sections of the authenticators that ask somebody else, or believe what somebody else has signed."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from polytope_server.config.identity import Names
from polytope_server.config.section import Duration, HomePath, Secret, Section, Text, is_address

PROXIED: Final = frozenset({"ecmwfapi", "keycloak"})
"""Types that go through the proxy of the environment if their own section names none."""

_IN_A_CREDENTIAL: Final = re.compile(r"[!-~]+", re.ASCII)


def _address(url: str) -> str:
    if not is_address(url):
        raise ValueError(
            "an address such as https://login.example.org/path, without user, query and fragment"
        )
    return url


def _proxy(url: str) -> str:
    text = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.path.strip("/") or parts.query or parts.fragment or " " in text:
        raise ValueError("the address of a proxy such as http://proxy.example.org:3128")
    return text


def _peers_secret(secret: Any) -> Any:
    text = secret.get_secret_value()
    if not _IN_A_CREDENTIAL.fullmatch(text) or {":", ","} & set(text):
        raise ValueError("text of visible ASCII characters without a colon and a comma")
    return secret


def _of_a_peer(realms: tuple[str, ...]) -> tuple[str, ...]:
    if not realms or {"any", "*"} & set(realms):
        raise ValueError(
            "the names of the realms whose users this peer may speak for, each by name"
        )
    return realms


ServiceUrl = Annotated[Text, AfterValidator(_address)]
Proxy = Annotated[Text, AfterValidator(_proxy)]
NotEmpty = Annotated[Text, StringConstraints(min_length=1)]
Timeout = Annotated[Duration, Field(ge=0.1, le=60)]
Leeway = Annotated[Duration, Field(le=300)]
SomeSecret = Annotated[Secret, Field(min_length=1)]
Algorithm = Literal[
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES256K",
    "ES384",
    "ES512",
    "EdDSA",
]
"""Those with a public key: with a shared secret, everybody who can verify a token can make one."""
Algorithms = Annotated[tuple[Algorithm, ...], Field(min_length=1)]

_RSA: Final[tuple[Algorithm, ...]] = ("RS256", "RS384", "RS512")


class EcmwfApiSection(Section):
    """``authentication.<realm>.authenticators.<name>`` of type ``ecmwfapi``"""

    type: Literal["ecmwfapi"] = "ecmwfapi"
    """The back-end."""
    url: ServiceUrl
    """Of the API; keys are shown to `url`/who-am-i."""
    status_url: Annotated[Any, Field(repr=False)] = None
    timeout: Timeout = 5.0
    """For the connection, and again for the answer."""
    proxy: Proxy | None = Field(default=None, repr=False)
    """Goes between; `POLYTOPE_PROXY` of the environment if left out."""
    ca_file: HomePath | None = None
    """Certificates to go by, in PEM form; the public ones if left out."""


class KeycloakSection(Section):
    """``authentication.<realm>.authenticators.<name>`` of type ``keycloak``"""

    type: Literal["keycloak"] = "keycloak"
    """The back-end."""
    url: ServiceUrl
    """Of Keycloak, to which ``/realms/...`` is added."""
    keycloak_realm: NotEmpty
    """Its realm."""
    client_id: NotEmpty
    """Who we are there: a client that may use direct access grants."""
    client_secret: SomeSecret | None = None
    """Of that client; none if it is a public one."""
    attributes: Mapping[str, Text] = Field(default_factory=dict)
    """Our attribute to the field of userinfo that it is taken from."""
    skip_tls: bool = False
    """Take any certificate. Whoever is in between can then read all passwords; use `ca_file` instead."""
    timeout: Timeout = 3.0
    """For the connection, and again for the answer, of each of two calls."""
    proxy: Proxy | None = Field(default=None, repr=False)
    """Goes between; `POLYTOPE_PROXY` of the environment if left out."""
    ca_file: HomePath | None = None
    """Certificates to go by, in PEM form; the public ones if left out."""


class JwtSection(Section):
    """``authentication.<realm>.authenticators.<name>`` of type ``jwt``"""

    type: Literal["jwt"] = "jwt"
    """The back-end."""
    cert_url: ServiceUrl
    """Of the public keys (JWKS) of whoever issues the tokens."""
    client_id: NotEmpty
    """Whose roles (``resource_access``) count, besides those of the realm (``realm_access``)."""
    audience: Names = ()
    """Tokens must be for one of these; if left out, for `client_id` or for nobody in particular."""
    issuer: NotEmpty | None = None
    """What tokens must have as ``iss``; if left out, any whose signature is good."""
    algorithms: Algorithms = _RSA
    """What tokens may be signed with."""
    leeway: Leeway = 10.0
    """How far clocks may be apart."""
    timeout: Timeout = 5.0
    """For the connection, and again for the answer."""
    ca_file: HomePath | None = None
    """Certificates to go by, in PEM form; the public ones if left out."""


class OpenidOfflineAccessSection(Section):
    """``authentication.<realm>.authenticators.<name>`` of type ``openid_offline_access``"""

    type: Literal["openid_offline_access"] = "openid_offline_access"
    """The back-end."""
    iam_url: ServiceUrl
    """Of the provider, to which ``/realms/...`` is added."""
    iam_realm: NotEmpty
    """Its realm."""
    cert_url: ServiceUrl
    """Of its public keys (JWKS)."""
    public_client_id: NotEmpty
    """The client that users get their tokens from; it needs no secret."""
    private_client_id: Text = ""
    """Who we are when we ask about a token; needed unless `disable_check`."""
    private_client_secret: SomeSecret | None = None
    """Of that client; needed unless `disable_check`."""
    disable_check: bool = False
    """Do not ask whether a token is one for offline access, only what it is good for."""
    jwt_aud: NotEmpty | None = None
    """Whom access tokens must be for, and whose roles count; if left out, the public client's roles, and
    tokens may be for nobody in particular."""
    jwt_iss: NotEmpty | None = None
    """What access tokens must have as ``iss``; if left out, any whose signature is good."""
    algorithms: Algorithms = _RSA
    """What access tokens may be signed with."""
    leeway: Leeway = 10.0
    """How far clocks may be apart."""
    timeout: Timeout = 5.0
    """For the connection, and again for the answer, of each of up to three calls."""
    ca_file: HomePath | None = None
    """Certificates to go by, in PEM form; the public ones if left out."""

    @model_validator(mode="after")
    def _can_check(self) -> "OpenidOfflineAccessSection":
        is_client = bool(self.private_client_id) and self.private_client_secret is not None
        if not self.disable_check and not is_client:
            raise ValueError(
                "with private_client_id and private_client_secret, or with disable_check: true"
            )
        return self


class PeerSection(Section):
    """``federation.<name>``: another server, which speaks for users of its own"""

    secret: Annotated[SomeSecret, AfterValidator(_peers_secret)]
    """What it comes with; long and random."""
    allowed_realms: Annotated[Names, AfterValidator(_of_a_peer)] = Field(alias="allowed-realms")
    """The realms whose users it may speak for, each by name; also written ``allowed_realms``. Users of a
    realm that is configured here have the roles that its authorizers give."""

    @model_validator(mode="before")
    @classmethod
    def _has_one_spelling(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and {"allowed-realms", "allowed_realms"} <= value.keys():
            raise ValueError("with either allowed-realms or allowed_realms, which mean the same")
        return value


class FederationSection(PeerSection):
    """``authentication.<realm>.authenticators.<name>`` of type ``federation``"""

    type: Literal["federation"] = "federation"
    """The back-end; mostly there is an entry in the section ``federation`` instead."""


class AuthOTronSection(Section):
    """``authentication.auth-o-tron``: a server that identifies everybody, instead of all realms"""

    type: Literal["auth-o-tron"] = "auth-o-tron"
    """The back-end; may be left out in ``authentication.auth-o-tron``."""
    url: ServiceUrl
    """Of the server; credentials are shown to `url`/authenticate."""
    secret: SomeSecret
    """Which its answers are signed with."""
    timeout: Timeout = 5.0
    """For the connection, and again for the answer."""
    ca_file: HomePath | None = None
    """Certificates to go by, in PEM form; the public ones if left out."""
