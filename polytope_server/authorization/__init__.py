"""What somebody may do: roles and attributes of an authenticated user."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Protocol

from polytope_server.user import User


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What an authorizer adds to a user."""

    roles: Set[str] = frozenset()
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)


class Authorizer(Protocol):
    """Knows the users of its realm. Safe between threads."""

    def grant(self, user: User) -> Grant:
        """What this user gets here; an unknown one gets nothing.

        Raises:
            BackendUnavailable: whoever would know is away.
        """
