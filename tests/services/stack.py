"""The servers of a whole deployment, started side by side, and the configuration that stands on them."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Self

from services.base import Missing, Server
from services.fixtures import SERVERS

Section = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Use:
    """What a server is for: the section of the configuration, and what stands there.

    The port is the server's, or that of a proxy before it.
    """

    section: str
    options: Callable[[Any, int], Section]


def _s3(server: Any, port: int) -> Section:
    return {"s3": {**server.options, "port": port, "bucket": "polytope", "use_presigned_url": True}}


def _ldap(slapd: Any, port: int) -> Section:
    module = import_module("services.slapd")
    return {
        "type": "ldap",
        "url": f"ldap://127.0.0.1:{port}",
        "search_base": module.PEOPLE,
        "ldap_user": module.READER,
        "ldap_password": module.READER_PASSWORD,
    }


USES: Final[Mapping[str, Use]] = {
    "rabbitmq": Use("queue", lambda _, port: {"rabbitmq": {"host": "127.0.0.1", "port": port}}),
    "mongodb": Use(
        "request_store",
        lambda _, port: {"mongodb": {"uri": f"mongodb://127.0.0.1:{port}/?directConnection=true"}},
    ),
    "redis": Use("caching", lambda _, port: {"redis": {"host": "127.0.0.1", "port": port}}),
    "memcached": Use("caching", lambda _, port: {"memcached": {"host": "127.0.0.1", "port": port}}),
    "slapd": Use("authorizers", _ldap),
    "radosgw": Use("staging", _s3),
    "seaweedfs": Use("staging", _s3),
}
"""By the name of the server; what takes longest to come up is first. ``authorizers`` belongs to a realm."""


def kind(name: str) -> type[Server]:
    """The class of a server."""
    module, _, attribute = SERVERS[name].partition(":")
    found: type[Server] = getattr(import_module(module), attribute)
    return found


class Stack:
    """Servers with these names, in directories of their own. A context manager: nothing is left running.

    Enter it in the main thread.

    Args:
        directory: where everything of them lies; temporary ones if not given.
        lenient: go on without those that are not installed, and keep what to do in `missing`.
        settings: of some servers, by name: more arguments for their class.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        directory: Path | None = None,
        lenient: bool = False,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._names = [name for name in USES if name in names]
        if unknown := set(names) - set(USES):
            raise ValueError(f"no such servers: {sorted(unknown)}; there are {', '.join(USES)}")
        self._directory, self._lenient = directory, lenient
        self._settings = settings or {}
        self.servers: dict[str, Server] = {}
        self.missing: dict[str, str] = {}
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        kinds = {}
        for name in self._names:
            try:
                kinds[name] = kind(name)
                kinds[name].check()
            except Missing as exc:
                if not self._lenient:
                    raise
                self.missing[name] = str(exc)
                del kinds[name]
        with ExitStack() as starting:
            starting.callback(self._stop)
            for name, each in kinds.items():
                place = self._directory / name if self._directory else None
                self.servers[name] = each(place, **self._settings.get(name, {}))
                self.servers[name].launch()
            for server in self.servers.values():
                server.until_ready()
            self._exit = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _stop(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda server: server.__exit__(), self.servers.values()))
        self.servers.clear()

    def section(self, section: str, ports: Mapping[str, int] | None = None) -> Section | None:
        """What stands in this section: of the first server that is for it; None if there is none.

        Args:
            ports: where some of the servers are to be reached instead, by name.
        """
        for name, use in USES.items():
            if use.section == section and name in self.servers:
                return self.options(name, (ports or {}).get(name))
        return None

    def options(self, name: str, port: int | None = None) -> Section:
        """What stands in the section of this server."""
        server = self.servers[name]
        return USES[name].options(server, port or server.port())
