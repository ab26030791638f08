"""Processes that are started, or stopped, while their servers are there but say nothing."""

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import requests
from deployment import PROCESSES, REALM, Deployment, free_port, until
from services.proxy import ChaosProxy, Mode
from services.seaweedfs import SeaweedFs

HEALTH = ("broker", "worker", "garbage-collector")
NEEDS: Mapping[str, set[str]] = {
    "broker": {"request_store", "queue"},
    "worker": {"request_store", "queue", "staging"},
    "garbage-collector": {"request_store", "staging", "usage"},
    "frontend": {"request_store", "queue", "staging", "caching"},
    "metrics of the frontend": {"request_store", "queue", "staging"},
}
ALIVE_S = 20.0
"""Most of it is for machines that are busy."""
END_S = 25.0
STUCK_END_S = 18.0
"""``worker.drain_timeout`` is 3 s here, and what is cut off then may take 10 s."""
SIZE = 60_000_000


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections, as far as the kernel does, and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=1000)) as server:
        yield server.getsockname()[1]


def test_processes_are_alive_say_what_they_wait_for_and_end_while_no_server_answers(
    tmp_path: Path, silent: int
) -> None:
    ports = {name: free_port() for name in NEEDS}
    server = {"host": "127.0.0.1", "port": silent}
    deployment = Deployment(
        tmp_path,
        changes={
            **{name: {"health_port": ports[name]} for name in HEALTH},
            "frontend": {"metrics_port": ports["metrics of the frontend"]},
        },
        replaced={
            "request_store": {
                "mongodb": {
                    "uri": f"mongodb://127.0.0.1:{silent}/?directConnection=true",
                    "timeout": "3s",
                }
            },
            "queue": {"rabbitmq": server},
            "staging": {"s3": {**server, "bucket": "results"}},
            "caching": {"redis": server},
        },
    )
    ports["frontend"] = deployment.port
    with ExitStack() as context:
        context.callback(deployment.__exit__)
        for name in PROCESSES:
            deployment.start(name)
        for name, needs in NEEDS.items():
            _answered(ports[name], "/healthz")
            assert _answered(ports[name], "/readyz") == (503, dict.fromkeys(needs, "away")), name
        begin = time.monotonic()
        for process in deployment.processes.values():
            process.terminate()
        for name, process in deployment.processes.items():
            assert process.wait(timeout=END_S) == 0, deployment.log(name)[-3000:]
        assert time.monotonic() - begin < END_S
    for name in PROCESSES:
        assert "Traceback" not in deployment.log(name)
        assert f"127.0.0.1:{silent}" in deployment.log(name)


def _answered(port: int, path: str) -> tuple[int, Mapping[str, str]]:
    """Status and body of the first answer."""

    def asked() -> tuple[int, Mapping[str, str]] | None:
        try:
            answer = requests.get(f"http://127.0.0.1:{port}{path}", timeout=10)
        except requests.RequestException:
            return None
        return answer.status_code, answer.json()

    first: tuple[int, Mapping[str, str]] = until(asked, deadline_s=ALIVE_S, what=f"{port}{path}")
    return first


def test_a_worker_that_is_stopped_while_staging_hangs_ends_and_hands_its_request_on(
    tmp_path: Path, seaweedfs: SeaweedFs
) -> None:
    with ChaosProxy(seaweedfs.port()) as proxy:
        s3 = {**seaweedfs.options, "port": proxy.port, "bucket": "drained", "buffer_size": "5M"}
        deployment = Deployment(
            tmp_path,
            changes={
                "datasources": {"slow": {"type": "dummy", "bytes_per_second": 20_000_000}},
                "collections": {"slow": {"roles": {REALM: ["default"]}, "datasources": ["slow"]}},
            },
            replaced={"staging": {"s3": s3}},
        )
        with deployment:
            request_id = deployment.submit(str(SIZE), collection="slow")
            until(lambda: "staged so far" in deployment.poll(request_id).text, what="it runs")
            proxy.mode = Mode.BLACKHOLE
            time.sleep(1)
            worker = deployment.processes["worker"]
            worker.terminate()
            assert worker.wait(timeout=STUCK_END_S) == 0
            assert "Handed on" in deployment.poll(request_id).text
            proxy.mode = Mode.PASS
            deployment.start("worker")
            assert deployment.result(request_id) == b"x" * SIZE
