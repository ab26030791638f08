"""A deployment as a cluster has it: every back-end a server, two workers, roles out of a directory."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import requests
from deployment import PROCESSES, REALM, Deployment, configuration
from services.base import Server
from services.proxy import ChaosProxy
from services.stack import Stack

SERVERS: Final = ("mongodb", "rabbitmq", "radosgw", "redis", "slapd")
SECTIONS: Final = ("request_store", "queue", "staging", "caching")
HARMED: Final[Mapping[str, str]] = {
    "mongodb": "request_store",
    "seaweedfs": "staging",
    "redis": "caching",
    "rabbitmq": "queue",
}
"""Servers that keep their data and are soon there again, with the names that ``/readyz`` has for them.

RabbitMQ is last: killed, it loses a quorum queue that is younger than two seconds; that is mended, but takes
its time.
"""
SECOND_WORKER: Final = "worker-2"
CHANGES: Final[Mapping[str, Any]] = {
    "datasources": {"slow": {"type": "dummy", "bytes_per_second": "1M"}},
    "collections": {"slow": {"roles": {REALM: ["default"]}, "datasources": ["slow"]}},
}


class FullStack(Deployment):
    """All our processes over the servers of a stack; what it has no server for is embedded.

    Args:
        ports: where some of the servers are to be reached instead, by name.
        changes: as for every deployment.
    """

    def __init__(
        self,
        directory: Path,
        stack: Stack,
        *,
        ports: Mapping[str, int] | None = None,
        changes: Mapping[str, Any] = CHANGES,
    ) -> None:
        sections = {section: stack.section(section, ports) for section in SECTIONS}
        replaced: dict[str, Any] = {name: value for name, value in sections.items() if value}
        authorizer = stack.section("authorizers", ports)
        if authorizer is not None:
            realm = configuration(directory, 0)["authentication"][REALM]
            replaced["authentication"] = {
                REALM: {**realm, "authorizers": {"directory": authorizer}}
            }
        super().__init__(directory, changes=changes, replaced=replaced, names=PROCESSES)

    def __enter__(self) -> "FullStack":
        self.start("worker", label=SECOND_WORKER)
        super().__enter__()
        return self


@dataclass(frozen=True, slots=True)
class Back:
    """A server that our processes reach through a proxy, so that all can happen to it."""

    server: Server
    proxy: ChaosProxy
    name: str
    """In ``/readyz``."""


@contextmanager
def harmable(
    directory: Path, changes: Mapping[str, Any] = CHANGES
) -> Iterator[tuple[FullStack, Mapping[str, Back]]]:
    """A deployment on servers of `HARMED`, each behind a proxy."""
    with ExitStack() as context:
        stack = context.enter_context(Stack(list(HARMED)))
        backs = {
            name: Back(
                stack.servers[name],
                context.enter_context(ChaosProxy(stack.servers[name].port())),
                state,
            )
            for name, state in HARMED.items()
        }
        ports = {name: back.proxy.port for name, back in backs.items()}
        yield (
            context.enter_context(FullStack(directory, stack, ports=ports, changes=changes)),
            backs,
        )


def states(deployment: Deployment) -> tuple[int, Mapping[str, str]]:
    """What ``/readyz`` says."""
    answer = requests.get(f"{deployment.url}/readyz", timeout=30)
    return answer.status_code, answer.json()


def all_is_well(deployment: Deployment) -> bool:
    status, said = states(deployment)
    return status == 200 and set(said.values()) == {"ok"}
