"""What operators do: each change with its audit entry, a log line, and a hint to whom it concerns."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polytope_server.admin.deployment import Deployment
from polytope_server.admin.steps import PAST, Command, refusal, step
from polytope_server.audit import DONE, AuditEntry
from polytope_server.errors import KeyNotFound, RequestNotFound
from polytope_server.queue import Topic
from polytope_server.request import Request, Status
from polytope_server.request_store import ApiKey, Mark, RequestStore, Wanted
from polytope_server.revocation import clear_away

logger = logging.getLogger(__name__)

_PAGE = 25
"""Whole requests that are held at once: each may be as long as a frontend accepts."""
_MOVES = 10
"""How often a request may have moved on while we look: it has not so many steps to take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a command for one target; *text* reads on from the target's name.

    One that was not done, and not refused either, did not need it, or has moved on meanwhile.
    """

    target: str
    text: str
    is_done: bool = True
    is_refused: bool = False


class Operations:
    """The commands that change something.

    Everything may be cut off at any line: a change and its entry are one transaction, and what comes
    after it (hints, the data of a revoked request) others find out, or clean up, by themselves.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._operator, self._store = deployment.operator, deployment.store

    # --- requests

    def one(self, command: Command, request_id: str, *, reason: str) -> Outcome:
        """Do it to one request, wherever it moves meanwhile."""
        for _ in range(_MOVES):
            entry = self._operator.entry(command, request_id, reason=reason)
            try:
                request = self._store.get(request_id)
            except RequestNotFound:
                return self._refused(entry, "is not stored here")
            if why := refusal(command, request):
                return self._refused(entry, why)
            if next(self._each(command, [request], reason)):
                _log(entry)
                return Outcome(target=request_id, text=PAST[command])
        return self._refused(entry, "does not stand still; try again")

    def all(self, command: Command, wanted: Wanted, *, reason: str) -> Iterator[Outcome]:
        """Do it to all that are wanted, a page at a time; what moves on meanwhile is left alone."""
        done, outcome = 0, "broken off"
        after: Request | None = None
        try:
            while page := self._store.find(wanted, after=after, limit=_PAGE):
                after = page[-1]
                for each in self._page(command, page, reason):
                    done += each.is_done
                    yield each
            outcome = DONE
        finally:
            entry = self._operator.entry(command, f"{done} requests", reason=reason)
            _log(entry.ending(outcome))

    def _page(self, command: Command, page: Sequence[Request], reason: str) -> Iterator[Outcome]:
        possible = []
        for request in page:
            if why := refusal(command, request):
                yield Outcome(target=request.id, text=why, is_done=False, is_refused=True)
            else:
                possible.append(request)
        taken = self._each(command, possible, reason)
        for request, is_done in zip(possible, taken, strict=True):
            text = PAST[command] if is_done else "moved on"
            yield Outcome(target=request.id, text=text, is_done=is_done)

    def _each(self, command: Command, requests: Sequence[Request], reason: str) -> Iterator[bool]:
        """Whether it was done to each of the requests, which stand as shown unless they moved on."""
        entries = [self._operator.entry(command, r.id, reason=reason, before=r) for r in requests]
        if command is Command.REVOKE:
            for request, entry in zip(requests, entries, strict=True):
                yield self._revoke(request, entry)
            return
        steps = [step(command, r, entry) for r, entry in zip(requests, entries, strict=True)]
        for before, taken in zip(requests, self._store.apply_each(steps), strict=True):
            if taken is not None:
                self._tell(before, taken)
            yield taken is not None

    def _revoke(self, request: Request, entry: AuditEntry) -> bool:
        staging = self._deployment.staging  # so that one that cannot be opened is told of before
        try:
            gone = self._store.remove(
                request.id, only_unfinished=not request.is_finished, audit=entry
            )
        except RequestNotFound:
            return False
        clear_away(gone, hint=self._deployment.hint, staging=staging)
        return True

    def _tell(self, before: Request, now: Request) -> None:
        if before.status is Status.PROCESSING:
            self._deployment.hint(Topic.REVOKED, now.id)  # its worker drops it
        self._deployment.hint(Topic.CHANGED, now.id)
        if now.status is Status.WAITING:
            self._deployment.hint(Topic.SUBMITTED, now.id)

    # --- collections and workers

    def pause(self, collection: str, *, reason: str) -> Outcome:
        """Let nothing more of a collection begin."""
        entry = self._operator.entry("pause", collection, reason=reason)
        if collection not in self._deployment.collections:
            known = ", ".join(sorted(self._deployment.collections)) or "none"
            return self._refused(entry, f"is not a collection; configured: {known}")
        return self._mark(Mark.PAUSED, entry, done="paused", already="is paused already")

    def resume(self, collection: str, *, reason: str) -> Outcome:
        """Let requests of a collection begin again."""
        entry = self._operator.entry("resume", collection, reason=reason)
        return self._unmark(Mark.PAUSED, entry, done="resumed", already="is not paused")

    def drain(self, worker: str, *, reason: str) -> Outcome:
        """Let a worker finish what runs, and take nothing new."""
        entry = self._operator.entry("drain", worker, reason=reason)
        known = sorted(each.name for each in self._store.workers())
        if worker not in known:
            return self._refused(entry, f"is not a worker; known: {', '.join(known) or 'none'}")
        return self._mark(Mark.DRAINING, entry, done="drains", already="drains already")

    def undrain(self, worker: str, *, reason: str) -> Outcome:
        """Let a worker take requests again."""
        entry = self._operator.entry("undrain", worker, reason=reason)
        return self._unmark(
            Mark.DRAINING, entry, done="takes requests again", already="does not drain"
        )

    def _mark(self, mark: Mark, entry: AuditEntry, *, done: str, already: str) -> Outcome:
        return self._marked(entry, self._store.mark(mark, entry.target, audit=entry), done, already)

    def _unmark(self, mark: Mark, entry: AuditEntry, *, done: str, already: str) -> Outcome:
        changed = self._store.unmark(mark, entry.target, audit=entry)
        return self._marked(entry, changed, done, already)

    def _marked(self, entry: AuditEntry, changed: bool, done: str, already: str) -> Outcome:
        if not changed:
            self._note(entry.ending(already))
            return Outcome(target=entry.target, text=already, is_done=False)
        _log(entry)
        self._deployment.hint(Topic.MARKED, entry.target)
        return Outcome(target=entry.target, text=done)

    # --- API keys

    def revoke_key(self, key_id: str, *, reason: str) -> Outcome:
        """Take a user's key away. Frontends look for it again within two seconds."""
        entry = self._operator.entry("revoke key", key_id, reason=reason)
        try:
            key = self._store.remove_key(key_id, audit=entry)
        except KeyNotFound:
            return self._refused(entry, "is no API key, or has expired")
        _log(entry)
        return Outcome(
            target=key_id, text=f"revoked; it was {key.user.username}@{key.user.realm}'s"
        )

    # --- what changed nothing

    def _refused(self, entry: AuditEntry, why: str) -> Outcome:
        self._note(entry.ending(f"refused: {why}"))
        return Outcome(target=entry.target, text=why, is_done=False, is_refused=True)

    def _note(self, entry: AuditEntry) -> None:
        self._store.note(entry)
        _log(entry)


def keys(store: RequestStore, *, username: str | None, realm: str | None) -> Sequence[ApiKey]:
    """Keys that have not expired, of everybody who is meant, by realm, user and time of creation."""
    found: list[ApiKey] = []
    after = ""
    while page := store.all_keys(after=after):
        after = page[-1].id
        found += [
            key
            for key in page
            if username in (None, key.user.username) and realm in (None, key.user.realm)
        ]
    return sorted(found, key=lambda key: (key.user.realm, key.user.username, key.created_at))


def _log(entry: AuditEntry) -> None:
    logger.info(
        "an operator's command",
        extra={
            "command": entry.command,
            "target": entry.target,
            "operator": entry.user,
            "sudo_user": entry.sudo_user,
            "host": entry.host,
            "reason": entry.reason,
            "outcome": entry.outcome,
        },
    )
