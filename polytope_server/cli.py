"""One command, one sub-command per process. Nothing heavy is imported before it is needed."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from polytope_server.admin.commands import admin_app
from polytope_server.errors import BackendUnavailable, ConfigurationError

if TYPE_CHECKING:
    from polytope_server.config.files import ConfigFiles
    from polytope_server.config.loading import Loaded
    from polytope_server.config.model import Config
    from polytope_server.data.place import Place
    from polytope_server.lifecycle import Hangup
    from polytope_server.usage.report import Reading, Wanted

EXIT_CONFIGURATION = 78
EXIT_UNAVAILABLE = 69

app = typer.Typer(
    name="polytope-server",
    help="REST service that hands out slices of weather and climate hypercubes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(no_args_is_help=True, help="Check, show and describe configurations.")
app.add_typer(config_app, name="config")
app.add_typer(admin_app, name="admin")
data_app = typer.Typer(
    no_args_is_help=True, help="Back up, restore and upgrade the data of the embedded back-ends."
)
app.add_typer(data_app, name="data")

Files = Annotated[
    list[Path] | None,
    typer.Option(
        "-f",
        "--config",
        help="Configuration file; may be repeated, later ones win.",
        metavar="FILE",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse unknown keys.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Directory of a standalone server.", metavar="DIR"),
]
Contents = Annotated[bool, typer.Option("--sha256", help="Compare the bytes of every object, too.")]


@app.command()
def frontend(files: Files = None, strict: Strict = False) -> None:
    """Serve the REST API."""

    def run(config: "Config", files: "ConfigFiles", hangup: "Hangup") -> None:
        from polytope_server.frontend.process import run

        run(config, files, hangup)

    _process("frontend", files, strict, run)


@app.command()
def broker(files: Files = None, strict: Strict = False) -> None:
    """Schedule requests, fairly and within the limits."""

    def run(config: "Config", files: "ConfigFiles", hangup: "Hangup") -> None:
        from polytope_server.broker.process import run

        run(config, files, hangup)

    _process("broker", files, strict, run)


@app.command()
def worker(files: Files = None, strict: Strict = False) -> None:
    """Take requests off the queue and fetch their data."""

    def run(config: "Config", files: "ConfigFiles", hangup: "Hangup") -> None:
        from polytope_server.worker.process import run

        run(config, files, hangup)

    _process("worker", files, strict, run)


@app.command("garbage-collector")
def garbage_collector(
    files: Files = None,
    strict: Strict = False,
    once: Annotated[bool, typer.Option("--once", help="One pass, then end.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what one pass would remove; remove nothing.")
    ] = False,
) -> None:
    """Remove what is old, too much, or left behind."""

    def run(config: "Config", files: "ConfigFiles", hangup: "Hangup") -> None:
        from polytope_server.garbage_collector.process import run

        run(config, files, hangup, once=once, dry_run=dry_run)

    _process("garbage-collector", files, strict, run)


@app.command("object-store")
def object_store(files: Files = None, strict: Strict = False) -> None:
    """Serve staged objects over HTTP, where S3 is not wanted."""

    def run(config: "Config", files: "ConfigFiles", hangup: "Hangup") -> None:
        from polytope_server.object_store.process import run

        run(config, files, hangup)

    _process("object-store", files, strict, run)


@app.command()
def standalone(
    files: Files = None,
    strict: Strict = False,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Default: ~/.local/share/polytope-server.", metavar="DIR"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            help="Port of the REST API, whatever the files say. Default: theirs, or 5000.",
            min=1,
            max=65535,
        ),
    ] = None,
) -> None:
    """Run all processes on this machine; needs no configuration."""

    def run() -> None:
        from polytope_server.standalone import run

        run(files or [], data_dir=data_dir, port=port, strict=strict)

    _guarded("standalone", run)


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the walk.")] = False,
    port: Annotated[
        int, typer.Option("--port", help="Port of the REST API.", min=1, max=65535)
    ] = 5000,
) -> None:
    """Write a small FDB, start a server on it, and use it as a user would."""

    def run() -> None:
        from polytope_server.demo.run import run

        run(once=once, port=port)

    _guarded("demo", run)


@app.command()
def health(
    host: Annotated[str, typer.Option("--host", help="Where the process listens.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", help="Of a frontend, or the health_port of another process.")
    ] = 5000,
) -> None:
    """Ask a process whether its back-ends answer; exit status 0 if all do."""

    def run() -> None:
        from polytope_server.observability.health import ask

        ready, states = ask(host, port, timeout_s=10.0)
        for name, state in states.items():
            typer.echo(f"{name}: {state}")
        typer.echo("ready" if ready else "not ready")
        if not ready:
            raise typer.Exit(1)

    _guarded("health", run)


@config_app.command("check")
def config_check(files: Files = None, strict: Strict = False) -> None:
    """Say everything that is wrong with a configuration."""

    def run() -> None:
        from polytope_server.collection import collections_of

        loaded = _load(files, strict=strict)
        collections = collections_of(loaded.config)
        for warning in loaded.warnings:
            typer.echo(f"warning: {warning}")
        typer.echo(
            f"The configuration is good; collections: {len(collections)}, "
            f"datasources: {len(loaded.config.datasources)}."
        )

    _guarded("config check", run, one_line=False)


@config_app.command("show")
def config_show(files: Files = None, strict: Strict = False) -> None:
    """Print what is in effect and where it comes from; secrets are hidden."""

    def run() -> None:
        from polytope_server.config.show import show

        for line in show(_load(files, strict=strict)):
            typer.echo(line)

    _guarded("config show", run, one_line=False)


@config_app.command("reference")
def config_reference() -> None:
    """Print the page docs/configuration-reference.md, made from the models of all sections."""
    from polytope_server.config.reference import reference

    typer.echo(reference(), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the configuration."""
    import json

    from polytope_server.config.schema import schema

    typer.echo(json.dumps(schema(), indent=2))


