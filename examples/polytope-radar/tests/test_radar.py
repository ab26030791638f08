"""The contract of datasources, kept by the radar's, and what is its own."""

from pathlib import Path

import pytest

from polytope_radar import RadarConfig, RadarDatasource, days
from polytope_server.datasource import Datasource, Query
from polytope_server.errors import DatasourceFailed
from polytope_server.testing.datasource import (
    ArchivingContract,
    DatasourceContract,
    RefusingContract,
    query_of,
    retrieved,
)

SCANS = {"20260101": b"BUFR-first-7777", "20260102": b"BUFR-second-7777"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "essen").mkdir()
    for day, scans in SCANS.items():
        (tmp_path / "essen" / f"{day}.bufr").write_bytes(scans)
    return tmp_path


class TestRadar(DatasourceContract, RefusingContract, ArchivingContract):
    @pytest.fixture
    def datasource(self, root: Path) -> Datasource:
        options = {"type": "radar", "root_dir": str(root), "chunk": 4}
        return RadarDatasource(RadarConfig.read(options, where="datasource.radar"))

    @pytest.fixture
    def query(self) -> Query:
        return query_of({"radar": "essen", "date": "20260101/to/20260102"})

    @pytest.fixture
    def expected(self) -> bytes:
        return b"".join(SCANS.values())

    @pytest.fixture
    def refused(self) -> Query:
        return query_of({"radar": "essen", "date": "20260102/20260103"})

    @pytest.fixture
    def new(self) -> Query:
        return query_of({"radar": "ummendorf", "date": "20260101"})

    @pytest.fixture
    def data(self) -> bytes:
        return b"BUFR-new-7777"

    @pytest.mark.parametrize(
        ("request_", "said"),
        [
            ({"radar": "essen"}, "date is missing"),
            ({"date": "20260101"}, "radar is missing"),
            ({"radar": "../essen", "date": "20260101"}, "name of one radar"),
            ({"radar": "essen", "date": "20260101", "level": "5"}, "have no level"),
        ],
    )
    def test_what_it_does_not_know_is_refused(
        self, datasource: Datasource, request_: dict[str, str], said: str
    ) -> None:
        with pytest.raises(DatasourceFailed, match=said):
            retrieved(datasource, query_of(request_))

    def test_what_is_no_bufr_is_not_kept(
        self, datasource: Datasource, root: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "data").write_bytes(b"GRIB")
        with pytest.raises(DatasourceFailed, match="do not begin with a BUFR message"):
            datasource.archive(query_of({"radar": "essen", "date": "20260103"}), tmp_path / "data")
        assert {file.stem for file in (root / "essen").iterdir()} == SCANS.keys()


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("20251231", ["1231"]),
        ("20251231/20260103", ["1231", "0103"]),
        ("20251231/to/20260102", ["1231", "0101", "0102"]),
        ("20251231/to/20260104/by/2", ["1231", "0102", "0104"]),
        ("20260102/to/20251230/by/-2", ["0102", "1231"]),
    ],
)
def test_days_are_written_in_several_ways(date: str, expected: list[str]) -> None:
    assert [f"{day:%m%d}" for day in days(date)] == expected
