"""The broker as a process of its own."""

from polytope_server.broker.loop import Broker
from polytope_server.collection import collections_of
from polytope_server.config.model import Config
from polytope_server.lifecycle import Stop, listening, open_chosen
from polytope_server.observability.metrics import Metrics
from polytope_server.queue import Queue
from polytope_server.request_store import RequestStore


def run(config: Config) -> None:
    """Schedule until SIGTERM.

    Raises:
        ConfigurationError: it cannot start.
    """
    stop = Stop()
    stop.on_signals()
    collections = collections_of(config)
    store: RequestStore = open_chosen("request_store", config.request_store, stop=stop)
    queue: Queue = open_chosen("queue", config.queue, stop=stop)
    metrics = Metrics()
    settings = config.broker
    checks = {"request_store": store.ping, "queue": queue.ping}
    with listening(settings.health_bind_to, settings.health_port, checks, metrics):
        Broker(
            store=store,
            queue=queue,
            limits={name: collection.limits for name, collection in collections.items()},
            settings=settings,
            metrics=metrics,
        ).run(stop)