@app.command()
def usage(
    files: Files = None,
    strict: Strict = False,
    data_dir: DataDir = None,
    only: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            help="Read this file of records, and nothing else; may be repeated, oldest first.",
            metavar="FILE",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", help="Finished then or later: 2026-01-31, or 7d ago.", metavar="TIME"
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Finished before then.", metavar="TIME")
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", help="Of this user.", metavar="NAME")
    ] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", help="Of this collection.", metavar="NAME")
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="A table by user and collection, instead of lines.")
    ] = False,
) -> None:
    """Print what finished requests have used, as JSON lines."""

    def run() -> None:
        import time

        from polytope_server.usage.report import Reading, Wanted, moment

        now = time.time()
        wanted = Wanted(
            since=moment(since, option="--since", now=now) if since is not None else None,
            until=moment(until, option="--until", now=now) if until is not None else None,
            user=user,
            collection=collection,
        )
        if only:
            reading = Reading(only, None)
        else:
            from polytope_server.usage.report import files_of

            place = _place(files, data_dir, strict=strict)
            path = place.usage.path
            reading = Reading(files_of(path) if path else (), place.open_store())
        _print_usage(reading, wanted, summary=summary)

    _guarded("usage", run)


def _print_usage(reading: "Reading", wanted: "Wanted", *, summary: bool) -> None:
    import json

    from polytope_server.usage.report import table, totals

    records = (record for record in reading if record in wanted)
    if summary:
        from rich.console import Console

        Console().print(table(totals(records)))
    else:
        for record in records:
            sys.stdout.write(json.dumps(record, separators=(",", ":")) + "\n")
    if reading.strange:
        sys.stderr.write(f"polytope-server usage: {reading.strange} lines are no records of use\n")


@data_app.command("status")
def data_status(files: Files = None, strict: Strict = False, data_dir: DataDir = None) -> None:
    """Say where the data are, of which version, and how much there is; changes nothing."""

    def run() -> None:
        from polytope_server.data.status import describe

        for name, text in describe(_place(files, data_dir, strict=strict)):
            typer.echo(f"{name}: {text}")

    _guarded("data status", run)


@data_app.command("backup")
def data_backup(
    destination: Annotated[
        Path, typer.Argument(help="A directory that is not there yet.", metavar="DEST")
    ],
    files: Files = None,
    strict: Strict = False,
    data_dir: DataDir = None,
    no_objects: Annotated[
        bool, typer.Option("--no-objects", help="Without the objects of the staging.")
    ] = False,
    copy: Annotated[
        bool,
        typer.Option("--copy", help="Copy objects, even where links to the same bytes would do."),
    ] = False,
) -> None:
    """Copy everything, whole and consistent, while the server goes on."""

    def run() -> None:
        place = _place(files, data_dir, strict=strict)
        _back_up(place, destination, objects=not no_objects, may_link=not copy)

    _guarded("data backup", run)


def _back_up(place: "Place", destination: Path, *, objects: bool, may_link: bool) -> None:
    from polytope_server.data.backup import back_up
    from polytope_server.data.progress import shown

    with shown() as progress:
        report = back_up(place, destination, objects=objects, may_link=may_link, progress=progress)
    for line in report.lines():
        typer.echo(line)


