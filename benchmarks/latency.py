"""How long an idle server takes from a submission to `processed`, one request at a time."""

import statistics
import time

from benchmarks.client import Client
from benchmarks.options import Options, main
from benchmarks.table import Figure, at_most, show
from benchmarks.target import target

REQUESTS = 100
"""In each run."""
EMBEDDED_MS = 30.0
FULL_STACK_MS = 80.0


def measure(options: Options) -> bool:
    """Budget: median at most 30 ms embedded, 80 ms on the full stack. Reference: a bare round trip."""
    overhead: list[float] = []
    slowest: list[float] = []
    round_trip: list[float] = []
    with target(options) as server:
        collection = server.collection("echo")
        client = Client(server.url, server.authorization)
        for _ in range(20):
            client.until_processed(client.submit(collection, "warm"))
        for _ in range(options.runs):
            times = sorted(_one(client, collection) for _ in range(REQUESTS))
            overhead.append(statistics.median(times))
            slowest.append(times[int(0.95 * len(times))])
            round_trip.append(statistics.median(_bare(client) for _ in range(REQUESTS)))
        client.close()
    limit = FULL_STACK_MS if options.config or options.back_ends else EMBEDDED_MS
    return show(
        f"latency: echo, submit to processed, one at a time, {REQUESTS} requests a run",
        [
            Figure(
                name="median",
                unit="ms",
                runs=overhead,
                reference=round_trip,
                reference_name="GET /api/v1/test",
                budget=at_most(limit, "ms"),
            ),
            Figure(name="95th percentile", unit="ms", runs=slowest),
        ],
        file=options.json,
    )


def _one(client: Client, collection: str) -> float:
    """Milliseconds."""
    begin = time.perf_counter()
    client.until_processed(client.submit(collection, "hello"))
    return 1000 * (time.perf_counter() - begin)


def _bare(client: Client) -> float:
    """Milliseconds."""
    begin = time.perf_counter()
    client.call("GET", "/test")
    return 1000 * (time.perf_counter() - begin)


if __name__ == "__main__":
    main(__doc__, measure)
