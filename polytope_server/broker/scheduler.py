"""What to schedule next: pure functions over what waits, what is active, and the limits."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from polytope_server.request_store import Waiting
from polytope_server.user import User


class Limits(Protocol):
    """How many requests of a collection may be active at once; see `polytope_server.collection`."""

    @property
    def total(self) -> int | None:
        """In all; None is no limit."""

    def for_user(self, user: User) -> int:
        """Of one user; 0 is no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was chosen, in order, and which users (by id) have all that they may have."""

    chosen: Sequence[Waiting]
    saturated: Set[str]


def choose(
    waiting: Sequence[Waiting], *, limits: Limits, active: Mapping[str, int], free: int
) -> Choice:
    """The first of *waiting* that the limits of their collection leave room for.

    Args:
        waiting: requests of one collection in the order of their turns.
        active: requests of this collection that are queued or processing, by user id.
        free: how many may be chosen at most.
    """
    counts = dict(active)
    room = free if limits.total is None else min(free, limits.total - sum(counts.values()))
    chosen: list[Waiting] = []
    saturated: set[str] = set()
    for candidate in waiting:
        if len(chosen) >= room:
            break
        user_id = candidate.user.id
        limit = limits.for_user(candidate.user)
        if limit and counts.get(user_id, 0) >= limit:
            saturated.add(user_id)
            continue
        counts[user_id] = counts.get(user_id, 0) + 1
        chosen.append(candidate)
    return Choice(chosen=chosen, saturated=saturated)


def take_turns(lines: Sequence[Sequence[Waiting]], *, free: int) -> Iterator[Waiting]:
    """One of each collection's line in turn, until all are empty or *free* are taken."""
    taken = 0
    for rank in range(max((len(line) for line in lines), default=0)):
        for line in lines:
            if rank < len(line):
                if taken >= free:
                    return
                taken += 1
                yield line[rank]
