"""How many examples a test tries, and from which seed: the same ones each time, unless told otherwise.

``FUZZ_SEED`` of the environment draws others; the profile ``long`` tries ten times as many.
"""

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from hypothesis import HealthCheck, seed, settings

SEED: Final = int(os.environ.get("FUZZ_SEED", "20240615"))

_USUAL: Final = 100
"""Examples of hypothesis' own profiles."""
_MIB: Final = 1 << 20

Test = Callable[..., None]


def tries(count: int) -> Callable[[Test], Test]:
    """Tries *count* examples, or in proportion to the profile."""

    def decorated(test: Test) -> Test:
        effort = settings(
            max_examples=count * settings().max_examples // _USUAL,
            deadline=None,
            database=None,
            suppress_health_check=[*HealthCheck],
        )
        return effort(seed(SEED)(test))

    return decorated


@contextmanager
def bounded(*, seconds: float, mib: int) -> Iterator[None]:
    """What is done here takes no more of this thread's time, and adds no more to the largest memory."""
    before = _peak_bytes()
    began = time.thread_time()
    yield
    took = time.thread_time() - began
    grown = _peak_bytes() - before
    assert took < seconds, f"took {took:.1f} s"
    assert grown < mib * _MIB, f"took {grown // _MIB} MiB"


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
