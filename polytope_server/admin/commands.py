"""``polytope-server admin``: the command line. Nothing heavy is imported before it is needed."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polytope_server.errors import (
    BackendUnavailable,
    ConfigurationError,
    OperatorNotAllowed,
    PolytopeError,
)
from polytope_server.request import Request, Status

if TYPE_CHECKING:
    from polytope_server.admin.deployment import Deployment
    from polytope_server.admin.operations import Outcome
    from polytope_server.admin.steps import Command
    from polytope_server.request_store import Wanted

EXIT_REFUSED = 1
EXIT_STATUS = (
    (OperatorNotAllowed, os.EX_NOPERM),
    (ConfigurationError, os.EX_CONFIG),
    (BackendUnavailable, os.EX_UNAVAILABLE),
    (PolytopeError, EXIT_REFUSED),
)
"""The first that fits."""

_PAGE = 25
_LONGEST_TEXT = 500

admin_app = typer.Typer(
    no_args_is_help=True,
    help="Look into a running deployment, and step in. Needs its configuration, and no process.",
)

keys_app = typer.Typer(no_args_is_help=True, help="List and revoke users' API keys.")
admin_app.add_typer(keys_app, name="keys")


def _text(value: str) -> str:
    """An argument that can be stored, searched for and printed."""
    if not value.isprintable() or not value.strip() or len(value) > _LONGEST_TEXT:
        raise typer.BadParameter(f"must be 1 to {_LONGEST_TEXT} printable characters")
    return value


def _duration(value: str) -> float:
    from polytope_server.config.section import duration_s

    try:
        return duration_s(value)
    except ValueError as exc:
        raise typer.BadParameter(f"must be {exc}") from None


Files = Annotated[
    list[Path] | None,
    typer.Option("-f", "--config", help="Configuration file; may be repeated.", metavar="FILE"),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Of a standalone server, before any FILE.", metavar="DIR"),
]
AsJson = Annotated[bool, typer.Option("--json", help="A JSON object in each line.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")]
Reason = Annotated[
    str | None, typer.Option("--reason", help="For the audit.", metavar="TEXT", parser=_text)
]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", parser=_text)]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", parser=_text)]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")]
Statuses = Annotated[
    list[Status] | None, typer.Option("--status", help="In this status; may be repeated.")
]
OfUser = Annotated[
    str | None, typer.Option("--user", help="Of this user.", metavar="NAME", parser=_text)
]
OfRealm = Annotated[
    str | None, typer.Option("--realm", help="Of this realm.", metavar="NAME", parser=_text)
]
OfCollection = Annotated[
    str | None,
    typer.Option("--collection", help="Of this collection.", metavar="NAME", parser=_text),
]
OfWorker = Annotated[
    str | None,
    typer.Option("--worker", help="Held by this worker, or slot.", metavar="NAME", parser=_text),
]
OlderThan = Annotated[
    float | None,
    typer.Option(
        "--older-than", help="Submitted before, as in 1d12h.", metavar="AGE", parser=_duration
    ),
]
NewerThan = Annotated[
    float | None,
    typer.Option("--newer-than", help="Submitted since.", metavar="AGE", parser=_duration),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What the options choose requests by; ages in seconds."""

    statuses: list[Status] | None
    user: str | None
    realm: str | None
    collection: str | None
    worker: str | None
    older_than_s: float | None
    newer_than_s: float | None

    @property
    def is_something(self) -> bool:
        """Whether there is any such option."""
        return any(getattr(self, field.name) not in (None, []) for field in fields(self))

    def wanted(self, *, now: float, otherwise: Iterable[Status]) -> "Wanted":
        """Of all that has been submitted until now; the statuses may be said otherwise."""
        from polytope_server.request_store import Wanted

        usual = {Status.PROCESSING} if self.worker is not None else otherwise
        return Wanted(
            statuses=frozenset(self.statuses or usual),
            collection=self.collection,
            username=self.user,
            realm=self.realm,
            worker=self.worker,
            created_before=now - (self.older_than_s or 0.0),
            created_after=now - self.newer_than_s if self.newer_than_s is not None else 0.0,
        )


# --- looking


