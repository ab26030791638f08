"""The garbage collector as a process of its own."""

import sys

from polytope_server.config.files import ConfigFiles
from polytope_server.config.model import Config
from polytope_server.garbage_collector.loop import Collector
from polytope_server.lifecycle import Hangup, Stop, listening, open_chosen, telling_traces
from polytope_server.observability.families import COLLECTOR
from polytope_server.observability.health import LateChecks
from polytope_server.observability.metrics import Metrics
from polytope_server.queue import Queue
from polytope_server.reloading import Reload
from polytope_server.request_store import RequestStore
from polytope_server.staging import Staging
from polytope_server.usage.writer import Writer


def run(
    config: Config, files: ConfigFiles, hangup: Hangup, *, once: bool = False, dry_run: bool = False
) -> None:
    """Collect until SIGTERM; or *once*; or only print what would be removed.

    Raises:
        ConfigurationError: it cannot start.
        BackendUnavailable: a back-end was away during the only pass.
    """
    stop = Stop()
    stop.on_signals()
    metrics = Metrics(COLLECTOR)
    settings = config.garbage_collector
    reload = Reload(
        files,
        hangup,
        config,
        lambda snapshot, _before: snapshot.config.garbage_collector,
        process=COLLECTOR,
    )
    checks = LateChecks("request_store", "staging", "usage")
    port = None if once or dry_run else settings.health_port
    with (
        telling_traces(config.tracing, process=COLLECTOR) as traces,
        listening(settings.health_bind_to, port, checks, metrics),
    ):
        store: RequestStore = open_chosen(
            "request_store", config.request_store, stop=stop, metrics=metrics, checks=checks
        )
        queue: Queue = open_chosen("queue", config.queue, stop=stop, metrics=metrics)
        staging: Staging = open_chosen(
            "staging", config.staging, stop=stop, metrics=metrics, checks=checks
        )
        collector = Collector(
            store=store,
            staging=staging,
            queue=queue,
            settings=reload.current,
            metrics=metrics,
            say=_print,
            traces=traces,
        )
        if dry_run:
            _print(str(collector.collect(dry_run=True, stop=stop)))
            return
        writer = Writer(store=store, settings=config.usage)
        if once:
            _print(str(collector.collect(stop=stop)))
            writer.turn(stop)
            writer.leave()
            return
        checks.opened("usage", writer.ping)
        with reload.running(), writer.running(stop):
            collector.run(stop)


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
