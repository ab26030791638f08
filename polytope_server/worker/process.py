"""The worker as a process of its own."""

from polytope_server.collection import collections_of
from polytope_server.config.model import Config
from polytope_server.lifecycle import Stop, listening, open_chosen
from polytope_server.observability.metrics import Metrics
from polytope_server.queue import Queue
from polytope_server.request_store import RequestStore
from polytope_server.staging import Staging
from polytope_server.worker.supervisor import Source, Worker


def run(config: Config) -> None:
    """Take and run requests until SIGTERM, then drain.

    Raises:
        ConfigurationError: it cannot start.
    """
    stop = Stop()
    stop.on_signals()
    sources = {
        (collection.name, rule.name): Source(type=rule.kind, options=rule.options)
        for collection in collections_of(config).values()
        for rule in collection.datasources
    }
    store: RequestStore = open_chosen("request_store", config.request_store, stop=stop)
    queue: Queue = open_chosen("queue", config.queue, stop=stop)
    staging: Staging = open_chosen("staging", config.staging, stop=stop)
    metrics = Metrics()
    settings = config.worker
    checks = {"request_store": store.ping, "queue": queue.ping, "staging": staging.ping}
    with listening(settings.health_bind_to, settings.health_port, checks, metrics):
        Worker(
            store=store,
            queue=queue,
            staging=staging,
            find_source=lambda collection, name: sources.get((collection, name)),
            settings=settings,
            metrics=metrics,
            log_level=config.logging.level,
        ).run(stop)
