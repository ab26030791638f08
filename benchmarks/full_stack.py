"""The full stack beside the embedded back-ends, in one table: ``python -m benchmarks --full-stack``.

Each program measures a server of our own twice: with the embedded back-ends, and with MongoDB, RabbitMQ, S3
and Redis (the servers that tests start), which begin empty each time.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from services.base import Missing
from services.stack import Stack

from benchmarks.options import RUNS
from benchmarks.table import number

PROGRAMS = ("latency", "throughput", "polling", "scheduling", "streaming")
SERVERS = ("mongodb", "rabbitmq", "radosgw", "redis")
SETTINGS = {"radosgw": {"store": "bluestore"}}
"""On disk, as clusters have it; what is in memory would be held several times over."""
SECTIONS = ("request_store", "queue", "staging", "caching")

Figures = Mapping[str, Mapping[str, Any]]
"""By name, as `table.Figure.as_json` writes them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and end with status 1 if a budget is missed or a program ended badly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"of {', '.join(PROGRAMS)}")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--waiting", type=int, metavar="N", help="for scheduling, in both")
    options = parser.parse_args(arguments)
    if unknown := set(options.programs) - set(PROGRAMS):
        parser.error(f"no such program: {', '.join(sorted(unknown))}")
    more = ["--runs", str(options.runs)]
    more += ["--waiting", str(options.waiting)] if options.waiting else []
    table = Table(title=f"embedded, and on {', '.join(SERVERS)}", title_justify="left")
    for column in ("", "", "embedded", "spread", "ratio", "full stack", "spread", "ratio", ""):
        table.add_column(column, justify="left" if column in ("", "spread") else "right")
    broken: list[str] = []
    for program in options.programs or PROGRAMS:
        embedded, status = _measured(program, more)
        with _back_ends() as file:
            stacked, other_status = _measured(program, [*more, "--back-ends", str(file)])
        broken += [f"{program} (embedded)"] * bool(status)
        broken += [f"{program} (full stack)"] * bool(other_status)
        _add_rows(table, program, embedded, stacked)
    Console(width=160 if not Console().is_terminal else None).print(table)
    if broken:
        sys.exit(f"not met, or not measured: {', '.join(broken)}")


@contextlib.contextmanager
def _back_ends() -> Iterator[Path]:
    """A file with the sections of servers that are there and empty."""
    with tempfile.TemporaryDirectory(prefix="polytope-bench-") as temporary:
        try:
            with Stack(SERVERS, settings=SETTINGS) as stack:
                file = Path(temporary) / "back-ends.yaml"
                lines = [f"{name}: !replace {json.dumps(stack.section(name))}" for name in SECTIONS]
                file.write_text("\n".join(lines) + "\n")
                yield file
        except Missing as exc:
            sys.exit(f"full_stack: {exc}")


def _measured(program: str, more: Sequence[str]) -> tuple[Figures, int]:
    """What a program has found, and its status; its own table is printed meanwhile."""
    with tempfile.NamedTemporaryFile(prefix="polytope-bench-", suffix=".json") as file:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{program}", *more, "--json", file.name]
        )
        lines = Path(file.name).read_text().splitlines()
    return (
        {figure["name"]: figure for line in lines for figure in json.loads(line)["figures"]},
        done.returncode,
    )


def _add_rows(table: Table, program: str, embedded: Figures, stacked: Figures) -> None:
    names = [*embedded, *(name for name in stacked if name not in embedded)]
    for place, name in enumerate(names):
        cells: list[str] = []
        judged: list[str] = []
        for which, figures in (("embedded", embedded), ("full stack", stacked)):
            figure = figures.get(name)
            if figure is None:
                cells += ["", "", ""]
                continue
            runs, ratio = figure["runs"], figure["ratio"]
            cells += [
                f"{number(statistics.median(runs))} {figure['unit']}",
                f"{number(min(runs))} – {number(max(runs))}",
                "" if ratio is None else f"{ratio:.2f}",
            ]
            if figure["met"] is False:
                judged.append(f"MISSED {which}: {figure['budget']}")
        last = place == len(names) - 1
        label = "" if place else program
        table.add_row(label, name, *cells, "; ".join(judged), end_section=last)


if __name__ == "__main__":
    main()
