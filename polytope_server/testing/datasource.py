"""What every datasource must do. Subclass `DatasourceContract` and give it the fixtures that it names."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from polytope_server.config.section import DatasourceSection
from polytope_server.datasource import Datasource, Query
from polytope_server.errors import DatasourceFailed
from polytope_server.request import EXTENSIONS, Verb
from polytope_server.user import User

MAX_CHUNK_BYTES = 64 << 20


def query_of(request: dict[str, Any] | None = None, *, text: str = "", name: str = "id1") -> Query:
    """A query of somebody's, by its canonical form or its text."""
    user = User(username="joe", realm="test")
    return Query(id=name, user=user, request=request or {}, text=text)


def retrieved(datasource: Datasource, query: Query) -> bytes:
    """All the data, each chunk copied before the next is asked for."""
    return b"".join(bytes(chunk) for chunk in datasource.retrieve(query))


@contextmanager
def handed_over(data: bytes) -> Iterator[Path]:
    """A file as a worker hands it over: it can be read, but it has no name of its own."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        yield Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")


class DatasourceContract:
    """The contract of `polytope_server.datasource.Datasource`.

    Fixtures: `datasource`, `query` (one that it can deliver), `expected` (the bytes of it).
    """

    def test_its_options_and_media_type_are_known(self, datasource: Datasource) -> None:
        assert issubclass(type(datasource).Config, DatasourceSection)  # type: ignore[attr-defined]
        assert datasource.media_type in EXTENSIONS

    def test_it_delivers_what_was_asked_for(
        self, datasource: Datasource, query: Query, expected: bytes
    ) -> None:
        assert retrieved(datasource, query) == expected

    def test_it_delivers_the_same_again(
        self, datasource: Datasource, query: Query, expected: bytes
    ) -> None:
        retrieved(datasource, query)
        assert retrieved(datasource, query) == expected

    def test_chunks_are_small(self, datasource: Datasource, query: Query) -> None:
        sizes = [len(chunk) for chunk in datasource.retrieve(query)]
        assert sizes
        assert max(sizes) <= MAX_CHUNK_BYTES

    def test_a_retrieval_that_was_given_up_harms_no_other(
        self, datasource: Datasource, query: Query, expected: bytes
    ) -> None:
        assert len(next(datasource.retrieve(query))) > 0
        assert retrieved(datasource, query) == expected

    def test_it_takes_data_only_if_it_says_so(self, datasource: Datasource, query: Query) -> None:
        verbs = type(datasource).Config.verbs  # type: ignore[attr-defined]
        assert Verb.RETRIEVE in verbs
        if Verb.ARCHIVE not in verbs:
            with (
                handed_over(b"anything") as data,
                pytest.raises(DatasourceFailed, match=r"\w+ \w+"),
            ):
                datasource.archive(query, data)


class RefusingContract:
    """For datasources that cannot deliver everything. Fixtures: `datasource`, `refused`."""

    def test_it_says_why_it_cannot_deliver(self, datasource: Datasource, refused: Query) -> None:
        with pytest.raises(DatasourceFailed, match=r"\w+ \w+"):
            retrieved(datasource, refused)

    def test_a_refusal_harms_no_other_request(
        self, datasource: Datasource, refused: Query, query: Query, expected: bytes
    ) -> None:
        with pytest.raises(DatasourceFailed):
            retrieved(datasource, refused)
        assert retrieved(datasource, query) == expected


class ArchivingContract:
    """For datasources that keep data. Fixtures: `datasource`, `new` (a query), `data` (the bytes of it)."""

    def test_what_is_archived_can_be_retrieved(
        self, datasource: Datasource, new: Query, data: bytes
    ) -> None:
        with handed_over(data) as file:
            datasource.archive(new, file)
        assert retrieved(datasource, new) == data

    def test_it_may_be_archived_again(
        self, datasource: Datasource, new: Query, data: bytes
    ) -> None:
        with handed_over(data) as file:
            for _ in range(2):
                datasource.archive(new, file)
        assert retrieved(datasource, new) == data
