"""Who may: requirements of roles, as collections and datasources state them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Self

from polytope_server.errors import ConfigurationError
from polytope_server.language.showing import shown
from polytope_server.user import User

EVERYBODY: Final = "default"
"""The role that everybody has who could log in."""

_WANTED: Final = "must be a role, a list of roles, or a mapping of realms to these"


def roles_of(user: User) -> frozenset[str]:
    """All roles of a user, the one of everybody among them."""
    return user.roles | {EVERYBODY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Any one of some roles; in every realm, or by realm. A realm that is not listed has none."""

    everywhere: frozenset[str] = frozenset()
    by_realm: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_empty(self) -> bool:
        """Whether nothing is required: the caller decides who that lets in."""
        return not self.everywhere and not self.by_realm

    def has(self, user: User) -> bool:
        """Whether the user holds one of them."""
        wanted = self.everywhere | self.by_realm.get(user.realm, frozenset())
        return bool(roles_of(user) & wanted)

    @classmethod
    def read(cls, value: Any, *, where: str) -> Self:
        """From the configuration.

        Raises:
            ConfigurationError: it is no requirement of roles.
        """
        if isinstance(value, Mapping):
            realms = {str(r): _names(v, where=f"{where}.{r}") for r, v in value.items()}
            return cls(by_realm=MappingProxyType(realms))
        return cls(everywhere=_names(value, where=where))


def _names(value: Any, *, where: str) -> frozenset[str]:
    if value is None:
        return frozenset()
    names = value if isinstance(value, list | tuple | set | frozenset) else (value,)
    for name in names:
        # YAML takes a role that is all digits for a number
        if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
            raise ConfigurationError(f"{where}: {shown(name)} {_WANTED}")
    return frozenset(map(str, names))
