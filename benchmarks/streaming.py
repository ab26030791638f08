"""How fast a large result goes from its datasource through staging to a client, and in how much memory."""

import contextlib
import functools
import hashlib
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import eccodes
import numpy as np
import pyfdb

from benchmarks.client import Client, download
from benchmarks.options import Options, main
from benchmarks.table import Figure, at_most, ratio_at_least, show
from benchmarks.target import Target, descendants, resident_bytes, target
from polytope_server.demo.sample import SCHEMA
from polytope_server.lifecycle import Stop, open_chosen
from polytope_server.request import BINARY
from polytope_server.staging import CHUNK_BYTES, Staging

SIZE_BYTES = 2 << 30
MIB = 1 << 20
WORKER_MIB = 64.0
_POINTS = (1440, 721)


def measure(options: Options) -> bool:
    """Budget: 70 % of the staging's own client with the same bytes; 64 MiB above idle in each process."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="polytope-bench-")))
        changes: Mapping[str, Any] = {}
        if not options.config:
            fdb_config, fdb_bytes = _make_fdb(directory / "fdb")
            changes = _with_fdb(fdb_config)
        server = stack.enter_context(
            target(options, changes=changes, directory=directory / "server")
        )
        staging: Staging = open_chosen("staging", server.config.staging, stop=Stop())
        kinds: dict[str, tuple[object, int]] = {"dummy": (str(SIZE_BYTES), SIZE_BYTES)}
        if not options.config:
            kinds["fdb"] = (_FDB_REQUEST, fdb_bytes)
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        reference: dict[str, list[float]] = {kind: [] for kind in kinds}
        memory: dict[str, list[float]] = {}
        for kind in kinds:
            _warm(server, kind)
        for _ in range(options.runs):
            for kind, (request, size) in kinds.items():
                seconds = _seconds(functools.partial(_bare, staging, size))
                reference[kind].append(size / MIB / seconds)
                with _watched(server, kind, memory):
                    seconds = _seconds(functools.partial(_whole, server, kind, request, size))
                rates[kind].append(size / MIB / seconds)
    return show(
        f"streaming: retrieve of {SIZE_BYTES >> 30} GiB, submit to last byte",
        [
            *(
                Figure(
                    name=kind,
                    unit="MiB/s",
                    runs=rates[kind],
                    reference=reference[kind],
                    reference_name="the staging's own client",
                    budget=ratio_at_least(0.7),
                )
                for kind in kinds
            ),
            *(
                Figure(
                    name=f"memory above idle: {name}",
                    unit="MiB",
                    runs=runs,
                    budget=at_most(WORKER_MIB, "MiB"),
                )
                for name, runs in memory.items()
            ),
        ],
        file=options.json,
    )


def _seconds(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _bare(staging: Staging, size: int) -> None:
    """Write an object, hashed as a worker does, and read it back, with nothing of ours around it."""
    name = f"bench-{secrets.token_hex(8)}.bin"
    chunk = bytes(CHUNK_BYTES)
    digest = hashlib.sha256()
    try:
        with staging.create(name, media_type=BINARY) as upload:
            for start in range(0, size, CHUNK_BYTES):
                part = memoryview(chunk)[: min(CHUNK_BYTES, size - start)]
                digest.update(part)
                upload.write(part)
            upload.commit()
        if sum(len(part) for part in staging.read(name)) != size:
            raise AssertionError("the staging's own client lost bytes")
    finally:
        staging.delete(name)


def _whole(server: Target, kind: str, request: object, size: int) -> None:
    client = Client(server.url, server.authorization)
    request_id = client.submit(server.collection(kind), request)
    try:
        if download(client.until_processed(request_id)) != size:
            raise AssertionError("the result has another size")
    finally:
        client.revoke(request_id)
        client.close()


def _warm(server: Target, kind: str) -> None:
    """Let every slot load the datasource's library: an idle slot has done so."""
    request = {**_FDB_REQUEST, "step": "0"} if kind == "fdb" else "1"
    client = Client(server.url, server.authorization)
    for _ in range(4):
        ids = [client.submit(server.collection(kind), request) for _ in range(4)]
        for request_id in ids:
            client.until_processed(request_id)
            client.revoke(request_id)
    client.close()


