"""Sections about who users are and what they may do: realms, and the ``plain`` back-ends."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, StringConstraints, field_validator

from polytope_server.config.section import Section

_ARGON2 = re.compile(
    r"\$argon2(?:id|i|d)\$(?:v=\d+\$)?m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+", re.ASCII
)


def _quoted_text(value: Any) -> Any:
    # YAML has already turned 0010 into 8 and no into False: what was meant is lost by now
    if isinstance(value, str | SecretStr):
        return value
    raise ValueError("text; put it between quotes")


def _text(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return _quoted_text(value)


def _empty_if_null(value: Any) -> Any:
    return {} if value is None else value


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else ([] if value is None else value)


Name = Annotated[str, StringConstraints(min_length=1), BeforeValidator(_quoted_text)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_list)]
Attributes = Annotated[
    Mapping[str, Annotated[SecretStr, BeforeValidator(_text)]], BeforeValidator(_empty_if_null)
]
"""User attributes; some are API keys, so none of them is ever shown."""
Backends = Annotated[Mapping[str, Mapping[str, Any]], BeforeValidator(_empty_if_null)]


class RealmSection(Section):
    """``authentication.<realm>``: back-ends under names of the operator's choice, each with a `type`."""

    authenticators: Backends = Field(default_factory=dict, repr=False)
    """Who tells users apart: names of your choice to back-ends, each with its `type`; tried in order."""
    authorizers: Backends = Field(default_factory=dict, repr=False)
    """Who gives roles and attributes; the same, and each sees what those before it have given."""

    def written(self) -> tuple[str, str]:
        """Authenticators and authorizers as JSON, in their order, which equal mappings need not share.

        For comparing; nobody may see it.
        """
        return json.dumps(self.authenticators, default=dict), json.dumps(
            self.authorizers, default=dict
        )


class PlainUser(Section):
    """One user and a password: clear text, or an Argon2 hash as ``argon2-cffi`` writes it."""

    uid: Annotated[Name, StringConstraints(pattern=r"^[^:]*$")]
    """Without a colon, which separates it from the password in a Basic credential."""
    password: Annotated[SecretStr, BeforeValidator(_quoted_text)]
    """Clear text, or an Argon2 hash that begins with ``$argon2``."""
    attributes: Attributes = Field(default_factory=dict)
    """Texts that datasources may need, such as a key for an archive; never shown."""

    @field_validator("password")
    @classmethod
    def _is_usable(cls, password: SecretStr) -> SecretStr:
        text = password.get_secret_value()
        if not text:
            raise ValueError("a password that is not empty")
        if text.startswith("$argon2") and not _ARGON2.fullmatch(text):
            raise ValueError("a whole Argon2 hash, $argon2id$v=19$m=...,t=...,p=...$salt$hash")
        return password

    @property
    def is_hashed(self) -> bool:
        return self.password.get_secret_value().startswith("$argon2")


class PlainAuthenticatorSection(Section):
    """``authentication.<realm>.authenticators.<name>`` of type ``plain``"""

    type: Literal["plain"] = "plain"
    """The back-end."""
    users: tuple[PlainUser, ...] = ()

    @field_validator("users")
    @classmethod
    def _are_distinct(cls, users: tuple[PlainUser, ...]) -> tuple[PlainUser, ...]:
        # lists of several files are joined: a password meant to replace another would stand beside it
        seen: set[str] = set()
        for user in users:
            if user.uid in seen:
                raise ValueError(f"a list that has each uid once; {user.uid!r} stands there twice")
            seen.add(user.uid)
        return users


class PlainAuthorizerSection(Section):
    """``authentication.<realm>.authorizers.<name>`` of type ``plain``"""

    type: Literal["plain"] = "plain"
    """The back-end."""
    roles: Annotated[Mapping[str, Names], BeforeValidator(_empty_if_null)] = Field(
        default_factory=dict
    )
    """Role to the uids that hold it."""
    user_attributes: Annotated[Mapping[str, Attributes], BeforeValidator(_empty_if_null)] = Field(
        default_factory=dict, alias="user-attributes"
    )
    """Shell-style pattern on the uid, case-sensitive, to what matching users get."""
    role_attributes: Annotated[Mapping[str, Attributes], BeforeValidator(_empty_if_null)] = Field(
        default_factory=dict, alias="role-attributes"
    )
    """Role to what those who hold it get."""
