"""Slowing those who guess, and only those."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytope_server.authentication.guessing import (
    FREE_GUESSES,
    LONGEST_PAUSE_S,
    LONGEST_WAIT_S,
    REMEMBERED_S,
    Guesses,
    neighbourhood,
    pause_s,
)
from polytope_server.errors import NotAuthenticated


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


HERE, THERE = b"joe from here", b"joe from there"


def nth(number: int) -> bytes:
    return b"guess %d" % number


def spent(guesses: Guesses, place: bytes = HERE, count: int = FREE_GUESSES) -> None:
    for number in range(count):
        assert guesses.wait_s(place, nth(number)) == 0.0


def test_pauses_grow_to_the_longest_and_never_shrink() -> None:
    pauses = [pause_s(number) for number in range(100_000)]
    assert pauses[:FREE_GUESSES] == [0.0] * FREE_GUESSES
    assert 0 < pauses[FREE_GUESSES] < 1
    assert all(a <= b for a, b in pairwise(pauses))
    assert max(pauses) == LONGEST_PAUSE_S


def test_guesses_that_are_waited_for_never_wait_longer_than_the_longest_pause() -> None:
    clock = Clock()
    guesses = Guesses(clock=clock)
    waits = []
    for number in range(60):
        waits.append(guesses.wait_s(HERE, nth(number)))
        clock.now += waits[-1]
        guesses.was_wrong(nth(number))
    assert waits == [pause_s(number) if number < 32 else LONGEST_PAUSE_S for number in range(60)]


def test_guesses_at_once_wait_for_one_another_and_most_are_refused() -> None:
    clock = Clock()
    guesses = Guesses(clock=clock)
    granted, refused = [], 0
    for number in range(1000):
        try:
            granted.append(guesses.wait_s(HERE, nth(number)))
        except NotAuthenticated:
            refused += 1
    assert granted[:FREE_GUESSES] == [0.0] * FREE_GUESSES
    assert len(granted) <= FREE_GUESSES + 6
    assert refused == 1000 - len(granted)
    assert max(granted) <= LONGEST_WAIT_S


def test_in_an_hour_no_more_can_be_guessed_than_one_pause_allows_each() -> None:
    clock = Clock()
    guesses = Guesses(clock=clock)
    granted = 0
    for number in range(3600 * 4):
        try:
            guesses.wait_s(HERE, nth(number))
            granted += 1
        except NotAuthenticated:
            pass
        clock.now += 0.25
    assert granted <= 3600 / LONGEST_PAUSE_S + 15


def test_the_same_guess_again_keeps_its_turn() -> None:
    clock = Clock()
    guesses = Guesses(clock=clock)
    spent(guesses)
    first = guesses.wait_s(HERE, b"wrong")
    clock.now += first / 2
    assert guesses.wait_s(HERE, b"wrong") == pytest.approx(first / 2)
    clock.now += first
    assert guesses.wait_s(HERE, b"wrong") == 0.0
    assert guesses.wait_s(HERE, nth(0)) == 0.0


def test_elsewhere_nobody_waits() -> None:
    guesses = Guesses(clock=Clock())
    spent(guesses)
    assert guesses.wait_s(HERE, b"the right one") > 0
    assert guesses.wait_s(THERE, b"the right one") == 0.0


def test_who_was_right_does_not_wait_while_others_guess() -> None:
    guesses = Guesses(clock=Clock())
    guesses.was_right(HERE, b"right")
    spent(guesses)
    assert guesses.wait_s(HERE, b"another guess") > 0
    assert guesses.wait_s(HERE, b"right") == 0.0


def test_being_right_does_not_give_others_more_guesses() -> None:
    guesses = Guesses(clock=Clock())
    spent(guesses)
    guesses.was_right(HERE, b"right")
    assert guesses.wait_s(HERE, b"another guess") > 0


def test_a_password_that_is_not_right_any_more_is_a_guess() -> None:
    guesses = Guesses(clock=Clock())
    guesses.was_right(HERE, b"old")
    spent(guesses)
    guesses.was_wrong(b"old")
    assert guesses.wait_s(HERE, b"old") > 0


def test_what_nobody_could_judge_is_no_guess() -> None:
    guesses = Guesses(clock=Clock())
    for number in range(50):
        assert guesses.wait_s(HERE, nth(number)) == 0.0
        guesses.was_not_judged(HERE, nth(number))


def test_guesses_are_forgotten_in_time() -> None:
    clock = Clock()
    guesses = Guesses(clock=clock)
    spent(guesses)
    clock.now += REMEMBERED_S + 1
    spent(guesses)


def test_a_flood_of_names_and_passwords_is_held_in_bounded_memory() -> None:
    guesses = Guesses(clock=Clock())
    for number in range(30_000):
        guesses.wait_s(b"place %d" % number, b"guess")
        guesses.was_right(b"elsewhere", b"right %d" % number)
    assert len(guesses._places) <= 8192
    assert len(guesses._proven) <= 8192


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("unix:", "unix:"),
    ],
)
def test_a_neighbourhood_is_what_one_party_holds(address: str, expected: str) -> None:
    assert neighbourhood(address) == expected


@given(st.text())
def test_any_address_has_a_neighbourhood(address: str) -> None:
    assert isinstance(neighbourhood(address), str)
