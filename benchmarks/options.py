"""The command line that all programs share."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from polytope_server.errors import PolytopeError

RUNS = 5


class Options(argparse.Namespace):
    """`config` aims at a deployment; `json` is a file that figures are added to."""

    config: list[Path]
    runs: int
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
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the figures as JSON lines")
    options = parser.parse_args(namespace=Options())
    try:
        is_met = measure(options)
    except PolytopeError as exc:
        sys.exit(f"{Path(sys.argv[0]).stem}: {exc}")
    sys.exit(0 if is_met else 1)
