"""Where data come from, and where archived data go."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from polytope_server.user import User


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One request as a datasource is given it.

    `request` is the canonical form: values are text, lists joined by ``/``, ranges as ``a/to/b/by/c``;
    `feature` is a mapping. Datasources that read free text look at `text`, the request as the user
    wrote it.
    """

    id: str
    user: User
    request: Mapping[str, Any]
    text: str


class Datasource(Protocol):
    """Delivers bytes for a request, or takes them. Made anew in a slot process for every request.

    It may crash, hang and leak: it runs in a process of its own, in its main thread, and is never
    trusted. What it prints or logs goes to the worker's log. It may be killed at any time, when its
    request is revoked or takes too long, and nothing of it runs then. Its `Config` (a
    `config.section.DatasourceSection`) says which verbs it has and what kinds of requests it takes, so
    that nothing else is ever sent here.

    Any exception other than `DatasourceFailed` fails the request too; the user is told nothing of it,
    and the log has it all.
    """

    media_type: str
    """One of the three of `polytope_server.request`; read before `retrieve` is called."""

    def retrieve(self, query: Query) -> Iterator[bytes | bytearray | memoryview]:
        """The data, in chunks of some MiB at most. A buffer is the callee's again at the next turn.

        Raises:
            DatasourceFailed: with a text for the user, at any time; nothing is then published.
        """

    def archive(self, query: Query, data: Path) -> None:
        """Keep what the file holds; all of it, visible to others on return. May be run twice.

        The file can be read, but it has no name of its own by which it could be moved or linked.

        Raises:
            DatasourceFailed: with a text for the user; nothing should have been kept.
        """
