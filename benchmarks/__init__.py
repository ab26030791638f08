"""Programs that measure the server as `docs/benchmarks.md` says; none of them is a test."""

import sys
from pathlib import Path

# `deployed` and `services`, which tests and benchmarks share
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
