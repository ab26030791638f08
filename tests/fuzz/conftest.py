"""Says from which seed everything is drawn; see `effort`."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "e2e")]

# before `effort`, which reads it; taken by --hypothesis-profile=long
settings.register_profile("long", max_examples=1000)


def pytest_report_header(config: pytest.Config) -> str:
    from effort import SEED

    return f"fuzzing: FUZZ_SEED={SEED}"
