"""Who runs a command, as the operating system knows them, and whether they may."""

import grp
import os
import pwd
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from polytope_server.audit import AuditEntry
from polytope_server.errors import OperatorNotAllowed
from polytope_server.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Somebody at a command line.

    `user` and `groups` are names that the system gives to the ids of this process, or the ids where it
    has no names. `sudo_user` is from the environment: good to know, and proof of nothing.
    """

    user: str
    groups: frozenset[str]
    sudo_user: str | None
    host: str

    @classmethod
    def current(cls, environ: Mapping[str, str]) -> Self:
        return cls(
            user=_user_name(os.getuid()),
            groups=frozenset(_group_name(number) for number in {os.getgid(), *os.getgroups()}),
            sudo_user=environ.get("SUDO_USER") or None,
            host=socket.gethostname(),
        )

    def must_be_among(self, users: Collection[str] | None) -> None:
        """Return if one of *users* is this user or a group of theirs, or if there is no such list.

        Raises:
            OperatorNotAllowed
        """
        if users is not None and not {self.user, *self.groups} & set(users):
            raise OperatorNotAllowed(
                f"{self.user} may not use this command; admin.users names those who may"
            )

    def entry(
        self, command: str, target: str, *, reason: str = "", before: Request | None = None
    ) -> AuditEntry:
        """What is kept of a command of theirs."""
        return AuditEntry(
            command=command,
            target=target,
            user=self.user,
            sudo_user=self.sudo_user,
            host=self.host,
            reason=reason,
            before=_standing(before) if before is not None else {},
        )


def _standing(request: Request) -> Mapping[str, Any]:
    return {
        "status": request.status,
        "collection": request.collection,
        "user": request.user.as_json(),
        "attempt": request.attempt,
        "holder": request.holder,
        "message": request.message,
        "status_history": dict(request.status_history),
    }


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
