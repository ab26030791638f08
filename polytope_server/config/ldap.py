"""Section of the authorizer that asks a directory."""

import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from polytope_server.config.section import (
    Duration,
    HomePath,
    Secret,
    Section,
    Text,
    Whole,
    is_address,
)

_ATTRIBUTE: Final = r"^[A-Za-z][A-Za-z0-9-]*$"
_DN: Final = re.compile(r"\s*[A-Za-z0-9.-]+\s*=.+", re.DOTALL)

_Words = Annotated[Text, StringConstraints(strip_whitespace=True, min_length=1)]


def _url(value: str) -> str:
    is_bare = "/" not in value.partition("://")[2].removesuffix("/")
    if not is_bare or not is_address(value, schemes=("ldap", "ldaps")):
        raise ValueError(
            "an address such as ldaps://directory.example.org, without anything behind it"
        )
    return value.rstrip("/")


def _dn(value: str) -> str:
    if not _DN.fullmatch(value):
        raise ValueError("a distinguished name such as OU=People,DC=example,DC=org")
    return value


def _filter(value: str) -> str:
    """Only whether its parentheses match: the rest is for the directory to judge."""
    depth = 0
    for number, character in enumerate(value):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 1 and number < len(value) - 1:
            depth = -1
            break
    if depth or not value:
        raise ValueError("one filter in parentheses, such as (objectClass=person)")
    return value


class LdapAuthorizerSection(Section):
    """``authentication.<realm>.authorizers.<name>`` of type ``ldap``"""

    type: Literal["ldap"] = "ldap"
    """The back-end."""
    url: Annotated[Text, AfterValidator(_url)]
    """Where the directory is: `ldaps://` for TLS, `ldap://` for none, or with `start_tls`."""
    search_base: Annotated[_Words, AfterValidator(_dn)]
    """The entry below which users are looked for, at any depth."""
    filter: Text = ""
    """Only groups whose distinguished names contain this, in any case, give roles."""
    bind_dn: Annotated[_Words, AfterValidator(_dn)] | None = None
    """Whom the server logs in as; left out, it is `ldap_user`, and without either nobody in particular."""
    ldap_user: _Words | None = None
    """The same as the directory takes it: a distinguished name or, with Active Directory, `name@domain`."""
    ldap_password: Secret | None = None
    """Of that user."""
    username_attribute: _Words | None = Field(default=None, alias="username-attribute")
    """The user's attribute here whose value is looked for, in place of the name."""
    uid_attribute: Annotated[Text, StringConstraints(pattern=_ATTRIBUTE)] = "cn"
    """Attribute of the directory that holds it; `sAMAccountName` and `uid` are usual as well."""
    user_filter: Annotated[_Words, AfterValidator(_filter)] = "(objectClass=person)"
    """What else an entry must match to be a user, so that nobody is mistaken for a group."""
    start_tls: bool = False
    """Whether an `ldap://` connection is turned into TLS before anything is said on it."""
    ca_file: HomePath | None = None
    """Certificates (PEM) of those who may have issued the directory's; left out, the system's."""
    tls_verify: bool = True
    """Whether the directory's certificate is checked; without it, anybody may claim to be the directory."""
    timeout: Annotated[Duration, Field(ge=0.1, le=20)] = 5.0
    """How long the directory may take for each step."""
    pool_size: Annotated[Whole, Field(ge=1, le=100)] = 4
    """How many connections are open at most, for each process."""
    remember: Annotated[Duration, Field(le=3600)] = 60.0
    """How long a user's roles are remembered, besides the minute for which a login is; 0 is not at all."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.bind_dn is not None and self.ldap_user is not None:
            raise ValueError("with one of bind_dn and ldap_user, not both")
        password = self.ldap_password.get_secret_value() if self.ldap_password else ""
        if bool(self.user) != bool(password):
            # a bind with a name and an empty password succeeds, as nobody
            raise ValueError(
                "with both a user (bind_dn or ldap_user) and ldap_password, or neither"
            )
        if self.start_tls and self.url.startswith("ldaps:"):
            raise ValueError("with an ldap:// url where start_tls is true; ldaps:// is TLS already")
        if self.ca_file is not None and not self.uses_tls:
            raise ValueError("with an ldaps:// url or start_tls: true where there is a ca_file")
        return self

    @property
    def user(self) -> str:
        """Whom to bind as; empty for nobody."""
        return self.bind_dn or self.ldap_user or ""

    @property
    def uses_tls(self) -> bool:
        return self.start_tls or self.url.startswith("ldaps:")
