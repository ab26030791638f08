"""Who somebody is."""

import functools
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

_NOBODY = uuid.UUID(int=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An authenticated user: a name in a realm, with roles and attributes.

    `attributes` may hold secrets that authenticators hand on (API keys): they are in no `repr`
    and are never stored with a request.
    """

    username: str
    realm: str
    roles: frozenset[str] = frozenset({"default"})
    attributes: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}), repr=False, compare=False, hash=False
    )
    valid_until: float | None = field(default=None, compare=False, hash=False)
    """Unix time at which what says so ends, such as a token; None if it has no end of its own. Not stored."""

    @property
    def id(self) -> str:
        """UUIDv5 of name and realm with their lengths, the key that records are found by."""
        return _user_id(self.username, self.realm)

    def as_json(self) -> dict[str, Any]:
        """Name, realm and roles; what is stored with a request."""
        return {"username": self.username, "realm": self.realm, "roles": sorted(self.roles)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "User":
        return cls(
            username=value["username"], realm=value["realm"], roles=frozenset(value["roles"])
        )


@functools.lru_cache(maxsize=4096)
def _user_id(username: str, realm: str) -> str:
    name = f"{username}{len(username)}{realm}{len(realm)}"
    return str(uuid.uuid5(_NOBODY, name))
