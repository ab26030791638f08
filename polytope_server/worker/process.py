"""The worker as a process of its own."""

from polytope_server.config.files import ConfigFiles
from polytope_server.config.model import Config
from polytope_server.lifecycle import Hangup, Stop, end_now, listening, open_chosen, telling_traces
from polytope_server.observability.families import WORKER
from polytope_server.observability.health import LateChecks
from polytope_server.observability.metrics import Metrics
from polytope_server.queue import Queue
from polytope_server.reloading import Reload, Snapshot
from polytope_server.request_store import RequestStore
from polytope_server.staging import Staging
from polytope_server.worker.supervisor import Source, Sources, Worker


def run(config: Config, files: ConfigFiles, hangup: Hangup) -> None:
    """Take and run requests until SIGTERM, then drain.

    Raises:
        ConfigurationError: it cannot start.
    """
    stop = Stop()
    stop.on_signals()
    metrics = Metrics(WORKER)
    reload = Reload(files, hangup, config, _sources, process=WORKER)
    settings = config.worker
    checks = LateChecks("request_store", "queue", "staging")
    with (
        telling_traces(config.tracing, process=WORKER) as traces,
        listening(settings.health_bind_to, settings.health_port, checks, metrics),
    ):
        store: RequestStore = open_chosen(
            "request_store", config.request_store, stop=stop, metrics=metrics, checks=checks
        )
        queue: Queue = open_chosen("queue", config.queue, stop=stop, metrics=metrics, checks=checks)
        staging: Staging = open_chosen(
            "staging", config.staging, stop=stop, metrics=metrics, checks=checks
        )
        worker = Worker(
            store=store,
            queue=queue,
            staging=staging,
            sources=reload.current,
            settings=settings,
            metrics=metrics,
            grace_s=config.reload.grace,
            traces=traces,
        )
        with reload.running():
            have_ended = worker.run(stop)
    if not have_ended:
        end_now()


def _sources(snapshot: Snapshot, _before: Sources | None) -> Sources:
    return Sources(
        by_name={
            (collection.name, rule.name): Source(type=rule.kind, options=rule.options)
            for collection in snapshot.collections.values()
            for rule in collection.datasources
        },
        log_level=snapshot.config.logging.level,
    )
