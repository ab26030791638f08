"""What operators did, kept in the request store for those who ask later."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Self

DONE: Final = "done"
"""The outcome of a command that changed what it was to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One command of an operator on one target, and what came of it.

    `user` is the operating system's name of whoever the command ran as. `sudo_user` is what sudo said
    about who that really was: whoever runs a command may say so as well, so nothing is permitted by it.
    `before` says how a request stood. `at` is in Unix seconds, by the store's clock and the store's to
    set.
    """

    command: str
    target: str
    user: str
    sudo_user: str | None
    host: str
    reason: str = ""
    outcome: str = DONE
    before: Mapping[str, Any] = field(default_factory=dict, hash=False)
    at: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**value)

    def ending(self, outcome: str) -> Self:
        """The same command with another outcome."""
        return replace(self, outcome=outcome)
