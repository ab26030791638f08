"""How long the command line takes to be imported, beside an interpreter that imports nothing."""

import statistics
import subprocess
import sys
import time

from benchmarks.options import Options, main
from benchmarks.table import Figure, at_most, show

STARTS = 9
"""In each run; the median counts."""


def measure(options: Options) -> bool:
    """Budget: 150 ms for `import polytope_server.cli`."""
    imports: list[float] = []
    nothing: list[float] = []
    for _ in range(options.runs):
        pairs = [(_started("import polytope_server.cli"), _started("pass")) for _ in range(STARTS)]
        imports.append(statistics.median(a - b for a, b in pairs))
        nothing.append(statistics.median(b for _, b in pairs))
    return show(
        "starting: import polytope_server.cli",
        [
            Figure(
                name="above an empty program",
                unit="ms",
                runs=imports,
                reference=nothing,
                reference_name="an empty program",
                budget=at_most(150, "ms"),
            )
        ],
        file=options.json,
    )


def _started(program: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return 1000 * (time.perf_counter() - begin)


if __name__ == "__main__":
    main(__doc__, measure)