@admin_app.command("list")
def list_requests(
    files: Files = None,
    data_dir: DataDir = None,
    status: Statuses = None,
    user: OfUser = None,
    realm: OfRealm = None,
    collection: OfCollection = None,
    worker: OfWorker = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    oldest_first: Annotated[
        bool, typer.Option("--oldest-first", help="Instead of the newest.")
    ] = False,
    after: Annotated[
        str | None,
        typer.Option("--after", help="Go on behind this request.", metavar="ID", parser=_text),
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List requests in order of their submission, the newest first."""
    with _opened("list", files, data_dir) as deployment:
        from polytope_server.admin.report import print_requests, request_json, say_json, warn

        store = deployment.store
        chosen = Chosen(
            statuses=status,
            user=user,
            realm=realm,
            collection=collection,
            worker=worker,
            older_than_s=older_than,
            newer_than_s=newer_than,
        )

        wanted = chosen.wanted(now=store.now(), otherwise=Status)

        def pages() -> Iterator[Request]:
            last = store.get(after) if after is not None else None
            while page := store.find(
                wanted, after=last, newest_first=not oldest_first, limit=min(limit + 1, _PAGE)
            ):
                yield from page
                last = page[-1]

        found = pages()
        last_id = ""

        def shown() -> Iterator[Request]:
            nonlocal last_id
            for request in islice(found, limit):
                last_id = request.id
                yield request

        if as_json:
            for request in shown():
                say_json(request_json(request, whole=False))
        else:
            print_requests(shown(), now=store.now())
        if last_id and next(found, None) is not None:
            warn(f"there are more: --after {last_id}")


@admin_app.command()
def show(
    request_id: Annotated[str, typer.Argument(metavar="ID", parser=_text)],
    files: Files = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show everything about one request."""
    with _opened("show", files, data_dir) as deployment:
        from polytope_server.admin.report import print_request, request_json, say_json

        store = deployment.store
        request = store.get(request_id)
        line = store.positions(request.collection) if request.status is Status.WAITING else ()
        position = list(line).index(request_id) + 1 if request_id in line else None
        entries = store.noted(target=request_id)
        if as_json:
            audit = [entry.as_json() for entry in entries]
            say_json({**request_json(request), "position": position, "audit": audit})
        else:
            print_request(request, now=store.now(), position=position, entries=entries)


@admin_app.command()
def status(files: Files = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show requests, limits, queue, broker and workers at a glance."""
    with _opened("status", files, data_dir) as deployment:
        from polytope_server.admin.overview import overview
        from polytope_server.admin.report import overview_json, print_overview, say_json

        found = overview(deployment)
        if as_json:
            say_json(overview_json(found))
        else:
            print_overview(found)


@admin_app.command()
def workers(files: Files = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the workers and how they are."""
    with _opened("workers", files, data_dir) as deployment:
        from dataclasses import asdict

        from polytope_server.admin.overview import workers
        from polytope_server.admin.report import print_workers, say_json

        found = workers(deployment.store)
        if as_json:
            for worker in found:
                say_json(asdict(worker))
        else:
            print_workers(found)


@admin_app.command()
def audit(
    files: Files = None,
    data_dir: DataDir = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", help="A request, collection or worker.", metavar="NAME", parser=_text
        ),
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Show what operators did, the latest first."""
    with _opened("audit", files, data_dir) as deployment:
        from polytope_server.admin.report import print_entries, say_json

        found = deployment.store.noted(target=target, limit=limit)
        if as_json:
            for entry in found:
                say_json(entry.as_json())
        else:
            print_entries(found)


# --- stepping in: requests


@admin_app.command()
def fail(
    reason: Annotated[
        str,
        typer.Option("--reason", help="Told to the user, too.", metavar="TEXT", parser=_text),
    ],
    ids: Ids = None,
    files: Files = None,
    data_dir: DataDir = None,
    status: Statuses = None,
    user: OfUser = None,
    realm: OfRealm = None,
    collection: OfCollection = None,
    worker: OfWorker = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """End unfinished requests: these, or all that fit the options. Their users see them fail."""
    with _opened("fail", files, data_dir) as deployment:
        from polytope_server.admin.steps import Command

        chosen = Chosen(
            statuses=status,
            user=user,
            realm=realm,
            collection=collection,
            worker=worker,
            older_than_s=older_than,
            newer_than_s=newer_than,
        )
        _do(deployment, Command.FAIL, ids, chosen, reason=reason, yes=yes, as_json=as_json)


@admin_app.command()
def requeue(
    ids: Ids = None,
    reason: Reason = None,
    files: Files = None,
    data_dir: DataDir = None,
    status: Statuses = None,
    user: OfUser = None,
    realm: OfRealm = None,
    collection: OfCollection = None,
    worker: OfWorker = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Start failed or running requests over, under their ids: these, or all that fit the options.

    Without --status, the options choose failed requests only.
    """
    with _opened("requeue", files, data_dir) as deployment:
        from polytope_server.admin.steps import Command

        chosen = Chosen(
            statuses=status,
            user=user,
            realm=realm,
            collection=collection,
            worker=worker,
            older_than_s=older_than,
            newer_than_s=newer_than,
        )
        _do(deployment, Command.REQUEUE, ids, chosen, reason=reason, yes=yes, as_json=as_json)


@admin_app.command()
def revoke(
    ids: Ids = None,
    reason: Reason = None,
    files: Files = None,
    data_dir: DataDir = None,
    status: Statuses = None,
    user: OfUser = None,
    realm: OfRealm = None,
    collection: OfCollection = None,
    worker: OfWorker = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove requests with their data, as their users could: these, or all that fit the options."""
    with _opened("revoke", files, data_dir) as deployment:
        from polytope_server.admin.steps import Command

        chosen = Chosen(
            statuses=status,
            user=user,
            realm=realm,
            collection=collection,
            worker=worker,
            older_than_s=older_than,
            newer_than_s=newer_than,
        )
        _do(deployment, Command.REVOKE, ids, chosen, reason=reason, yes=yes, as_json=as_json)


# --- stepping in: collections and workers


@admin_app.command()
def pause(
    names: Names,
    reason: Reason = None,
    files: Files = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Pause collections: requests are accepted and wait, and what runs goes on."""
    with _opened("pause", files, data_dir) as deployment:
        from polytope_server.admin.operations import Operations

        operations = Operations(deployment)
        outcomes = (operations.pause(name, reason=reason or "") for name in names)
        _tell(outcomes, as_json=as_json)


@admin_app.command()
def resume(
    names: Names,
    reason: Reason = None,
    files: Files = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Let paused collections go on."""
    with _opened("resume", files, data_dir) as deployment:
        from polytope_server.admin.operations import Operations

        operations = Operations(deployment)
        outcomes = (operations.resume(name, reason=reason or "") for name in names)
        _tell(outcomes, as_json=as_json)


@admin_app.command()
def drain(
    names: Names,
    reason: Reason = None,
    files: Files = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Let workers finish what they run, and take nothing new. Their processes stay."""
    with _opened("drain", files, data_dir) as deployment:
        from polytope_server.admin.operations import Operations

        operations = Operations(deployment)
        outcomes = (operations.drain(name, reason=reason or "") for name in names)
        _tell(outcomes, as_json=as_json)


@admin_app.command()
def undrain(
    names: Names,
    reason: Reason = None,
    files: Files = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Let drained workers take requests again."""
    with _opened("undrain", files, data_dir) as deployment:
        from polytope_server.admin.operations import Operations

        operations = Operations(deployment)
        outcomes = (operations.undrain(name, reason=reason or "") for name in names)
        _tell(outcomes, as_json=as_json)


# --- API keys


@keys_app.command("list")
def list_keys(
    files: Files = None,
    data_dir: DataDir = None,
    user: OfUser = None,
    realm: OfRealm = None,
    as_json: AsJson = False,
) -> None:
    """List users' API keys that have not expired, by user. The keys themselves are not stored."""
    with _opened("keys list", files, data_dir) as deployment:
        from polytope_server.admin.operations import keys
        from polytope_server.admin.report import key_json, print_keys, say_json

        found = keys(deployment.store, username=user, realm=realm)
        if as_json:
            for key in found:
                say_json(key_json(key))
        else:
            print_keys(found, now=deployment.store.now())


@keys_app.command("revoke")
def revoke_keys(
    ids: Ids = None,
    reason: Reason = None,
    files: Files = None,
    data_dir: DataDir = None,
    user: OfUser = None,
    realm: OfRealm = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Revoke API keys: these, or all that fit the options. They are refused within two seconds."""
    with _opened("keys revoke", files, data_dir) as deployment:
        from polytope_server.admin.operations import Operations, keys

        if bool(ids) == (user is not None or realm is not None):
            raise typer.BadParameter(
                "name keys by their ids, or choose them by --user and --realm; one of the two"
            )
        if not ids:
            ids = [key.id for key in keys(deployment.store, username=user, realm=realm)]
            if ids and not yes:
                typer.confirm(f"Found {len(ids)} keys. Revoke them all?", abort=True, err=True)
        operations = Operations(deployment)
        outcomes = (operations.revoke_key(each, reason=reason or "") for each in ids)
        _tell(outcomes, as_json=as_json)


# --- what they share


@contextmanager
def _opened(
    command: str, files: list[Path] | None, data_dir: Path | None
) -> Iterator["Deployment"]:
    """The deployment, for somebody who may; errors end the process with one line and a status."""
    try:
        from polytope_server.admin.deployment import Deployment, configuration
        from polytope_server.admin.operator import Operator
        from polytope_server.observability.logging import configure

        config = configuration(files or [], data_dir)
        # a log file is for programs, a terminal for people
        mode = "console" if sys.stderr.isatty() else config.logging.mode
        configure(config.logging.model_copy(update={"mode": mode}), process="admin")
        operator = Operator.current(os.environ)
        operator.must_be_among(config.admin.users)
        yield Deployment(config, operator)
    except PolytopeError as exc:
        _say_error(f"polytope-server admin {command}: {'; '.join(str(exc).splitlines())}")
        raise typer.Exit(next(n for kind, n in EXIT_STATUS if isinstance(exc, kind))) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _say_error(text: str) -> None:
    from polytope_server.admin.report import warn

    warn(text)


def _do(
    deployment: "Deployment",
    command: "Command",
    ids: list[str] | None,
    chosen: Chosen,
    *,
    reason: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Do it to the requests that are named; or, after a question, to all that are chosen."""
    from polytope_server.admin.operations import Operations
    from polytope_server.admin.steps import USUAL

    if bool(ids) == chosen.is_something:
        raise typer.BadParameter(
            "name requests by their ids, or choose them by options such as --collection; one of the two"
        )
    operations = Operations(deployment)
    if ids:
        _tell((operations.one(command, each, reason=reason or "") for each in ids), as_json=as_json)
        return
    wanted = chosen.wanted(now=deployment.store.now(), otherwise=USUAL[command])
    counts: Counter[Status] = Counter()
    for (_, status), number in deployment.store.counts(wanted).items():
        counts[status] += number
    if counts and not yes:
        found = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
        typer.confirm(f"Found {found}. {command.capitalize()} them all?", abort=True, err=True)
    outcomes = operations.all(command, wanted, reason=reason or "")
    _tell(outcomes, as_json=as_json, in_short=True)


def _tell(outcomes: Iterable["Outcome"], *, as_json: bool, in_short: bool = False) -> None:
    """Say what came of each target, or *in_short* only how many there were and what was refused.

    Raises:
        typer.Exit: something was refused.
    """
    from polytope_server.admin.report import say, say_json, warn

    numbers: Counter[str] = Counter()
    refused = 0
    for outcome in outcomes:
        numbers["refused" if outcome.is_refused else outcome.text] += 1
        refused += outcome.is_refused
        if as_json:
            say_json({"target": outcome.target, "outcome": outcome.text, "done": outcome.is_done})
        elif outcome.is_refused:
            warn(f"{outcome.target}: {outcome.text}")
        elif not in_short:
            say(f"{outcome.target}: {outcome.text}")
    if in_short and not as_json:
        say(", ".join(f"{number} {text}" for text, number in numbers.items()) or "none found")
    if refused:
        raise typer.Exit(EXIT_REFUSED)
