"""What is counted and timed, for Prometheus; one registry per process."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_REQUEST_S: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 10800, 43200)
_HTTP_S: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_CYCLE_S: Final = (0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.3, 1, 3, 10)


class Metrics:
    """The metrics of one process. Labels are from small sets that no user can enlarge."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "polytope_requests",
            "Requests that this process put into a status",
            ["collection", "status"],
            registry=self.registry,
        )
        self._request_s = Histogram(
            "polytope_request_duration_seconds",
            "From submission to a final status",
            ["status"],
            buckets=_REQUEST_S,
            registry=self.registry,
        )
        self._http_requests = Counter(
            "polytope_http_requests",
            "HTTP requests answered",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._http_s = Histogram(
            "polytope_http_request_duration_seconds",
            "From an HTTP request's headers to the end of its response",
            ["method", "route"],
            buckets=_HTTP_S,
            registry=self.registry,
        )
        self._backend_errors = Counter(
            "polytope_backend_errors",
            "Calls of a back-end that failed because it was away",
            ["abstraction"],
            registry=self.registry,
        )
        self._slots_busy = Gauge(
            "polytope_slots_busy", "Slots that run a request", registry=self.registry
        )
        self._slots_total = Gauge(
            "polytope_slots_total", "Slots of this worker", registry=self.registry
        )
        self._staged_bytes = Counter(
            "polytope_staged_bytes", "Bytes written to staging", registry=self.registry
        )
        self._cycle_s = Histogram(
            "polytope_scheduling_cycle_seconds",
            "One scheduling cycle",
            buckets=_CYCLE_S,
            registry=self.registry,
        )

    def request_entered(self, *, collection: str, status: str) -> None:
        """A request of a configured collection was put into a status by this process."""
        self._requests.labels(collection, status).inc()

    def request_finished(self, *, status: str, duration_s: float) -> None:
        """A request reached a final status so long after its submission."""
        self._request_s.labels(status).observe(duration_s)

    def http_request(
        self, *, method: str, route: str | None, status: int, duration_s: float
    ) -> None:
        """An HTTP request was answered; *route* is the template, None where no path matched."""
        method = method if method in _METHODS else "other"
        route = route or "none"
        self._http_requests.labels(method, route, str(status)).inc()
        self._http_s.labels(method, route).observe(duration_s)

    def backend_failed(self, abstraction: str) -> None:
        """A call of a back-end of this abstraction ended in `BackendUnavailable`."""
        self._backend_errors.labels(abstraction).inc()

    def slots(self, *, busy: int, total: int) -> None:
        self._slots_busy.set(busy)
        self._slots_total.set(total)

    def staged(self, size_bytes: int) -> None:
        """So many more bytes were written to staging."""
        self._staged_bytes.inc(size_bytes)

    def cycle(self, duration_s: float) -> None:
        """A scheduling cycle took so long."""
        self._cycle_s.observe(duration_s)

    def render(self) -> tuple[bytes, str]:
        """All of it in the text format of Prometheus, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
