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

    It may crash, hang and leak: it runs in a process of its own and is never trusted. What it
    prints goes to the log. Its `Config` (a `config.section.DatasourceSection`) says which verbs it
    has and what kinds of requests it takes, so that nothing else is ever sent here.
    """

    media_type: str
    """One of the three of `polytope_server.request`."""

    def retrieve(self, query: Query) -> Iterator[bytes | bytearray | memoryview]:
        """The data, in chunks of some MiB at most. A buffer is the callee's again at the next turn.

        Raises:
            DatasourceFailed: with a text for the user, at any time; nothing is then published.
        """

    def archive(self, query: Query, data: Path) -> None:
        """Keep what the file holds; all of it, visible to others on return. May be run twice.

        Raises:
            DatasourceFailed: with a text for the user; nothing should have been kept.
        """
