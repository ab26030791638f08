"""The datasources that need no data: echo, dummy and raise."""

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from polytope_server.config.datasources import DummyConfig, EchoConfig, RaiseConfig
from polytope_server.datasource import Datasource, Query
from polytope_server.datasource.dummy import DummyDatasource
from polytope_server.datasource.echo import EchoDatasource
from polytope_server.datasource.raising import RaiseDatasource
from polytope_server.errors import DatasourceFailed
from polytope_server.registry import open_backend
from polytope_server.request import BINARY, GRIB
from polytope_server.testing.datasource import (
    DatasourceContract,
    RefusingContract,
    query_of,
    retrieved,
)


def dummy(**options: Any) -> DummyDatasource:
    return DummyDatasource(DummyConfig.read({"type": "dummy", **options}, where="dummy"))


class TestEcho(DatasourceContract):
    @pytest.fixture
    def datasource(self) -> Datasource:
        return EchoDatasource(EchoConfig(type="echo"))

    @pytest.fixture
    def query(self) -> Query:
        return query_of({"class": "od"}, text="class:  OD\nnaïve: 🌍\n")

    @pytest.fixture
    def expected(self, query: Query) -> bytes:
        return query.text.encode()


class TestDummy(DatasourceContract, RefusingContract):
    @pytest.fixture
    def datasource(self) -> Datasource:
        return dummy(chunk="1M")

    @pytest.fixture
    def query(self) -> Query:
        return query_of(text="2500001\n")

    @pytest.fixture
    def expected(self) -> bytes:
        return b"x" * 2_500_001

    @pytest.fixture
    def refused(self) -> Query:
        return query_of(text="-1")


def test_the_built_in_names_open_them() -> None:
    assert isinstance(open_backend("datasource", "echo", {"type": "echo"}), EchoDatasource)
    assert isinstance(open_backend("datasource", "dummy", {"type": "dummy"}), DummyDatasource)
    assert isinstance(open_backend("datasource", "raise", {"type": "raise"}), RaiseDatasource)


def test_media_types_are_those_that_clients_expect() -> None:
    assert (EchoDatasource.media_type, DummyDatasource.media_type) == (BINARY, GRIB)


def test_echo_reads_what_is_archived(tmp_path: Path) -> None:
    datasource = EchoDatasource(EchoConfig(type="echo"))
    with pytest.raises(FileNotFoundError):
        datasource.archive(query_of(), tmp_path / "absent")
    data = tmp_path / "data"
    data.write_bytes(b"1" * 3_000_000)
    datasource.archive(query_of(), data)


@pytest.mark.parametrize("text", ["0", " 000 ", "'0'"])
def test_dummy_makes_nothing_if_asked_for_nothing(text: str) -> None:
    assert retrieved(dummy(), query_of(text=text)) == b""


@pytest.mark.parametrize(
    "text", ["", "ten", "1.5", "-1", "1e3", "٣", "²", "1 2", "9" * 5000, "n: 1"]
)
def test_dummy_wants_one_whole_number(text: str) -> None:
    with pytest.raises(DatasourceFailed, match="must be one whole number"):
        retrieved(dummy(), query_of(text=text))


def test_dummy_has_a_limit_that_it_names() -> None:
    assert len(retrieved(dummy(max_bytes="1K"), query_of(text="1024"))) == 1024
    with pytest.raises(DatasourceFailed, match="at most 1024"):
        retrieved(dummy(max_bytes="1K"), query_of(text="1025"))


def test_dummy_holds_one_chunk_whatever_the_size() -> None:
    tracemalloc.start()
    try:
        total = sum(len(chunk) for chunk in dummy().retrieve(query_of(text=str(4 << 30))))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 4 << 30
    assert peak < 3 << 20


def test_dummy_can_be_slow() -> None:
    begun = time.monotonic()
    size = sum(len(c) for c in dummy(bytes_per_second=100_000).retrieve(query_of(text="50000")))
    assert size == 50_000
    assert 0.35 < time.monotonic() - begun < 5


def test_raise_says_what_it_was_told_to_say(tmp_path: Path) -> None:
    datasource = RaiseDatasource(RaiseConfig(type="raise", error_message="the tape is broken"))
    with pytest.raises(DatasourceFailed, match=r"^the tape is broken$"):
        retrieved(datasource, query_of(text="x"))
    with pytest.raises(DatasourceFailed, match=r"^the tape is broken$"):
        datasource.archive(query_of(), tmp_path / "data")


_RUN = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (1 << 29, 1 << 29))
from polytope_server.config.datasources import RaiseConfig
from polytope_server.datasource.raising import RaiseDatasource
from polytope_server.testing.datasource import query_of
try:
    RaiseDatasource(RaiseConfig(type="raise", mode=sys.argv[1])).retrieve(query_of(text="x"))
except MemoryError:
    sys.exit(42)
"""


@pytest.mark.parametrize(("mode", "status"), [("crash", -11), ("exit", 3), ("memory", 42)])
def test_raise_fails_in_the_way_it_is_told_to(mode: str, status: int) -> None:
    done = subprocess.run([sys.executable, "-c", _RUN, mode], timeout=60, check=False)
    assert done.returncode == status


def test_raise_can_hang() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", _RUN, "hang"], timeout=3, check=False)
