"""What operators see of a real deployment: the metrics of each process, and the trace of a request."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
import requests
from deployment import PROCESSES, USERS, Deployment, free_port, until
from otlp import Collector
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from polytope_server.observability.families import FAMILIES, Kind

pytestmark = pytest.mark.xdist_group("observability")

NAMES = ("object-store", *PROCESSES)
STORE_TOKEN = "object-store-token-of-tests-8e2"
TRACES_TOKEN = "token-of-the-collector-41d"
CONTENT = "xyzzy-what-was-asked-for"


class Watched(Deployment):
    """All processes, two of the frontend, each with its metrics, and a collector of traces."""

    def __init__(self, directory: Path, collector: Collector) -> None:
        self.collector = collector
        self.ports = {name: free_port() for name in NAMES}
        changes = {
            "frontend": {"processes": 2, "metrics_port": self.ports["frontend"]},
            **{
                name: {"health_port": self.ports[name]}
                for name in ("broker", "worker", "garbage-collector")
            },
            "tracing": {
                "endpoint": collector.url,
                "headers": {"Authorization": f"Bearer {TRACES_TOKEN}"},
            },
        }
        staging = {
            "host": "127.0.0.1",
            "port": free_port(),
            "root_dir": str(directory / "objects"),
            "token": STORE_TOKEN,
            "metrics_port": self.ports["object-store"],
        }
        super().__init__(
            directory, changes=changes, replaced={"staging": {"polytope": staging}}, names=NAMES
        )

    def metrics(self, name: str) -> Mapping[str, Metric]:
        """What a process serves, by the names of the families."""
        response = requests.get(f"http://127.0.0.1:{self.ports[name]}/metrics", timeout=30)
        assert response.headers["Content-Type"].startswith("text/plain")
        return {each.name: each for each in text_string_to_metric_families(response.text)}

    def value(self, name: str, sample: str, **labels: str) -> float:
        """The sum over all samples of that name with these labels, among others perhaps."""
        return sum(
            each.value
            for family in self.metrics(name).values()
            for each in family.samples
            if each.name == sample and labels.items() <= each.labels.items()
        )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("watched")
    with Collector() as collector, Watched(directory / "d", collector) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def retrieved(watched: Watched) -> str:
    """A request that was answered, and whose result was fetched."""
    request_id = watched.submit("30000", collection="bytes")
    assert watched.result(request_id) == b"x" * 30_000
    # before one of the frontends is killed with what it has not sent yet
    until(lambda: watched.collector.of(request_id).keys() >= {"submit", "download"})
    return request_id


@pytest.fixture(scope="module")
def archived(watched: Watched) -> str:
    body = {"verb": "archive", "request": {"class": CONTENT}}
    location = watched.call("POST", "/requests/c1", json=body).headers["Location"]
    data = CONTENT.encode() * 1000
    headers = {"X-Checksum": hashlib.md5(data).hexdigest()}
    assert watched.call("POST", location, data=data, headers=headers).status_code == 202
    until(lambda: watched.call("GET", location).status_code == 200)
    return location.rpartition("/")[2]


@pytest.mark.parametrize("name", NAMES)
def test_each_process_serves_its_metrics_with_help(
    watched: Watched, retrieved: str, name: str
) -> None:
    served = watched.metrics(name)
    for family in FAMILIES.values():
        bare = family.name.removesuffix("_total") if family.kind is Kind.COUNTER else family.name
        if name in family.processes:
            assert served[bare].documentation == family.help
            assert served[bare].type == family.kind
        else:
            assert bare not in served, f"{name} has nothing to say about {bare}"
    assert served["process_resident_memory_bytes"].documentation


def test_a_request_is_counted_wherever_it_comes_by(watched: Watched, retrieved: str) -> None:
    value = watched.value
    for name, status in (
        ("frontend", "waiting"),
        ("broker", "queued"),
        ("worker", "processing"),
        ("worker", "processed"),
    ):
        assert value(name, "polytope_requests_total", collection="bytes", status=status) >= 1
    for name, status in (("broker", "waiting"), ("worker", "queued"), ("worker", "processing")):
        labels = {"collection": "bytes", "status": status}
        assert value(name, "polytope_request_status_seconds_count", **labels) >= 1
        assert value(name, "polytope_request_status_seconds_sum", **labels) < 60
    assert value("worker", "polytope_request_duration_seconds_count", status="processed") >= 1
    assert value("worker", "polytope_staged_bytes_total") >= 30_000
    assert value("frontend", "polytope_downloaded_bytes_total") >= 30_000
    assert value("object-store", "polytope_store_sent_bytes_total") >= 30_000
    assert value("object-store", "polytope_store_received_bytes_total") >= 30_000
    assert value("object-store", "polytope_http_requests_total", route="/{name}", method="PUT") >= 1


def test_calls_of_every_back_end_are_timed(watched: Watched, retrieved: str) -> None:
    calls = {
        ("frontend", "request_store", "sqlite", "add"),
        ("frontend", "authentication", "plain", "authenticate"),
        ("frontend", "authorization", "plain", "grant"),
        ("frontend", "caching", "memory", "get"),
        ("frontend", "staging", "polytope", "read_chunk"),
        ("broker", "queue", "sqlite", "publish"),
        ("worker", "staging", "polytope", "commit"),
        ("worker", "request_store", "sqlite", "apply"),
    }
    for name, abstraction, backend, operation in calls:
        labels = {"abstraction": abstraction, "backend": backend, "operation": operation}
        assert watched.value(name, "polytope_backend_call_seconds_count", **labels) >= 1, labels
    until(
        lambda: watched.value(
            "garbage-collector", "polytope_backend_call_seconds_count", operation="list"
        )
    )


def test_one_scrape_answers_for_all_processes_of_a_frontend(watched: Watched) -> None:
    def counted() -> Mapping[str, float]:
        family = watched.metrics("frontend")["polytope_http_requests"]
        return {
            number: sum(s.value for s in family.samples if s.labels["process"] == number)
            for number in ("1", "2")
        }

    before = counted()
    for _ in range(60):
        assert requests.get(f"{watched.api}/test", timeout=60).status_code == 200
    after = counted()
    assert sum(after.values()) - sum(before.values()) == 60
    for _ in range(5):
        assert counted() == after, "it does not matter who answers"

    (first,) = (
        sample.value
        for sample in watched.metrics("frontend")["process_start_time_seconds"].samples
        if sample.labels["process"] == "1"
    )
    children = Path(f"/proc/{watched.processes['frontend'].pid}/task")
    pids = [
        int(pid) for task in children.iterdir() for pid in (task / "children").read_text().split()
    ]
    os.kill(min(pids), signal.SIGKILL)

    def replaced() -> bool:
        samples = watched.metrics("frontend")["process_start_time_seconds"].samples
        starts = {sample.labels["process"]: sample.value for sample in samples}
        return starts.keys() == {"1", "2"} and starts != {**starts, "1": first}

    until(replaced, what="a new process has the number of the dead one")


def test_the_active_broker_tells_what_is_unfinished(watched: Watched) -> None:
    assert watched.value("broker", "polytope_broker_active") == 1

    def told() -> set[tuple[str, str]]:
        samples = watched.metrics("broker")["polytope_requests_unfinished"].samples
        return {(each.labels["collection"], each.labels["status"]) for each in samples}

    statuses = ("uploading", "waiting", "queued", "processing")
    collections = watched.tree["collections"]
    everything = {(name, status) for name in collections for status in statuses}
    assert until(told) == everything
    assert len(watched.metrics("broker")["polytope_oldest_request_age_seconds"].samples) == 2 * len(
        collections
    )


def test_a_revocation_is_timed(watched: Watched) -> None:
    request_id = watched.submit("x: 1", collection="hanging")
    until(lambda: watched.poll(request_id).json()["status"] == "processing")
    watched.call("DELETE", f"/requests/{request_id}")
    until(lambda: watched.value("worker", "polytope_cancel_seconds_count", noticed="hint"))
    assert watched.value("worker", "polytope_cancel_seconds_sum", noticed="hint") < 2
    assert watched.value("worker", "polytope_slots_ended_total", reason="revoked") == 1
    assert watched.value("frontend", "polytope_requests_total", status="revoked") == 1
    until(lambda: watched.collector.of(request_id).get("processing"))
    told = watched.collector.of(request_id)["processing"]
    assert told.attributes["polytope.to"] == "cancelled"


def test_a_revocation_that_nobody_hears_of_is_noticed_and_timed_all_the_same(
    watched: Watched,
) -> None:
    request_id = watched.submit("x: 1", collection="hanging")
    until(lambda: watched.poll(request_id).json()["status"] == "processing")
    path = watched.tree["request_store"]["sqlite"]["path"]
    with closing(sqlite3.connect(path, timeout=30)) as db, db:
        db.execute("DELETE FROM requests WHERE id = ?", (request_id,))
    until(lambda: watched.value("worker", "polytope_cancel_seconds_count", noticed="check"))
    assert 0 < watched.value("worker", "polytope_cancel_seconds_sum", noticed="check") < 5


def test_a_slot_that_crashes_is_counted(watched: Watched) -> None:
    watched.finished(watched.submit("x: 1", collection="crashing"))
    assert watched.value("worker", "polytope_slots_ended_total", reason="crashed") == 1
    assert watched.value("worker", "polytope_requests_total", status="failed") >= 1


def test_a_request_is_one_trace_through_all_processes(watched: Watched, retrieved: str) -> None:
    names = {"submit", "waiting", "queued", "processing", "slot", "staging", "download"}
    until(lambda: watched.collector.of(retrieved).keys() >= names)
    spans = watched.collector.of(retrieved)
    assert spans.keys() == names
    root = spans["submit"]
    assert root.parent == ""
    assert {spans[name].parent for name in ("waiting", "queued", "processing", "download")} == {
        root.id
    }
    assert {spans[name].parent for name in ("slot", "staging")} == {spans["processing"].id}
    services = {name: span.service.removeprefix("polytope-server-") for name, span in spans.items()}
    assert services == {
        "submit": "frontend",
        "waiting": "broker",
        "queued": "worker",
        "processing": "worker",
        "slot": "worker",
        "staging": "worker",
        "download": "frontend",
    }
    order = [spans[name] for name in ("submit", "waiting", "queued", "processing", "download")]
    assert [span.start for span in order] == sorted(span.start for span in order)
    assert all(span.start <= span.end for span in spans.values())
    assert not any(span.failed for span in spans.values())
    assert spans["processing"].attributes["polytope.bytes"] == 30_000
    assert root.attributes["polytope.request_id"] == retrieved


def test_an_archive_is_traced_with_its_upload(watched: Watched, archived: str) -> None:
    until(lambda: watched.collector.of(archived).keys() >= {"upload", "processing", "slot"})
    spans = watched.collector.of(archived)
    assert spans["upload"].parent == spans["submit"].id
    assert spans["slot"].parent == spans["processing"].id
    assert watched.value("frontend", "polytope_uploaded_bytes_total") == len(CONTENT) * 1000


def test_a_failed_request_has_a_failed_span_without_words(watched: Watched) -> None:
    request_id = watched.submit(CONTENT, collection="failing")
    watched.finished(request_id)
    until(lambda: watched.collector.of(request_id).get("processing"))
    assert watched.collector.of(request_id)["processing"].failed
    assert b"tape" not in watched.collector.bodies


def test_what_is_sent_and_served_tells_nothing_of_users_and_their_requests(
    watched: Watched, retrieved: str, archived: str
) -> None:
    until(lambda: watched.collector.of(archived).keys() >= {"submit", "processing"})
    shown = watched.collector.bodies + b"".join(
        requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).content
        for port in watched.ports.values()
    )
    assert retrieved.encode() in shown, "the spans are there"
    for secret in (CONTENT, STORE_TOKEN, TRACES_TOKEN, "joe", *USERS.values()):
        assert secret.encode() not in shown
    assert {each["authorization"] for each in watched.collector.headers} == {
        f"Bearer {TRACES_TOKEN}"
    }
    assert TRACES_TOKEN not in watched.all_logs()


def test_a_removal_is_linked_to_the_request(watched: Watched, tmp_path: Path) -> None:
    request_id = watched.submit("10", collection="bytes")
    watched.result(request_id)
    time.sleep(1.1)
    file = tmp_path / "old.yaml"
    file.write_text(json.dumps({"garbage-collector": {"age": 1}}))
    subprocess.run(
        [
            *(sys.executable, "-m", "polytope_server", "garbage-collector", "--once"),
            *("-f", str(watched.file), "-f", str(file)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    removals = [span for span in watched.collector.spans if span.name == "remove"]
    (removal,) = [each for each in removals if request_id.replace("-", "") in each.links]
    assert removal.parent == ""
    assert removal.trace not in removal.links
    assert removal.attributes["polytope.reason"] == "old"
    assert removal.service == "polytope-server-garbage-collector"
