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

    remembered_s: float
    """How long an answer may be remembered and given again for the same user with the same roles and
    attributes; 0 where asking costs nothing."""

    def grant(self, user: User) -> Grant:
        """What this user gets here; an unknown one gets nothing.

        Raises:
            BackendUnavailable: whoever would know is away.
        """
