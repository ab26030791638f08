"""Who may: requirements of roles, as collections and datasources state them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from polytope_server.errors import ConfigurationError
from polytope_server.user import User

_WANTED = "must be a role, a list of roles, or a mapping from realm to roles"


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Any one of some roles; in every realm, or by realm. A realm that is not listed has none."""

    everywhere: frozenset[str] = frozenset()
    by_realm: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is required: the caller decides who that lets in."""
        return not self.everywhere and not self.by_realm

    def has(self, user: User) -> bool:
        """Whether the user holds one of them."""
        return bool(user.roles & (self.everywhere | self.by_realm.get(user.realm, frozenset())))

    @classmethod
    def read(cls, value: Any, *, where: str) -> Self:
        """From the configuration.

        Raises:
            ConfigurationError: it is no requirement of roles.
        """
        if isinstance(value, Mapping):
            return cls(by_realm={str(r): _names(v, where=f"{where}.{r}") for r, v in value.items()})
        return cls(everywhere=_names(value, where=where))


def _names(value: Any, *, where: str) -> frozenset[str]:
    match value:
        case None:
            return frozenset()
        case str() if value:
            return frozenset({value})
        case list() | tuple() | set() | frozenset() if all(isinstance(v, str) and v for v in value):
            return frozenset(value)
    raise ConfigurationError(f"{where}: {_WANTED}")
