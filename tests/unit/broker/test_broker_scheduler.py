"""What is chosen, as properties over all that can wait, be active and be limited."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytope_server.broker.scheduler import choose, take_turns
from polytope_server.request_store import Waiting
from polytope_server.user import User


@dataclass(frozen=True)
class SomeLimits:
    total: int | None = None
    per_user: int = 0
    per_name: Mapping[str, int] = field(default_factory=dict)

    def for_user(self, user: User) -> int:
        return self.per_name.get(user.username, self.per_user)


def users(*names: str) -> list[Waiting]:
    return [
        Waiting(id=f"{index}", user=User(username=name, realm="r"), attempt=1)
        for index, name in enumerate(names)
    ]


def active(**counts: int) -> dict[str, int]:
    return {User(username=name, realm="r").id: count for name, count in counts.items()}


NAMES = st.lists(st.sampled_from("abcd"), max_size=30)
LIMITS = st.builds(
    SomeLimits,
    total=st.none() | st.integers(0, 12),
    per_user=st.integers(0, 4),
    per_name=st.dictionaries(st.sampled_from("abcd"), st.integers(0, 5)),
)
ACTIVE = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 6))


@given(NAMES, LIMITS, ACTIVE, st.integers(0, 20))
@settings(deadline=None)
def test_no_limit_is_ever_exceeded(
    names: list[str], limits: SomeLimits, running: dict[str, int], free: int
) -> None:
    choice = choose(users(*names), limits=limits, active=active(**running), free=free)
    assert len(choice.chosen) <= free
    if limits.total is not None and choice.chosen:
        assert sum(running.values()) + len(choice.chosen) <= limits.total
    for name, count in Counter(w.user.username for w in choice.chosen).items():
        limit = limits.for_user(User(username=name, realm="r"))
        assert limit == 0 or running.get(name, 0) + count <= limit


@given(NAMES, LIMITS, ACTIVE, st.integers(0, 20))
@settings(deadline=None)
def test_whoever_is_passed_over_is_saturated_or_there_is_no_room(
    names: list[str], limits: SomeLimits, running: dict[str, int], free: int
) -> None:
    waiting = users(*names)
    choice = choose(waiting, limits=limits, active=active(**running), free=free)
    room = free
    if limits.total is not None:
        room = min(free, limits.total - sum(running.values()))
    if len(choice.chosen) < max(0, room):
        passed = [w for w in waiting if w not in choice.chosen]
        assert all(w.user.id in choice.saturated for w in passed)


@given(NAMES, LIMITS, ACTIVE, st.integers(0, 20))
@settings(deadline=None)
def test_the_order_of_turns_is_kept(
    names: list[str], limits: SomeLimits, running: dict[str, int], free: int
) -> None:
    waiting = users(*names)
    chosen = choose(waiting, limits=limits, active=active(**running), free=free).chosen
    assert [int(w.id) for w in chosen] == sorted(int(w.id) for w in chosen)


@pytest.mark.parametrize(
    ("limits", "waiting", "expected"),
    [
        (SomeLimits(per_user=2), ["a"] * 4, 2),
        (SomeLimits(per_user=2, per_name={"a": 3}), ["a"] * 4, 3),
        (SomeLimits(per_user=2, per_name={"a": 1}), ["a"] * 4, 1),
        (SomeLimits(total=5), list("abcdefgh"), 5),
        (SomeLimits(total=0), ["a", "b"], 0),
        (SomeLimits(), ["a"] * 15, 10),
    ],
)
def test_the_observed_cases(limits: SomeLimits, waiting: list[str], expected: int) -> None:
    assert len(choose(users(*waiting), limits=limits, active={}, free=10).chosen) == expected


@given(st.lists(st.integers(0, 6), max_size=5), st.integers(0, 20))
@settings(deadline=None)
def test_collections_take_turns(lengths: list[int], free: int) -> None:
    lines = [users(*["a"] * length) for length in lengths]
    taken = list(take_turns(lines, free=free))
    assert len(taken) == min(free, sum(lengths))
    counts = [sum(w is t for t in taken for w in line) for line in lines]
    for count, length in zip(counts, lengths, strict=True):
        assert count == length or count >= max(counts) - 1
