"""All programs, one after another: ``python -m benchmarks [--config FILE] [--json FILE]``."""

import subprocess
import sys

ALL = ("starting", "latency", "throughput", "polling", "scheduling", "streaming", "collecting")
OWN = ("starting", "scheduling", "collecting")
"""Those that measure nothing of a deployment."""


def main() -> None:
    """Pass the options on; end with status 1 if any of them ends otherwise than well."""
    arguments = sys.argv[1:]
    names = [name for name in ALL if "--config" not in arguments or name not in OWN]
    statuses = {
        name: subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments]).returncode
        for name in names
    }
    if failed := [name for name, status in statuses.items() if status]:
        sys.exit(f"not met, or not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
