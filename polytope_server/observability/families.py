"""Every metric there is, as a table: what it counts, who serves it, and which labels it has.

`docs/metrics.md` and the dashboard in `examples/grafana` are checked against it. Labels hold names out of
the configuration or out of our own code: no user can enlarge them.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

FRONTEND: Final = "frontend"
BROKER: Final = "broker"
WORKER: Final = "worker"
COLLECTOR: Final = "garbage-collector"
STORE: Final = "object-store"

_STEPPING: Final = frozenset({FRONTEND, BROKER, WORKER, COLLECTOR})
"""Those that take requests from one status to another."""
_SERVING: Final = frozenset({FRONTEND, STORE})
_ALL: Final = _STEPPING | _SERVING

_CALL_S: Final = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
_HTTP_S: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_CYCLE_S: Final = (0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.3, 1, 3, 10)
_CANCEL_S: Final = (0.01, 0.03, 0.1, 0.3, 0.5, 1, 1.5, 2, 3, 10, 30)
_PASS_S: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_REQUEST_S: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 10800, 43200)


class Kind(StrEnum):
    """What Prometheus calls the type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric: `name` is what is scraped, which for counters ends in ``_total``."""

    name: str
    kind: Kind
    help: str
    processes: Set[str]
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, text: str, processes: Set[str], *labels: str) -> Family:
    return Family(name=name, kind=Kind.COUNTER, help=text, processes=processes, labels=labels)


def _gauge(name: str, text: str, processes: Set[str], *labels: str) -> Family:
    return Family(name=name, kind=Kind.GAUGE, help=text, processes=processes, labels=labels)


def _histogram(
    name: str, text: str, processes: Set[str], *labels: str, buckets: tuple[float, ...]
) -> Family:
    return Family(
        name=name,
        kind=Kind.HISTOGRAM,
        help=text,
        processes=processes,
        labels=labels,
        buckets=buckets,
    )


_TABLE: Final = (
    _gauge("polytope_build_info", "1; the version is in the label", _ALL, "version"),
    # --- requests
    _counter(
        "polytope_requests_total",
        "Requests that this process put into a status, or revoked",
        _STEPPING,
        "collection",
        "status",
    ),
    _histogram(
        "polytope_request_status_seconds",
        "How long requests stood in a status, told when this process took them out of it",
        _STEPPING,
        "collection",
        "status",
        buckets=_REQUEST_S,
    ),
    _histogram(
        "polytope_request_duration_seconds",
        "From submission to a final status",
        frozenset({BROKER, WORKER, COLLECTOR}),
        "status",
        buckets=_REQUEST_S,
    ),
    _gauge(
        "polytope_requests_unfinished",
        "Requests that stand in an unfinished status; from the active broker only",
        frozenset({BROKER}),
        "collection",
        "status",
    ),
    _gauge(
        "polytope_oldest_request_age_seconds",
        "How long the oldest request in a status has stood there; from the active broker only",
        frozenset({BROKER}),
        "collection",
        "status",
    ),
    # --- back-ends
    _histogram(
        "polytope_backend_call_seconds",
        "Calls of back-ends, whatever their outcome",
        _STEPPING,
        "abstraction",
        "backend",
        "operation",
        buckets=_CALL_S,
    ),
    _counter(
        "polytope_backend_errors_total",
        "Calls of back-ends that failed because the back-end was away, full or broken",
        _STEPPING,
        "abstraction",
        "backend",
        "operation",
        "reason",
    ),
    # --- HTTP
    _counter(
        "polytope_http_requests_total",
        "HTTP requests answered",
        _SERVING,
        "method",
        "route",
        "status",
    ),
    _histogram(
        "polytope_http_request_duration_seconds",
        "From an HTTP request's headers to its response, of a download to its first byte",
        _SERVING,
        "method",
        "route",
        buckets=_HTTP_S,
    ),
    _counter(
        "polytope_downloaded_bytes_total",
        "Bytes of results that this frontend sent to clients",
        frozenset({FRONTEND}),
    ),
    _counter(
        "polytope_uploaded_bytes_total",
        "Bytes to archive that this frontend received from clients",
        frozenset({FRONTEND}),
    ),
    _counter(
        "polytope_api_keys_total",
        "API keys that users made or revoked",
        frozenset({FRONTEND}),
        "event",
    ),
    _counter(
        "polytope_store_sent_bytes_total",
        "Bytes of objects that the object store sent",
        frozenset({STORE}),
    ),
    _counter(
        "polytope_store_received_bytes_total",
        "Bytes of objects that the object store received",
        frozenset({STORE}),
    ),
    # --- broker
    _gauge(
        "polytope_broker_active",
        "1 if this broker schedules, 0 if it stands by",
        frozenset({BROKER}),
    ),
    _histogram(
        "polytope_scheduling_cycle_seconds",
        "One scheduling cycle",
        frozenset({BROKER}),
        buckets=_CYCLE_S,
    ),
    _gauge(
        "polytope_queue_messages",
        "Messages on the queue; from the active broker only",
        frozenset({BROKER}),
    ),
    _counter(
        "polytope_republished_messages_total",
        "Messages published again because they may have got lost",
        frozenset({BROKER}),
    ),
    _counter(
        "polytope_expired_leases_total",
        "Requests taken from a worker that was silent for too long",
        frozenset({BROKER}),
    ),
    # --- worker
    _gauge("polytope_slots_busy", "Slots that run a request", frozenset({WORKER})),
    _gauge("polytope_slots_total", "Slots of this worker", frozenset({WORKER})),
    _counter(
        "polytope_slots_ended_total",
        "Slot processes that ended, or were ended, and why",
        frozenset({WORKER}),
        "reason",
    ),
    _histogram(
        "polytope_cancel_seconds",
        "From the revocation of a running request, or from when it was last known not to be "
        "revoked, to its slot being free",
        frozenset({WORKER}),
        "noticed",
        buckets=_CANCEL_S,
    ),
    _counter(
        "polytope_staged_bytes_total",
        "Bytes of results written to staging",
        frozenset({WORKER}),
    ),
    # --- collector
    _histogram(
        "polytope_collector_pass_seconds",
        "One pass of the collector",
        frozenset({COLLECTOR}),
        buckets=_PASS_S,
    ),
    _counter(
        "polytope_collector_passes_total",
        "Passes of the collector, and how they ended",
        frozenset({COLLECTOR}),
        "outcome",
    ),
    _gauge(
        "polytope_collector_last_success_timestamp_seconds",
        "When the last pass ended that was not cut off; Unix time, 0 before the first",
        frozenset({COLLECTOR}),
    ),
    _counter(
        "polytope_collector_removed_total",
        "What was removed or given up, by the reason",
        frozenset({COLLECTOR}),
        "reason",
    ),
    _counter(
        "polytope_collector_removed_bytes_total",
        "Bytes of the data that were removed",
        frozenset({COLLECTOR}),
    ),
    _gauge(
        "polytope_staging_used_bytes",
        "Bytes of all results after the last pass",
        frozenset({COLLECTOR}),
    ),
    _gauge(
        "polytope_staging_free_bytes",
        "Room left in staging after the last pass, where staging can tell",
        frozenset({COLLECTOR}),
    ),
)

FAMILIES: Final[Mapping[str, Family]] = MappingProxyType({family.name: family for family in _TABLE})
"""By name."""
