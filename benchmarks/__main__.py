"""All programs, one after another: ``python -m benchmarks [--config FILE] [--json FILE]``.

With ``--full-stack``, those of `benchmarks.full_stack`.
"""

import subprocess
import sys

from benchmarks import full_stack

ALL = ("starting", "latency", "throughput", "polling", "scheduling", "streaming", "collecting")
OWN = ("starting", "scheduling", "collecting")
"""Those that measure nothing of a deployment."""


def main() -> None:
    """Pass the options on; end with status 1 if any of them ends otherwise than well."""
    arguments = sys.argv[1:]
    if "--full-stack" in arguments:
        arguments.remove("--full-stack")
        full_stack.main(arguments)
        return
    names = [name for name in ALL if "--config" not in arguments or name not in OWN]
    statuses = {
        name: subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments]).returncode
        for name in names
    }
    if failed := [name for name, status in statuses.items() if status]:
        sys.exit(f"not met, or not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
