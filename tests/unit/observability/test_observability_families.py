"""Metrics, the page about them, and the dashboard say the same."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from polytope_server.observability.families import (
    BROKER,
    COLLECTOR,
    FAMILIES,
    FRONTEND,
    STORE,
    WORKER,
    Family,
    Kind,
)
from polytope_server.observability.metrics import Metrics

ROOT = Path(__file__).parents[3]
PROCESSES = (FRONTEND, BROKER, WORKER, COLLECTOR, STORE)
DASHBOARD = ROOT / "examples" / "grafana" / "polytope-server.json"
SUFFIXES = ("_bucket", "_count", "_sum")
OF_EVERY_PROCESS = {
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "process_open_fds",
}
TARGET_LABELS = {"job", "instance", "process"}
AGGREGATIONS = {"sum", "max", "min", "count", "by", "on", "and", "or"}
FUNCTIONS = {"rate", "increase", "histogram_quantile", "time", "vector"}


def served(metrics: Metrics) -> Mapping[str, Any]:
    text = metrics.render()[0].decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def parsed_name(family: Family) -> str:
    """What Prometheus' parser calls it."""
    return family.name.removesuffix("_total") if family.kind is Kind.COUNTER else family.name


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_serves_its_own_metrics_and_no_others(process: str) -> None:
    ours = {name for name in served(Metrics(process)) if name.startswith("polytope_")}
    wanted = {parsed_name(f) for f in FAMILIES.values() if process in f.processes}
    assert {name.removesuffix("_created") for name in ours} == wanted


def test_every_metric_is_registered_as_the_table_has_it() -> None:
    found = served(Metrics())
    for family in FAMILIES.values():
        about = found[parsed_name(family)]
        assert (about.type, about.documentation) == (family.kind, family.help)
        assert family.help


def test_what_nobody_knows_any_more_is_not_served() -> None:
    metrics = Metrics(BROKER)
    name, key = "polytope_requests_unfinished", ("c1", "waiting")
    assert served(metrics)[name].samples == []
    metrics.broker_active(is_active=True)
    metrics.backlog(counts={key: 3}, ages_s={key: 1.5}, messages=2)
    (sample,) = served(metrics)[name].samples
    assert (sample.labels, sample.value) == ({"collection": "c1", "status": "waiting"}, 3)
    metrics.broker_active(is_active=False)
    assert served(metrics)[name].samples == served(metrics)["polytope_queue_messages"].samples == []


# --- docs/metrics.md


def rows() -> Iterator[list[str]]:
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        if line.startswith("| `polytope_"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_page_has_every_metric_as_it_is() -> None:
    found = list(rows())
    assert [row[0].strip("`") for row in found] == list(FAMILIES), "the same, in the same order"
    for name, kind, labels, processes, meaning, what_to_do in found:
        family = FAMILIES[name.strip("`")]
        named = set(PROCESSES) if processes == "all" else set(processes.split(", "))
        listed = tuple(label.strip("`") for label in labels.split(", ") if label != "-")
        assert (kind, listed, named, meaning) == (
            family.kind,
            family.labels,
            set(family.processes),
            family.help,
        )
        assert len(what_to_do) > 5


# --- the dashboard


def expressions() -> Iterator[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield re.sub(r"^label_values\((.*), \w+\)$", r"\1", variable["query"]["query"])


def labels_of(sample: str) -> set[str]:
    """The labels of what is scraped under that name.

    Raises:
        KeyError: nothing is.
    """
    if sample in OF_EVERY_PROCESS:
        return TARGET_LABELS
    bare = next((sample.removesuffix(s) for s in SUFFIXES if sample.endswith(s)), sample)
    family = FAMILIES[bare]
    assert (family.kind is Kind.HISTOGRAM) == (bare != sample), sample
    return {*family.labels, *TARGET_LABELS, *({"le"} if sample.endswith("_bucket") else ())}


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_expression_of_the_dashboard_names_only_what_there_is(expression: str) -> None:
    bare = re.sub(r'"[^"]*"', "", expression)
    grouped = {
        label.strip()
        for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", bare)
        for label in labels.split(",")
    }
    matched = {
        label for labels in re.findall(r"{([^}]*)}", bare) for label in re.findall(r"\w+", labels)
    }
    bare = re.sub(r"\b(by|on) \([^)]*\)|{[^}]*}|\[[^\]]*\]", "", bare)
    names = set(re.findall(r"[A-Za-z_]\w*", bare)) - AGGREGATIONS - FUNCTIONS
    assert names, "it is about something"
    known = set().union(*(labels_of(name) for name in names))
    assert grouped | matched <= known


def test_the_dashboard_shows_most_of_what_there_is() -> None:
    text = "\n".join(expressions())
    assert {name for name in FAMILIES if name not in text} == set()


def test_the_dashboard_can_be_imported_with_any_data_source() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["schemaVersion"] >= 38
    kinds = {each["name"]: each["type"] for each in dashboard["templating"]["list"]}
    assert kinds["datasource"] == "datasource"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(titles)) == len(titles)
