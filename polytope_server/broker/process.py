"""The broker as a process of its own."""

from collections.abc import Mapping

from polytope_server.broker.loop import Broker
from polytope_server.broker.scheduler import Limits
from polytope_server.config.files import ConfigFiles
from polytope_server.config.model import Config
from polytope_server.lifecycle import Hangup, Stop, listening, open_chosen, telling_traces
from polytope_server.observability.families import BROKER
from polytope_server.observability.health import LateChecks
from polytope_server.observability.metrics import Metrics
from polytope_server.queue import Queue
from polytope_server.reloading import Reload, Snapshot
from polytope_server.request_store import RequestStore


def run(config: Config, files: ConfigFiles, hangup: Hangup) -> None:
    """Schedule until SIGTERM.

    Raises:
        ConfigurationError: it cannot start.
    """
    stop = Stop()
    stop.on_signals()
    metrics = Metrics(BROKER)
    reload = Reload(files, hangup, config, _limits, process=BROKER)
    settings = config.broker
    checks = LateChecks("request_store", "queue")
    with (
        telling_traces(config.tracing, process=BROKER) as traces,
        listening(settings.health_bind_to, settings.health_port, checks, metrics),
    ):
        store: RequestStore = open_chosen(
            "request_store", config.request_store, stop=stop, metrics=metrics, checks=checks
        )
        queue: Queue = open_chosen("queue", config.queue, stop=stop, metrics=metrics, checks=checks)
        broker = Broker(
            store=store,
            queue=queue,
            limits=reload.current,
            settings=settings,
            metrics=metrics,
            grace_s=config.reload.grace,
            traces=traces,
        )
        with reload.running():
            broker.run(stop)


def _limits(snapshot: Snapshot, _before: Mapping[str, Limits] | None) -> Mapping[str, Limits]:
    return {name: collection.limits for name, collection in snapshot.collections.items()}
