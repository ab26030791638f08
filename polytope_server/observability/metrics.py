"""What is counted and timed, for Prometheus; one registry per process."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from types import MappingProxyType
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from polytope_server.observability.families import FAMILIES, Family
from polytope_server.request import Request, Status

REVOKED: Final = "revoked"
"""Stands in for a status: there is no record of such a request any more."""
SLOT_ENDS: Final = ("crashed", "timeout", "memory", "revoked", "drained", "recycled")
"""Why a slot process ended: by itself, on account of its request, or worn out."""
NOTICED: Final = ("hint", "check")
"""How a worker learnt of a revocation: told at once, or by looking."""
PASSES: Final = ("done", "away", "failed")
"""How a pass of the collector ended: as it should, at a back-end that was away, by a mistake of ours."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_UNFINISHED: Final = "polytope_requests_unfinished"
_OLDEST: Final = "polytope_oldest_request_age_seconds"
_MESSAGES: Final = "polytope_queue_messages"
_USED: Final = "polytope_staging_used_bytes"
_FREE: Final = "polytope_staging_free_bytes"


class Metrics:
    """The metrics of one process. Labels are from small sets that no user can enlarge.

    Args:
        process: whose metrics of `FAMILIES` are served; those of all processes without one.
    """

    def __init__(self, process: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self._process = process
        ProcessCollector(registry=self.registry)
        self._gauge("polytope_build_info").labels(version("polytope-server")).set(1)
        self._requests = self._counter("polytope_requests_total")
        self._in_status_s = self._histogram("polytope_request_status_seconds")
        self._request_s = self._histogram("polytope_request_duration_seconds")
        self._backend_s = self._histogram("polytope_backend_call_seconds")
        self._backend_errors = self._counter("polytope_backend_errors_total")
        self._http_requests = self._counter("polytope_http_requests_total")
        self._http_s = self._histogram("polytope_http_request_duration_seconds")
        self._downloaded_bytes = self._counter("polytope_downloaded_bytes_total")
        self._uploaded_bytes = self._counter("polytope_uploaded_bytes_total")
        self._api_keys = self._counter("polytope_api_keys_total")
        self._sent_bytes = self._counter("polytope_store_sent_bytes_total")
        self._received_bytes = self._counter("polytope_store_received_bytes_total")
        self._broker_active = self._gauge("polytope_broker_active")
        self._cycle_s = self._histogram("polytope_scheduling_cycle_seconds")
        self._republished = self._counter("polytope_republished_messages_total")
        self._expired_leases = self._counter("polytope_expired_leases_total")
        self._slots_busy = self._gauge("polytope_slots_busy")
        self._slots_total = self._gauge("polytope_slots_total")
        self._slots_ended = self._counter("polytope_slots_ended_total", SLOT_ENDS)
        self._cancel_s = self._histogram("polytope_cancel_seconds", NOTICED)
        self._staged_bytes = self._counter("polytope_staged_bytes_total")
        self._pass_s = self._histogram("polytope_collector_pass_seconds")
        self._passes = self._counter("polytope_collector_passes_total", PASSES)
        self._last_pass = self._gauge("polytope_collector_last_success_timestamp_seconds")
        self._removed = self._counter("polytope_collector_removed_total")
        self._removed_bytes = self._counter("polytope_collector_removed_bytes_total")
        self._known = _WhileKnown(
            [
                FAMILIES[name]
                for name in (_UNFINISHED, _OLDEST, _MESSAGES, _USED, _FREE)
                if self._is_ours(FAMILIES[name])
            ]
        )
        self.registry.register(self._known)

    def _is_ours(self, family: Family) -> bool:
        return self._process is None or self._process in family.processes

    def _made(self, name: str) -> tuple[Family, CollectorRegistry | None]:
        family = FAMILIES[name]
        return family, self.registry if self._is_ours(family) else None

    def _counter(self, name: str, values: Sequence[str] = ()) -> Counter:
        """With the *values* of its one label that are served from the beginning."""
        family, registry = self._made(name)
        counter = Counter(family.name, family.help, family.labels, registry=registry)
        for value in values:
            counter.labels(value)
        return counter

    def _gauge(self, name: str) -> Gauge:
        family, registry = self._made(name)
        return Gauge(family.name, family.help, family.labels, registry=registry)

    def _histogram(self, name: str, values: Sequence[str] = ()) -> Histogram:
        family, registry = self._made(name)
        histogram = Histogram(
            family.name, family.help, family.labels, buckets=family.buckets, registry=registry
        )
        for value in values:
            histogram.labels(value)
        return histogram

    # --- requests

    def request_entered(self, *, collection: str, status: str) -> None:
        """A request of a configured collection was put into a status by this process."""
        self._requests.labels(collection, status).inc()

    def request_left(self, *, collection: str, status: str, duration_s: float) -> None:
        """A request was taken out of a status, in which it had stood for so long."""
        self._in_status_s.labels(collection, status).observe(max(0.0, duration_s))

    def request_finished(self, *, status: str, duration_s: float) -> None:
        """A request reached a final status so long after its submission."""
        self._request_s.labels(status).observe(max(0.0, duration_s))

    def request_moved(self, request: Request, *, source: Status, since: float | None) -> None:
        """This process took a request from *source*, where it stood since then, to where it stands now."""
        self.request_entered(collection=request.collection, status=request.status)
        if since is not None:
            self.request_left(
                collection=request.collection,
                status=source,
                duration_s=request.modified_at - since,
            )
        if request.is_finished:
            self.request_finished(
                status=request.status, duration_s=request.modified_at - request.begun_at
            )

    # --- back-ends

    def backend_call(self, *, abstraction: str, backend: str, operation: str) -> Histogram:
        """What is told the seconds that each call of an operation takes."""
        return self._backend_s.labels(abstraction, backend, operation)

    def backend_failed(
        self, *, abstraction: str, backend: str, operation: str, reason: str
    ) -> None:
        """A call of a back-end failed: ``away``, ``full``, or ``broken`` where that is not expected."""
        self._backend_errors.labels(abstraction, backend, operation, reason).inc()

    # --- HTTP

    def http_request(
        self, *, method: str, route: str | None, status: int, duration_s: float
    ) -> None:
        """An HTTP request was answered; *route* is the template, None where no path matched."""
        method = method if method in _METHODS else "other"
        route = route or "none"
        self._http_requests.labels(method, route, str(status)).inc()
        self._http_s.labels(method, route).observe(duration_s)

    def downloaded(self, size_bytes: int) -> None:
        """So many more bytes of results were handed on to a client."""
        self._downloaded_bytes.inc(size_bytes)

    def uploaded(self, size_bytes: int) -> None:
        """So many more bytes to archive came from a client."""
        self._uploaded_bytes.inc(size_bytes)

    def sent(self, size_bytes: int) -> None:
        """So many more bytes left the object store."""
        self._sent_bytes.inc(size_bytes)

    def received(self, size_bytes: int) -> None:
        """So many more bytes came to the object store."""
        self._received_bytes.inc(size_bytes)

    def api_key(self, event: str) -> None:
        """A user has ``made`` or ``revoked`` an API key."""
        self._api_keys.labels(event).inc()

    # --- broker

    def broker_active(self, *, is_active: bool) -> None:
        self._broker_active.set(is_active)
        if not is_active:
            self.backlog_unknown()

    def cycle(self, duration_s: float) -> None:
        """A scheduling cycle took so long."""
        self._cycle_s.observe(duration_s)

    def republished(self, messages: int) -> None:
        self._republished.inc(messages)

    def lease_expired(self) -> None:
        self._expired_leases.inc()

    def backlog(
        self,
        *,
        counts: Mapping[tuple[str, ...], float],
        ages_s: Mapping[tuple[str, ...], float],
        messages: int,
    ) -> None:
        """What is unfinished at present, and how old the oldest are, by collection and status."""
        self._known.put({_UNFINISHED: counts, _OLDEST: ages_s, _MESSAGES: {(): messages}})

    def backlog_unknown(self) -> None:
        """What was last told is out of date: serve nothing about it."""
        self._known.put({_UNFINISHED: {}, _OLDEST: {}, _MESSAGES: {}})

    # --- worker

    def slots(self, *, busy: int, total: int) -> None:
        self._slots_busy.set(busy)
        self._slots_total.set(total)

    def slot_ended(self, reason: str) -> None:
        """A slot process ended, for one of `SLOT_ENDS`."""
        self._slots_ended.labels(reason).inc()

    def cancelled(self, *, noticed: str, duration_s: float) -> None:
        """A revoked request gave up its slot so long after; see `NOTICED`."""
        self._cancel_s.labels(noticed).observe(duration_s)

    def staged(self, size_bytes: int) -> None:
        """So many more bytes were written to staging."""
        self._staged_bytes.inc(size_bytes)

    # --- collector

    def collected(self, removed: Mapping[str, int], *, size_bytes: int) -> None:
        """So much was removed, by reason, and so many bytes in all."""
        for reason, count in removed.items():
            self._removed.labels(reason).inc(count)
        self._removed_bytes.inc(size_bytes)

    def staging(self, *, used_bytes: int, free_bytes: int | None) -> None:
        """What staging holds after a pass, and its room where that is known."""
        self._known.put(
            {
                _USED: {(): used_bytes},
                _FREE: {} if free_bytes is None else {(): free_bytes},
            }
        )

    def pass_ended(self, outcome: str, *, duration_s: float, now: float) -> None:
        """A pass of the collector ended in one of `PASSES`."""
        self._passes.labels(outcome).inc()
        self._pass_s.observe(duration_s)
        if outcome == "done":
            self._last_pass.set(now)

    def render(self) -> tuple[bytes, str]:
        """All of it in the text format of Prometheus, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _WhileKnown(Collector):
    """Gauges that are served while somebody knows their values, each by the values of its labels."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families
        self._values: Mapping[str, Mapping[tuple[str, ...], float]] = MappingProxyType({})

    def put(self, values: Mapping[str, Mapping[tuple[str, ...], float]]) -> None:
        self._values = MappingProxyType({**self._values, **values})

    def collect(self) -> Iterator[GaugeMetricFamily]:
        values = self._values
        for family in self._families:
            gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
            for labels, value in values.get(family.name, {}).items():
                gauge.add_metric(labels, value)
            yield gauge
