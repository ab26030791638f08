"""Ten minutes of steady load, after which every process must be as large as it was soon after the start.

``python tests/chaos/soak.py [--seconds 600] [--rate PER_SECOND]``. Without a rate it is half of what the
server completes when it is pressed, measured first. Looks at resident memory, file descriptors and threads of
every process, and at the size of the databases, which the collector keeps from growing.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.client import Client, download
from benchmarks.target import Target, descendants, resident_bytes, target

CLIENTS = 16
PRESSED_S = 10.0
WARM = 0.25
"""The part of the time after which memory must not grow any more."""
SAMPLE_S = 2.0
MIB = 1 << 20
AGE_S = 20
"""Finished requests are removed after it, so that what the databases hold stays the same."""
GROWTH = {"MiB": 8.0, "files": 8.0, "threads": 4.0}
"""How much the median of the last quarter may lie above that of the second one."""


@dataclass(slots=True)
class Samples:
    """By process and quantity, in order of time."""

    values: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def look(self, server: Target, directory: Path) -> None:
        for name, root in server.pids.items():
            family = [root, *descendants(root)]
            self._add(name, "MiB", sum(map(resident_bytes, family)) / MIB)
            self._add(name, "files", sum(map(_files, family)))
            self._add(name, "threads", sum(map(_threads, family)))
        for file in ("requests.sqlite", "queue.sqlite"):
            size = sum(part.stat().st_size for part in directory.glob(f"{file}*") if part.is_file())
            self._add(file, "MiB", size / MIB)

    def _add(self, name: str, unit: str, value: float) -> None:
        self.values[name, unit].append(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=None)
    options = parser.parse_args()
    changes = {"garbage-collector": {"interval": 2, "age": AGE_S}}
    with (
        tempfile.TemporaryDirectory(prefix="polytope-soak-") as temporary,
        target([], changes=changes, directory=Path(temporary)) as server,
    ):
        rate = options.rate or _completed(server, PRESSED_S, rate=None) / PRESSED_S / 2
        print(f"{rate:.0f} requests a second for {options.seconds:.0f} s", flush=True)
        samples, over = Samples(), threading.Event()

        def look() -> None:
            while not over.wait(SAMPLE_S):
                samples.look(server, Path(temporary))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            completed = _completed(server, options.seconds, rate=rate)
        finally:
            over.set()
            watcher.join()
    print(f"{completed} requests were completed, each with its result downloaded")
    if completed < 0.8 * rate * options.seconds:
        sys.exit("the server did not keep up with half of its own throughput")
    if grown := _report(samples):
        sys.exit(f"grown: {', '.join(grown)}")
    print("flat")


def _completed(server: Target, seconds: float, *, rate: float | None) -> int:
    """How many requests clients get done: as many as they can, or so many a second."""
    counts = [0] * CLIENTS
    broken: list[BaseException] = []
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        client = Client(server.url, server.username, server.password)
        due = time.perf_counter() + (number / rate if rate else 0.0)
        try:
            while time.perf_counter() < end and not broken:
                kind = "dummy" if counts[number] % 4 == 0 else "echo"
                request = "300000" if kind == "dummy" else "hello"
                link = client.until_processed(client.submit(server.collection(kind), request))
                if rate:
                    download(link)
                    due += CLIENTS / rate
                    time.sleep(max(0.0, due - time.perf_counter()))
                counts[number] += 1
        except BaseException as exc:
            broken.append(exc)
            raise
        finally:
            client.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
    return sum(counts)


def _report(samples: Samples) -> list[str]:
    """Print the table; what has grown."""
    table = Table(title="medians of the second and of the last quarter", title_justify="left")
    for column in ("", "unit", "then", "at the end", "most", ""):
        table.add_column(column)
    grown = []
    for (name, unit), values in samples.values.items():
        quarter = max(1, int(len(values) * WARM))
        then = statistics.median(values[quarter : 2 * quarter])
        at_end = statistics.median(values[-quarter:])
        is_flat = at_end - then <= max(GROWTH[unit], 0.1 * then)
        if not is_flat:
            grown.append(f"{name} ({unit})")
        table.add_row(
            name,
            unit,
            f"{then:.1f}",
            f"{at_end:.1f}",
            f"{max(values):.1f}",
            "flat" if is_flat else "GROWN",
        )
    Console(width=100).print(table)
    return grown


def _files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


if __name__ == "__main__":
    main()
