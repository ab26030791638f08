"""Rounds of fuzzing, each from a seed of its own, until the time is up or something is found.

``python tests/fuzz/fuzz.py [--seconds 600] [--seed N]``. A round tries ten times what the tests do
otherwise; the one that is under way when the time is up goes on to its end. What was found
is repeated with its seed.
"""

import argparse
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

ROUND_S = 3600
"""No test takes longer, however slow the machine is."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to begin rounds")
    parser.add_argument("--seed", type=int, help="of the first round; the next ones count up")
    options = parser.parse_args()
    first = secrets.randbelow(10**9) if options.seed is None else options.seed
    end = time.monotonic() + options.seconds
    seed = first
    while seed == first or time.monotonic() < end:
        print(f"round {seed - first + 1}, seed {seed}", flush=True)
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup"),
            *(
                "--hypothesis-profile",
                "long",
                "--timeout",
                str(ROUND_S),
                str(Path(__file__).parent),
            ),
        ]
        done = subprocess.run(command, env={**os.environ, "FUZZ_SEED": str(seed)}, check=False)
        if done.returncode < 0:
            sys.exit(
                f"the tests were ended by {signal.Signals(-done.returncode).name}, seed {seed}"
            )
        if done.returncode != 0:
            sys.exit(f"found with seed {seed}; again: make fuzz SECONDS=1 SEED={seed}")
        seed += 1
    print(f"nothing found in {seed - first} rounds")


if __name__ == "__main__":
    main()
