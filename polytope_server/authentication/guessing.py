"""Slows those who guess passwords, without slowing those who know theirs.

A guess is a credential that has not been proven. What counts is how many different ones came lately
for one user from one address: a client that repeats the same wrong password guesses nothing. Each
guess gets its turn, one after the other, so that sending many at once gains nothing, and is counted
when it gets the turn, so that hanging up before the answer gains nothing either. The same holds, from more
guesses on, for one address and all users together: new names are as cheap as new passwords.
"""

import functools
import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

from polytope_server.errors import NotAuthenticated

FREE_GUESSES: Final = 5
FREE_GUESSES_OF_ADDRESS: Final = 20
"""Of all users together: many who log in for the first time may share an address."""
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 5.0
LONGEST_WAIT_S: Final = 2 * LONGEST_PAUSE_S
"""Who would have to wait for longer is refused without a look at the password."""
REMEMBERED_S: Final = 600.0
"""A guess is forgotten so long after its turn."""
PROVEN_S: Final = 3600.0

_MAX_PLACES: Final = 8192
_MAX_GUESSES: Final = 40  # more than it takes to reach the longest pause
_MAX_PROVEN: Final = 8192


def pause_s(guesses: int, *, free: int = FREE_GUESSES) -> float:
    """How long a guess must keep away from the one before it, if so many came before."""
    if guesses < free:
        return 0.0
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(guesses - free, 16))


@functools.lru_cache(maxsize=4096)
def neighbourhood(address: str) -> str:
    """What one party surely holds as a whole: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((ip, 64), strict=False))


@dataclass(slots=True)
class _Place:
    """The guesses for one user from one address, in order of their turns."""

    turns: OrderedDict[bytes, float] = field(default_factory=OrderedDict)


class Guesses:
    """Who guessed what, in bounded memory: all keys are digests. Safe between threads, never blocks."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = Lock()
        self._places: OrderedDict[bytes, _Place] = OrderedDict()
        self._proven: OrderedDict[bytes, float] = OrderedDict()

    def wait_s(self, place: bytes, guess: bytes, *, free: int = FREE_GUESSES) -> float:
        """Take a turn for a guess, and say how long it is until then. A guess keeps its turn.

        The first *free* ones do not wait.

        Raises:
            NotAuthenticated: too many are waiting already; the guess is not worth a look.
        """
        with self._lock:
            now = self._clock()
            if self._is_proven(guess, now):
                return 0.0
            turns = self._at(place, now).turns
            turn = turns.get(guess)
            if turn is None:
                turn = max(now, next(reversed(turns.values()), now)) + pause_s(
                    len(turns), free=free
                )
                if turn - now > LONGEST_WAIT_S:
                    raise NotAuthenticated(
                        "There were too many failed logins. Wait some seconds and try again."
                    )
                turns[guess] = turn
                if len(turns) > _MAX_GUESSES:
                    turns.popitem(last=False)
            return max(0.0, turn - now)

    def is_proven(self, guess: bytes) -> bool:
        """Whether a credential was accepted lately, and not refused since."""
        with self._lock:
            return self._is_proven(guess, self._clock())

    def was_right(self, place: bytes, guess: bytes) -> None:
        """A credential was accepted: it is no guess, wherever it comes from."""
        with self._lock:
            self._forget(place, guess)
            self._proven[guess] = self._clock() + PROVEN_S
            self._proven.move_to_end(guess)
            while len(self._proven) > _MAX_PROVEN:
                self._proven.popitem(last=False)

    def was_wrong(self, guess: bytes) -> None:
        """A credential was refused; if it was accepted once, it is not any more."""
        with self._lock:
            self._proven.pop(guess, None)

    def was_not_judged(self, place: bytes, guess: bytes) -> None:
        """Nobody could say whether a credential is right: that is not the user's fault."""
        with self._lock:
            self._forget(place, guess)

    def _is_proven(self, guess: bytes, now: float) -> bool:
        return self._proven.get(guess, now) > now

    def _at(self, place: bytes, now: float) -> _Place:
        found = self._places.setdefault(place, _Place())
        self._places.move_to_end(place)
        while len(self._places) > _MAX_PLACES:
            self._places.popitem(last=False)
        while found.turns and next(iter(found.turns.values())) < now - REMEMBERED_S:
            found.turns.popitem(last=False)
        return found

    def _forget(self, place: bytes, guess: bytes) -> None:
        found = self._places.get(place)
        if found is not None:
            found.turns.pop(guess, None)
            if not found.turns:
                del self._places[place]