@contextlib.contextmanager
def _watched(server: Target, kind: str, memory: dict[str, list[float]]) -> Iterator[None]:
    """The most that the worker and the largest of its slots hold meanwhile, above what they held before."""
    worker = server.pids.get("worker")
    if worker is None:
        yield
        return
    slots = descendants(worker)
    idle = {pid: resident_bytes(pid) for pid in (worker, *slots)}
    most = dict(idle)
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            for pid in most:
                most[pid] = max(most[pid], resident_bytes(pid))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    supervisor = (most[worker] - idle[worker]) / MIB
    slot = max((most[pid] - idle[pid]) / MIB for pid in slots)
    memory.setdefault(f"supervisor, {kind}", []).append(supervisor)
    memory.setdefault(f"slot, {kind}", []).append(slot)


# --- an FDB with as much in it

_STEPS = SIZE_BYTES // (_POINTS[0] * _POINTS[1] * 2)
_FDB_REQUEST = {
    "class": "od",
    "expver": "0001",
    "stream": "oper",
    "date": "20250101",
    "time": "0000",
    "domain": "g",
    "type": "fc",
    "levtype": "sfc",
    "step": f"0/to/{_STEPS - 1}/by/1",
    "param": "167",
}


def _make_fdb(root: Path) -> tuple[dict[str, Any], int]:
    """Global fields of 0.25°, two bytes a value, one for each step; the configuration, and all bytes."""
    (root / "data").mkdir(parents=True)
    (root / "schema").write_text(SCHEMA)
    config = {
        "type": "local",
        "engine": "toc",
        "schema": str(root / "schema"),
        "spaces": [{"handler": "Default", "roots": [{"path": str(root / "data")}]}],
    }
    if shutil.disk_usage(root).free < 4 * SIZE_BYTES:
        raise AssertionError(f"{root}: there must be {4 * SIZE_BYTES >> 30} GiB free")
    fdb = pyfdb.FDB(config)
    handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
    total = 0
    try:
        for key, value in _grid().items():
            eccodes.codes_set(handle, key, value)
        values = np.random.default_rng(0).normal(280, 20, _POINTS[0] * _POINTS[1])
        eccodes.codes_set_values(handle, values)
        for step in range(_STEPS):
            eccodes.codes_set(handle, "step", step)
            message = eccodes.codes_get_message(handle)
            total += len(message)
            fdb.archive(message)
    finally:
        eccodes.codes_release(handle)
    fdb.flush()
    return config, total


def _grid() -> dict[str, Any]:
    columns, rows = _POINTS
    return {
        "Ni": columns,
        "Nj": rows,
        "latitudeOfFirstGridPointInDegrees": 90.0,
        "latitudeOfLastGridPointInDegrees": -90.0,
        "longitudeOfFirstGridPointInDegrees": 0.0,
        "longitudeOfLastGridPointInDegrees": 359.75,
        "iDirectionIncrementInDegrees": 0.25,
        "jDirectionIncrementInDegrees": 0.25,
        "bitsPerValue": 16,
        "setLocalDefinition": 1,  # brings the keys of MARS into being
        "class": "od",
        "stream": "oper",
        "type": "fc",
        "expver": "0001",
        "dataDate": 20250101,
        "dataTime": 0,
        "paramId": 167,
    }


def _with_fdb(fdb_config: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "datasources": {"fdb": {"type": "fdb", "fdb_config": dict(fdb_config)}},
        "collections": {"fdb": {"roles": {"local": ["default"]}, "datasources": ["fdb"]}},
    }


if __name__ == "__main__":
    main(__doc__, measure)
