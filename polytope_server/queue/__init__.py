"""Carries ids from the broker to the workers, and hints to everybody. Never truth."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Topic(StrEnum):
    """What a hint is about; its text is the request id, or the name of what was marked."""

    SUBMITTED = "submitted"
    """A request waits: for the broker."""
    PUBLISHED = "published"
    """There is something on the queue: for workers."""
    TAKEN = "taken"
    """A worker took a request off the queue: there is room for another. For the broker."""
    CHANGED = "changed"
    """A request's status changed: for frontends that hold a poll of it, and the broker if it freed a slot."""
    REVOKED = "revoked"
    """A request was revoked, or taken from its worker: for the worker that runs it."""
    MARKED = "marked"
    """An operator has marked something, or taken a mark away: for the broker and the workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A request that may be taken, and for the how-many-th time it would be run."""

    id: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message that was handed to us and is not acknowledged yet. `tag` is the back-end's own."""

    message: Message
    tag: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """A wake-up. May get lost, come twice, or too early; nobody may rely on one."""

    topic: Topic
    text: str


class Hints(Protocol):
    """The hints about some topics, from the moment this was made."""

    def wait(self, timeout_s: float) -> Sequence[Hint]:
        """Hints that came since the last call; waits for one at most `timeout_s`, then empty.

        Never raises `BackendUnavailable`: with the queue away it is only a sleep.
        """

    def interrupt(self) -> None:
        """Make a `wait` in another thread return at once; safe in a signal handler."""


class Queue(Protocol):
    """Ids on their way to workers. Losing them all loses nothing, and doubles do no harm.

    Every method but `hint` may raise `BackendUnavailable`. Safe between threads and processes.
    """

    def ping(self) -> None:
        """Return if the queue answers."""

    def publish(self, messages: Sequence[Message]) -> None:
        """Put messages at the end. One that is there already need not be there twice."""

    def receive(self) -> Delivery | None:
        """The next message, or None at once. Nobody else gets it for some tens of seconds."""

    def acknowledge(self, delivery: Delivery) -> None:
        """Take a delivered message off the queue for good."""

    def put_back(self, delivery: Delivery) -> None:
        """Let somebody else have a delivered message, now."""

    def size(self) -> int:
        """How many messages are here, delivered but unacknowledged ones included. May be approximate."""

    def hint(self, topic: Topic, text: str = "") -> None:
        """Wake whoever listens for this topic. Never raises, never waits."""

    def listen(self, *topics: Topic) -> AbstractContextManager[Hints]:
        """Hints on these topics, while the context lasts."""
