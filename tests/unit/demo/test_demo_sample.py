"""The sample archive and the pieces of the walk that need no server."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyfdb
from rich.console import Console

from polytope_server.config.datasources import FdbConfig
from polytope_server.datasource.fdb import FdbDatasource
from polytope_server.demo.configuration import demo_configuration
from polytope_server.demo.sample import DATES, Field, fields, make_fdb, message
from polytope_server.demo.walk import decoded, table_of
from polytope_server.testing.datasource import query_of, retrieved


def test_the_archive_holds_the_fields_it_should_and_no_others(tmp_path: Path) -> None:
    config = make_fdb(tmp_path)
    listed = sorted(
        tuple(sorted(element.combined_key().items())) for element in pyfdb.FDB(config).list({})
    )
    numbers = {"2t": "167", "t": "130", "u": "131", "v": "132"}
    wanted = sorted(
        tuple(sorted({**field.keys(), "param": numbers[field.param]}.items()))
        for field in fields(DATES)
    )
    assert listed == wanted
    assert 100 <= len(wanted) <= 300


def test_writing_it_again_changes_nothing_that_a_reader_sees(tmp_path: Path) -> None:
    for _ in range(2):
        config = make_fdb(tmp_path, dates=["20250101"])
    assert sum(1 for _ in pyfdb.FDB(config).list({})) == len(list(fields(["20250101"])))


def test_every_decoded_value_is_that_of_the_formula(tmp_path: Path) -> None:
    wanted = [field for field in fields(["20250102"]) if field.step == 12]
    file = tmp_path / "fields.grib"
    file.write_bytes(b"".join(message(field) for field in wanted))
    found = list(decoded(file))
    assert [one.field for one in found] == wanted
    assert all(one.is_right() for one in found)
    assert all(one.values.size == 5248 for one in found)


def test_a_field_under_a_wrong_name_or_upside_down_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "field.grib"
    for field in (
        Field(param="2t", date="20250101"),
        Field(param="t", date="20250101", level=850, number=1),
        Field(param="u", date="20250101", level=500),
        Field(param="v", date="20250101", level=500),
    ):
        file.write_bytes(message(field))
        one = next(decoded(file))
        assert one.is_right()
        assert not replace(one, field=replace(field, step=6)).is_right()
        assert not replace(one, latitude=-one.latitude).is_right()
        assert not replace(one, values=np.flip(one.values)).is_right()
        if field.number is not None:
            assert not replace(one, field=replace(field, number=2)).is_right()


def test_the_table_has_a_line_for_each_field(tmp_path: Path) -> None:
    file = tmp_path / "field.grib"
    field = Field(param="t", date="20250101", step=6, level=850, number=3)
    file.write_bytes(message(field))
    text = io.StringIO()
    Console(file=text, width=120).print(table_of(decoded(file)))
    line = next(line for line in text.getvalue().splitlines() if "850 hPa" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[:6] == ["t", "850 hPa", "3", "20250101", "0000", "6"]
    least, mean, greatest = (float(cell) for cell in cells[6:9])
    assert 200 < least < mean < greatest < 300
    assert cells[9] == "K"


def test_the_demos_datasource_delivers_from_the_sample(tmp_path: Path) -> None:
    config = make_fdb(tmp_path, dates=["20250101"])
    tree = demo_configuration(config, username="joe", password="pa$word")
    options = FdbConfig.read(tree["datasources"]["forecasts"], where="x")
    assert list(options.unknown_keys()) == []
    field = Field(param="2t", date="20250101", step=6)
    assert retrieved(FdbDatasource(options), query_of(field.keys())) == message(field)


def test_no_text_of_the_demos_configuration_is_taken_for_a_variable() -> None:
    tree = demo_configuration({"schema": "/a$b/schema"}, username="joe", password="pa$word")
    users = tree["authentication"]["demo"]["authenticators"]["local"]["users"]
    assert users == [{"uid": "joe", "password": "pa$$word"}]
    assert tree["datasources"]["forecasts"]["fdb_config"] == {"schema": "/a$$b/schema"}
