"""One instance of each server for all tests that do not harm it, started when the first one asks.

A test that kills, stops or fills a server starts one of its own: ``with started(Redis) as redis``.
Tests that share a server keep apart by names: a virtual host, bucket, database or prefix each.
"""

import contextlib
import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Final, TypeVar

import pytest

from services.base import Missing, Server

S = TypeVar("S", bound=Server)

SERVERS: Final = {
    "rabbitmq": "services.rabbitmq:RabbitMq",
    "redis": "services.redis:Redis",
    "memcached": "services.memcached:Memcached",
    "mongodb": "services.mongodb:MongoDb",
    "slapd": "services.slapd:Slapd",
    "oidc": "services.oidc:OidcProvider",
    "radosgw": "services.radosgw:RadosGw",
    "seaweedfs": "services.seaweedfs:SeaweedFs",
    "moto": "services.moto:Moto",
}
"""Name of the fixture to the class."""


@contextlib.contextmanager
def started(kind: type[S], **options: Any) -> Iterator[S]:
    """A server of the test's own. One that is not installed skips the test, or fails it in CI."""
    must_be_installed(kind)
    with kind(**options) as server:
        yield server


def must_be_installed(*kinds: type[Server]) -> None:
    """Skip the test if one of them is not, or fail it in CI."""
    try:
        for kind in kinds:
            kind.check()
    except Missing as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(str(exc), pytrace=False)
        pytest.skip(str(exc))


def _fixture(name: str, path: str) -> Any:
    @pytest.fixture(scope="session", name=name)
    def server() -> Iterator[Server]:
        module, _, attribute = path.partition(":")
        with started(getattr(import_module(module), attribute)) as running:
            yield running

    return server


for _name, _path in SERVERS.items():
    globals()[f"_{_name}"] = _fixture(_name, _path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one server run in one process of xdist, so that it is started once."""
    for item in items:
        for name in SERVERS:
            if name in getattr(item, "fixturenames", ()) and not item.get_closest_marker(
                "xdist_group"
            ):
                item.add_marker(pytest.mark.xdist_group(name))
                break