@data_app.command("check")
def data_check(
    source: Annotated[Path, typer.Argument(help="A backup.", metavar="SRC")],
    contents: Contents = False,
) -> None:
    """See that a backup is whole, and say what it holds."""

    def run() -> None:
        from polytope_server.data.progress import shown
        from polytope_server.data.restore import check

        with shown() as progress:
            made = check(source, contents=contents, progress=progress)
        for line in made.lines():
            typer.echo(line)
        typer.echo("The backup is whole.")

    _guarded("data check", run)


@data_app.command("restore")
def data_restore(
    source: Annotated[Path, typer.Argument(help="A backup.", metavar="SRC")],
    files: Files = None,
    strict: Strict = False,
    data_dir: DataDir = None,
    contents: Contents = False,
    no_objects: Annotated[
        bool,
        typer.Option(
            "--no-objects",
            help="Leave the staging as it is, and requests out that it has no data of.",
        ),
    ] = False,
) -> None:
    """Put a backup where a server will find it; there must be no data yet, and no server."""

    def run() -> None:
        from polytope_server.data.progress import shown
        from polytope_server.data.restore import restore

        place = _place(files, data_dir, strict=strict)
        with shown() as progress:
            report = restore(
                place, source, objects=not no_objects, contents=contents, progress=progress
            )
        for line in report.lines():
            typer.echo(line)

    _guarded("data restore", run)


@data_app.command("upgrade")
def data_upgrade(
    files: Files = None,
    strict: Strict = False,
    data_dir: DataDir = None,
    backup: Annotated[
        Path | None,
        typer.Option("--backup", help="Back up to this new directory first.", metavar="DEST"),
    ] = None,
    no_backup: Annotated[
        bool, typer.Option("--no-backup", help="There is a backup already.")
    ] = False,
) -> None:
    """Bring the database up to date, after a backup; processes of the version before may go on."""

    def run() -> None:
        from polytope_server.data.status import upgrade

        if (backup is None) != no_backup:
            raise ConfigurationError(
                "say --backup DEST, or --no-backup if there is a backup already"
            )
        place = _place(files, data_dir, strict=strict)
        if backup is not None:
            _back_up(place, backup, objects=True, may_link=True)
        before, after = upgrade(place)
        typer.echo(
            f"The database was of version {before} and is of version {after} now."
            if before != after
            else f"The database is of version {after}; there was nothing to do."
        )

    _guarded("data upgrade", run)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ends the process."""
    app(args=None if arguments is None else list(arguments), prog_name="polytope-server")


def _process(
    name: str,
    files: list[Path] | None,
    strict: bool,
    run: Callable[["Config", "ConfigFiles", "Hangup"], None],
) -> None:
    """Load the configuration, begin to log, and be that process until it ends."""

    def start() -> None:
        import logging

        from polytope_server.config.files import ConfigFiles
        from polytope_server.lifecycle import PARENT_VARIABLE, Hangup, Stopped, end_with_parent
        from polytope_server.observability.logging import configure

        hangup = Hangup()
        parent = os.environ.get(PARENT_VARIABLE)
        if parent:
            end_with_parent(int(parent), signal.SIGTERM)
        configuration = ConfigFiles(
            files or [], strict=strict, environ=os.environ, are_watched=not parent
        )
        loaded = configuration.load()
        configure(loaded.config.logging, process=name)
        for warning in loaded.warnings:
            logging.getLogger(__name__).warning("configuration: %s", warning)
        try:
            run(loaded.config, configuration, hangup)
        except Stopped:
            logging.getLogger(__name__).info("stopped before it had started")

    _guarded(name, start)


def _load(files: list[Path] | None, *, strict: bool) -> "Loaded":
    from polytope_server.config.loading import load

    return load(files or [], strict=strict, environ=os.environ)


def _place(files: list[Path] | None, data_dir: Path | None, *, strict: bool) -> "Place":
    from polytope_server.data.place import place_of

    return place_of(files or [], data_dir, strict=strict, environ=os.environ)


def _guarded(name: str, action: Callable[[], None], *, one_line: bool = True) -> None:
    """Run *action*; what an operator can put right is said in words, not as a traceback."""
    try:
        action()
    except ConfigurationError as exc:
        _give_up(name, str(exc), EXIT_CONFIGURATION, one_line=one_line)
    except BackendUnavailable as exc:
        _give_up(name, str(exc), EXIT_UNAVAILABLE, one_line=one_line)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _give_up(name: str, reason: str, status: int, *, one_line: bool) -> NoReturn:
    text = "; ".join(reason.splitlines()) if one_line else reason
    sys.stderr.write(f"polytope-server {name}: {text}\n")
    raise typer.Exit(status)
