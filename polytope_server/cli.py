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
    from polytope_server.lifecycle import Hangup

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


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the configuration."""
    import json

    from polytope_server.config.schema import schema

    typer.echo(json.dumps(schema(), indent=2))


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
