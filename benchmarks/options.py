"""The command line that all programs share."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from polytope_server.errors import PolytopeError

RUNS = 5


class Options(argparse.Namespace):
    """`config` aims at a deployment; `json` is a file that figures are added to.

    `back_ends` are files that our own server, if that is measured, reads after the embedded configuration.
    """

    config: list[Path]
    back_ends: list[Path]
    runs: int
    waiting: int | None
    json: Path | None


def main(description: str, measure: Callable[[Options], bool]) -> None:
    """Read the options, measure, and end with status 1 if a budget is missed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--config",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="measure the running deployment of this configuration; may be repeated",
    )
    parser.add_argument(
        "--back-ends",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="measure a server of our own on the back-ends of this configuration; may be repeated",
    )
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument(
        "--waiting", type=int, metavar="N", help="requests that wait, for what schedules them"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the figures as JSON lines")
    options = parser.parse_args(namespace=Options())
    if options.config and options.back_ends:
        parser.error("--config aims at a running deployment, which has its own back-ends")
    try:
        is_met = measure(options)
    except PolytopeError as exc:
        sys.exit(f"{Path(sys.argv[0]).stem}: {exc}")
    sys.exit(0 if is_met else 1)
