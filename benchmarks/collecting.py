"""How long the collector takes for a hundred thousand requests and objects, and in how much memory."""

import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import closing, suppress
from pathlib import Path

from benchmarks.options import Options, main
from benchmarks.table import Figure, at_most, show
from benchmarks.target import embedded, free_port
from polytope_server.config.embedded import SqliteStoreSection
from polytope_server.config.staging import LocalStagingSection
from polytope_server.errors import ConfigurationError
from polytope_server.request import (
    GRIB,
    DataObject,
    Lease,
    Request,
    Status,
    Step,
    Verb,
    result_name,
)
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.staging.local import LocalStaging
from polytope_server.user import User

OBJECTS = 100_000
SOME = 10_000
"""For what memory is compared with."""
CONTENT = b"x" * 100
MIB = 1 << 20
BUDGET_S = 60.0
RUNS = 3


def measure(options: Options) -> bool:
    """Budget: a minute for 100,000; memory that does not grow with their number."""
    if options.config or options.back_ends:
        raise ConfigurationError(
            "fills store and staging with 100,000 objects, so it only measures its own"
        )
    seconds: list[float] = []
    memory: list[float] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory(prefix="polytope-bench-") as temporary:
        _, few = _collected(Path(temporary) / "few", SOME)
        for run in range(min(options.runs, RUNS)):
            directory = Path(temporary) / f"run-{run}"
            elapsed, most = _collected(directory, OBJECTS)
            seconds.append(elapsed)
            memory.append(most - few)
            bare.append(_bare(directory))
            shutil.rmtree(directory)
    return show(
        f"collecting: {OBJECTS:,} finished requests with a result each, all old",
        [
            Figure(
                name="one pass",
                unit="s",
                runs=seconds,
                reference=bare,
                reference_name="unlink of as many files",
                budget=at_most(BUDGET_S, "s"),
            ),
            Figure(
                name=f"memory above that for {SOME:,}",
                unit="MiB",
                runs=memory,
                budget=at_most(16, "MiB"),
            ),
        ],
        file=options.json,
    )


def _collected(directory: Path, count: int) -> tuple[float, float]:
    """Seconds of a pass of a collector's own process, and the most MiB that it held."""
    directory.mkdir()
    tree = embedded(directory, port=free_port(), password="not-used")
    tree["garbage-collector"] |= {"age": "1s"}
    file = directory / "config.yaml"
    file.write_text(json.dumps(tree))
    _fill(directory, count)
    time.sleep(1.1)
    command = [sys.executable, "-m", "polytope_server", "garbage-collector", "-f", str(file)]
    begin = time.perf_counter()
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--once"], stdout=log, stderr=log)
        most = 0.0
        while process.poll() is None:
            most = max(most, _peak_mib(process.pid))
            time.sleep(0.02)
    elapsed = time.perf_counter() - begin
    store = SqliteRequestStore(SqliteStoreSection(path=directory / "requests.sqlite"))
    if process.returncode != 0 or store.finished_before(time.time(), limit=1):
        raise AssertionError(
            f"the collector left something: {(directory / 'log').read_bytes()[-2000:]!r}"
        )
    if LocalStaging(LocalStagingSection(root_dir=directory / "staging")).list("", limit=1):
        raise AssertionError("the collector left an object")
    return elapsed, most


def _peak_mib(pid: int) -> float:
    """Of the program that runs now: what the kernel tells of ended children begins with their parent's."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _fill(directory: Path, count: int) -> None:
    """Finished requests: one is made by the store's own operations, the others are copies of its row."""
    path = directory / "requests.sqlite"
    store = SqliteRequestStore(SqliteStoreSection(path=path))
    staging = LocalStaging(LocalStagingSection(root_dir=directory / "staging"))
    first = _finished(store)
    names: list[str] = []
    with closing(sqlite3.connect(path)) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(requests)") if row[1] != "seq"]
        template = dict(
            zip(
                columns,
                db.execute(f"SELECT {', '.join(columns)} FROM requests").fetchone(),
                strict=True,
            )
        )
        for number in range(count):
            request_id = str(uuid.uuid4()) if number else first
            name = result_name("", request_id, 1, GRIB)
            names.append(name)
            if number:
                result = json.dumps(_result(name).as_json())
                row = template | {"id": request_id, "result": result}
                marks = ", ".join("?" * len(columns))
                db.execute(
                    f"INSERT INTO requests ({', '.join(columns)}) VALUES ({marks})",
                    tuple(row.values()),
                )
        db.commit()
    for name in names:
        path = staging.path(name)
        path.parent.mkdir(exist_ok=True, mode=0o700)
        path.write_bytes(CONTENT)


def _finished(store: SqliteRequestStore) -> str:
    request = store.add(
        Request(
            id=str(uuid.uuid4()),
            user=User(username="bench", realm="bench"),
            verb=Verb.RETRIEVE,
            collection="c",
            datasource="echo",
            user_request="hello",
            coerced_request={},
            status=Status.WAITING,
        )
    )
    lease = Lease(holder="bench", attempt=1)
    result = _result(result_name("", request.id, 1, GRIB))
    for step in (
        Step(id=request.id, source=Status.WAITING, target=Status.QUEUED),
        Step(
            id=request.id,
            source=Status.QUEUED,
            target=Status.PROCESSING,
            lease=lease,
            lease_s=60,
        ),
        Step(
            id=request.id,
            source=Status.PROCESSING,
            target=Status.PROCESSED,
            lease=lease,
            result=result,
        ),
    ):
        store.apply(step)
    return request.id


def _result(name: str) -> DataObject:
    return DataObject(name=name, media_type=GRIB, size_bytes=len(CONTENT), sha256="0" * 64)


def _bare(directory: Path) -> float:
    """Seconds that it takes to make nothing of as many files, by as little as can be done."""
    names = [directory / "bare" / f"{number % 256:02x}" / str(number) for number in range(OBJECTS)]
    for shard in {name.parent for name in names}:
        shard.mkdir(parents=True)
    for name in names:
        name.write_bytes(CONTENT)
    begin = time.perf_counter()
    for name in names:
        name.unlink()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main(__doc__, measure)
