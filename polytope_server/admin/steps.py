"""What operators may do to a request, and what that writes: from values to values."""

from collections.abc import Collection, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from polytope_server.audit import AuditEntry
from polytope_server.request import UNFINISHED, Request, Status, Step, Verb


class Command(StrEnum):
    """What an operator does to a request."""

    FAIL = "fail"
    REQUEUE = "requeue"
    REVOKE = "revoke"


FROM: Final[Mapping[Command, Collection[Status]]] = MappingProxyType(
    {
        Command.FAIL: UNFINISHED,
        Command.REQUEUE: frozenset({Status.PROCESSING, Status.FAILED}),
        Command.REVOKE: frozenset(Status),
    }
)
"""Where a request may stand for it."""

USUAL: Final[Mapping[Command, Collection[Status]]] = MappingProxyType(
    {**FROM, Command.REQUEUE: frozenset({Status.FAILED})}
)
"""Where requests stand that are meant if nothing is said: what runs is not requeued by accident."""

PAST: Final[Mapping[Command, str]] = MappingProxyType(
    {Command.FAIL: "failed", Command.REQUEUE: "requeued", Command.REVOKE: "revoked"}
)


def refusal(command: Command, request: Request) -> str | None:
    """Why the command cannot be done to the request as it stands, in words; None if it can be."""
    if request.status not in FROM[command]:
        possible = ", ".join(sorted(FROM[command]))
        return f"is {request.status}; only requests that are {possible} can be {PAST[command]}"
    if command is Command.REQUEUE and request.verb is Verb.ARCHIVE:
        if request.input is None:
            return "is an archive whose data never came; only its user can submit it again"
        if not request.input.name:
            return "is an archive whose data are gone; only its user can submit it again"
    return None


def step(command: Command, request: Request, audit: AuditEntry) -> Step:
    """The step from where the request stands; revoking is none."""
    if command is Command.FAIL:
        return Step(
            id=request.id,
            source=request.status,
            target=Status.FAILED,
            lease=request.lease,
            message=f"The operators of this server ended this request: {audit.reason}",
            audit=audit,
        )
    return Step(
        id=request.id,
        source=request.status,
        target=Status.WAITING,
        lease=request.lease,
        starts_over=True,
        audit=audit,
    )
