"""How many requests a second 16 clients get done that submit and poll as polytope-client does."""

import threading
import time

from benchmarks.client import Client
from benchmarks.options import Options, main
from benchmarks.table import Figure, at_least, show
from benchmarks.target import Target, cpu_seconds, target

CLIENTS = 16
RUN_S = 8.0
WARM_S = 2.0
BUDGET = 200.0


def measure(options: Options) -> bool:
    """Budget: at least 200 a second on two cores, embedded."""
    with target(options) as server:
        _run(server, seconds=WARM_S)
        rates: list[float] = []
        cpu: dict[str, list[float]] = {name: [] for name in server.pids}
        bare: list[float] = []
        for _ in range(options.runs):
            before = {name: cpu_seconds(pid) for name, pid in server.pids.items()}
            completed, seconds = _run(server, seconds=RUN_S)
            rates.append(completed / seconds)
            for name, pid in server.pids.items():
                cpu[name].append(1000 * (cpu_seconds(pid) - before[name]) / completed)
            calls, seconds = _run(server, seconds=RUN_S / 4, is_bare=True)
            bare.append(calls / seconds)
    return show(
        f"throughput: echo, {CLIENTS} clients, {RUN_S:g} s a run",
        [
            Figure(
                name="requests completed",
                unit="/s",
                runs=rates,
                reference=bare,
                reference_name="GET /api/v1/test by the same clients",
                budget=None if options.config or options.back_ends else at_least(BUDGET, "/s"),
            ),
            *(
                Figure(name=f"CPU of the {name} for each", unit="ms", runs=runs)
                for name, runs in cpu.items()
            ),
        ],
        file=options.json,
    )


def _run(server: Target, *, seconds: float, is_bare: bool = False) -> tuple[int, float]:
    """Requests completed, or bare calls made, and the time that took."""
    counts = [0] * CLIENTS
    broken: list[BaseException] = []
    begin = time.perf_counter()
    end = begin + seconds
    collection = server.collection("echo")

    def work(number: int) -> None:
        client = Client(server.url, server.authorization)
        try:
            while time.perf_counter() < end:
                if is_bare:
                    client.call("GET", "/test")
                else:
                    client.until_processed(client.submit(collection, "hello"))
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
    return sum(counts), time.perf_counter() - begin


if __name__ == "__main__":
    main(__doc__, measure)
