"""The FDB datasource on a real FDB."""

import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import eccodes
import pytest

from polytope_server.config.datasources import FdbConfig
from polytope_server.datasource import Datasource, Query
from polytope_server.datasource.fdb import FdbDatasource, explained
from polytope_server.demo.sample import SCHEMA, Encoder, Field, fields, message
from polytope_server.errors import ConfigurationError, DatasourceFailed
from polytope_server.testing.datasource import (
    ArchivingContract,
    DatasourceContract,
    RefusingContract,
    query_of,
    retrieved,
)

SURFACE = Field(param="2t", date="20250101", step=6)
MEMBER = Field(param="t", date="20250101", level=500, number=2)


def opened(fdb_config: dict[str, Any], **options: Any) -> FdbDatasource:
    section = {"type": "fdb", "fdb_config": fdb_config, **options}
    return FdbDatasource(FdbConfig.read(section, where="datasources.x"))


def empty(root: Path, **changes: Any) -> dict[str, Any]:
    """The configuration of an FDB that nobody has made yet."""
    spaces = [{"handler": "Default", "roots": [{"path": str(root / "deep" / "root")}]}]
    return {"type": "local", "engine": "toc", "schema": SCHEMA, "spaces": spaces, **changes}


def data_of(*wanted: Field) -> bytes:
    with Encoder() as encoder:
        return b"".join(encoder.message(field) for field in wanted)


def archived(datasource: FdbDatasource, keys: dict[str, Any], data: bytes, directory: Path) -> None:
    file = directory / "upload"
    file.write_bytes(data)
    datasource.archive(query_of(keys), file)


def split(data: bytes) -> set[bytes]:
    parts = set()
    while data:
        size = int.from_bytes(data[8:16])
        parts.add(data[:size])
        data = data[size:]
    return parts


class TestFdb(DatasourceContract, RefusingContract):
    @pytest.fixture
    def datasource(self, archive: dict[str, Any]) -> Datasource:
        return opened(archive)

    @pytest.fixture
    def query(self) -> Query:
        return query_of(SURFACE.keys())

    @pytest.fixture
    def expected(self) -> bytes:
        return message(SURFACE)

    @pytest.fixture
    def refused(self) -> Query:
        return query_of({**SURFACE.keys(), "step": "0/1/6"})


class TestFdbArchive(ArchivingContract):
    @pytest.fixture
    def datasource(self, tmp_path: Path) -> Datasource:
        return opened(empty(tmp_path))

    @pytest.fixture
    def new(self) -> Query:
        return query_of(MEMBER.keys())

    @pytest.fixture
    def data(self) -> bytes:
        return message(MEMBER)


@pytest.mark.parametrize("buffer", ["1K", "2M"])
def test_every_byte_of_many_fields_arrives_whatever_the_buffer(
    archive: dict[str, Any], buffer: str
) -> None:
    """A field is no multiple of the buffer: reading must not fill up the last chunk."""
    wanted = [field for field in fields(["20250101"]) if field.number is None and field.level]
    keys = wanted[0].keys() | {
        "param": "130/u/132.128",
        "levelist": "1000/850/500",
        "time": "0000/to/1200/by/12",
        "step": "0/to/24/by/6",
    }
    data = retrieved(opened(archive, buffer=buffer), query_of(keys))
    assert len(wanted) == 90
    assert split(data) == split(data_of(*wanted))


def test_a_range_without_by_is_fetched_as_it_is_counted(archive: dict[str, Any]) -> None:
    data = retrieved(opened(archive), query_of({**SURFACE.keys(), "step": "0/to/24"}))
    assert split(data) == {message(dataclasses.replace(SURFACE, step=n)) for n in (0, 12, 24)}


@pytest.mark.parametrize(
    "spelling",
    [
        {"param": "167"},
        {"param": "167.128"},
        {"param": "2T"},
        {"param": "2t/167"},
        {"expver": "1"},
        {"time": "0"},
        {"time": "00:00"},
        {"date": "2025-01-01"},
        {"step": "6/6h/06"},
        {"class": "OD"},
        {"target": "x.grib"},
        {"grid": "av"},
    ],
)
def test_every_spelling_fetches_the_same_field(
    archive: dict[str, Any], spelling: dict[str, str]
) -> None:
    assert retrieved(opened(archive), query_of({**SURFACE.keys(), **spelling})) == message(SURFACE)


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"step": "7"}, ["The field is not in the archive", "date 20250101", "step 7", "param 2t"]),
        ({"step": "0/to/48/by/6"}, ["4 of the 9 fields", "step 30; step 36; step 42; step 48."]),
        ({"step": "0/to/99/by/1"}, ["95 of the 100", "step 1; step 2; step 3;", "and 85 more"]),
        ({"step": "30/36"}, ["None of the 2 fields", "step 30; step 36"]),
        ({"param": "167/2t/msl"}, ["1 of the 3 fields", "param msl"]),
        ({"date": "20250101/to/20250103"}, ["2 of the 3", "date 20250102; date 20250103"]),
        ({"step": "6-12"}, ["step 6-12"]),
        ({"step": "6/6-12"}, ["1 of the 2", "step 6-12"]),
        ({"domain": None}, ["leaves out domain"]),
        ({"domain": None, "step": None}, ["leaves out domain, step"]),
        ({"date": None}, ["leaves out date"]),
        ({"param": "zz"}, ["no param zz"]),
        ({"foo": "1"}, ["no key foo"]),
        ({"verb": "retrieve"}, ["no key verb"]),
        ({"resolution": "high"}, ["The fields have no resolution; leave it out."]),
        ({"realization": "3"}, ["The fields have no realization; leave it out."]),
        ({"realization": "1/2"}, ["The fields have no realization; leave it out."]),
        ({"realization": "1/2", "step": "6/7"}, ["The fields have no realization; leave it out."]),
        ({"origin": "kwbc"}, ["The fields have no origin; leave it out."]),
        ({"year": "1999"}, ["The fields have no year; leave it out."]),
        ({"levtype": None, "levt": "sfc"}, ["The fields have no levt; write levtype in full."]),
        ({"class": "xx"}, ["class has no value xx"]),
        ({"levtype": "s"}, ["levtype has no value s"]),
        ({"country": "de"}, ["country has no value de"]),
        ({"model": "x"}, ["model has no value x"]),
        ({"param": None, "par": "t"}, ["does not know what par is short for; write it in full"]),
        ({"style": "dissemination"}, ["With this style the archive wants resol as well"]),
        ({"hdate": "x"}, ["does not understand a value"]),
        ({"levelist": "500"}, ["levelist does not go together"]),
        ({"number": "1"}, ["number does not go together"]),
        ({"expver": "0001/0002"}, ["expver may have one value only"]),
        ({"date": "2025"}, ["does not understand a value"]),
        ({"time": "25"}, ["does not understand a value"]),
        ({"grid": "1/1"}, ["leave out grid"]),
        ({"param": "all"}, ["'all'"]),
    ],
)
def test_what_cannot_be_delivered_is_said_in_words(
    archive: dict[str, Any], changes: dict[str, str | None], texts: list[str]
) -> None:
    keys = {**SURFACE.keys(), **changes}
    query = query_of({key: value for key, value in keys.items() if value is not None})
    with pytest.raises(DatasourceFailed) as caught:
        retrieved(opened(archive), query)
    for text in texts:
        assert text in str(caught.value)
    assert "/" not in str(caught.value).replace("a/b/c", "").replace("a/to/b/by/c", "")


def test_a_missing_field_is_found_wherever_it_is(tmp_path: Path) -> None:
    datasource = opened(empty(tmp_path))
    everything = [
        dataclasses.replace(MEMBER, step=step, number=number)
        for step, number in itertools.product((0, 6, 12), (1, 2, 3))
    ]
    lacking = {(6, 2), (12, 3)}
    present = [field for field in everything if (field.step, field.number) not in lacking]
    for field in present:
        archived(datasource, field.keys(), message(field), tmp_path)
    with pytest.raises(DatasourceFailed) as caught:
        retrieved(datasource, query_of({**MEMBER.keys(), "step": "0/6/12", "number": "1/2/3"}))
    assert str(caught.value) == (
        "2 of the 9 fields are not in the archive: step 6, number 2; step 12, number 3. "
        "Ask for the others alone."
    )


def test_nothing_is_found_in_an_archive_that_is_closed_and_empty(tmp_path: Path) -> None:
    config = empty(tmp_path)
    config["spaces"][0]["roots"][0]["writable"] = False
    with pytest.raises(DatasourceFailed, match="The field is not in the archive"):
        retrieved(opened(config), query_of(SURFACE.keys()))
    with pytest.raises(DatasourceFailed, match="closed for writing"):
        archived(opened(config), SURFACE.keys(), message(SURFACE), tmp_path)


def test_a_fault_of_ours_is_told_without_paths(
    archive: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datasource = opened({**archive, "schema": str(tmp_path / "absent")})
    with pytest.raises(DatasourceFailed) as caught:
        retrieved(datasource, query_of(SURFACE.keys(), name="id77"))
    assert str(tmp_path) not in str(caught.value)
    assert "id77" in str(caught.value)
    assert str(tmp_path) in caplog.text


def test_data_that_vanish_while_they_are_read_are_an_error(tmp_path: Path) -> None:
    datasource = opened(empty(tmp_path), buffer="1K")
    archived(datasource, SURFACE.keys(), message(SURFACE), tmp_path)
    chunks = datasource.retrieve(query_of(SURFACE.keys()))
    next(chunks)
    for file in (tmp_path / "deep").rglob("*.data"):
        file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DatasourceFailed):
        list(chunks)


# --- archive


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"step": "12"}, "Message 1 has step 0; the request says step 12"),
        ({"class": "rd"}, "Message 1 has class od; the request says class rd"),
        ({"expver": "0002"}, "has expver 0001; the request says expver 0002"),
        ({"date": "20250102"}, "has date 20250101"),
        ({"param": "u"}, r"has param 130 \(t\); the request says param u"),
        ({"levelist": "850/1000"}, "has levelist 500; the request says levelist 850/1000"),
        ({"number": None}, "has number 2, about which the request says nothing"),
        ({"class": None, "expver": None}, "expver 0001, class od, about which"),
        ({"number": "1/2"}, "names 2 fields, and the data lack 1 of them: number 1"),
        ({"number": "1/to/50"}, "lack 49 of them: number 1; number 3; .*; and 39 more"),
        ({"quantile": "1:3"}, "Message 1 has no quantile"),
        ({"grid": "1/1"}, "leave out grid"),
    ],
)
def test_data_that_are_not_what_the_request_says_are_not_archived(
    tmp_path: Path, changes: dict[str, str | None], text: str
) -> None:
    datasource = opened(empty(tmp_path))
    keys = {k: v for k, v in {**MEMBER.keys(), **changes}.items() if v is not None}
    with pytest.raises(DatasourceFailed, match=text):
        archived(datasource, keys, message(MEMBER), tmp_path)
    assert not list((tmp_path / "deep").rglob("*.data"))


@pytest.mark.parametrize(
    "spelling",
    [
        {"param": "130"},
        {"param": "130.128"},
        {"param": "T"},
        {"levelist": "500.0"},
        {"expver": "1"},
        {"date": "2025-01-01"},
        {"step": "0h"},
        {"time": "00:00"},
        {"number": "02"},
        {"expect": "any"},
    ],
)
def test_every_spelling_of_the_request_fits_the_data(
    tmp_path: Path, spelling: dict[str, str]
) -> None:
    datasource = opened(empty(tmp_path))
    archived(datasource, {**MEMBER.keys(), **spelling}, message(MEMBER), tmp_path)
    assert retrieved(datasource, query_of(MEMBER.keys())) == message(MEMBER)


def test_one_wrong_message_among_many_keeps_all_out(tmp_path: Path) -> None:
    datasource = opened(empty(tmp_path))
    good = [dataclasses.replace(MEMBER, number=number) for number in (1, 2, 3)]
    wrong = dataclasses.replace(MEMBER, number=4)
    keys = {**MEMBER.keys(), "number": "1/to/3"}
    for bad, text in [
        (data_of(*good, wrong), "Message 4 has number 4"),
        (data_of(*good, good[0]), "Messages 1 and 4 are the same field"),
        (data_of(*good) + b"\n", "follows message 3"),
        (data_of(*good)[:-1], "Message 3 is cut off"),
        (b"", "empty"),
    ]:
        with pytest.raises(DatasourceFailed, match=text):
            archived(datasource, keys, bad, tmp_path)
    with pytest.raises(DatasourceFailed, match="None of the 3 fields"):
        retrieved(datasource, query_of(keys))
    archived(datasource, keys, data_of(*good), tmp_path)
    assert split(retrieved(datasource, query_of(keys))) == split(data_of(*good))


def test_data_that_the_schema_has_no_place_for_are_refused(tmp_path: Path) -> None:
    schema = "[class, expver, stream=oper, date, time, domain? [type, levtype [step, param]]]"
    datasource = opened(empty(tmp_path, schema=schema))
    with pytest.raises(DatasourceFailed, match="schema has no place"):
        archived(datasource, MEMBER.keys(), message(MEMBER), tmp_path)


def test_archiving_again_replaces_the_field(tmp_path: Path) -> None:
    datasource = opened(empty(tmp_path))
    handle = eccodes.codes_new_from_message(message(MEMBER))
    eccodes.codes_set_values(handle, eccodes.codes_get_values(handle) + 1)
    newer = bytes(eccodes.codes_get_message(handle))
    eccodes.codes_release(handle)
    for data in (message(MEMBER), newer):
        archived(datasource, MEMBER.keys(), data, tmp_path)
    assert retrieved(datasource, query_of(MEMBER.keys())) == newer


# --- options


@pytest.mark.parametrize("schema", [SCHEMA, {"inline": SCHEMA}])
def test_a_schema_may_be_written_out(archive: dict[str, Any], schema: object) -> None:
    datasource = opened({**archive, "schema": schema})
    assert retrieved(datasource, query_of(SURFACE.keys())) == message(SURFACE)


def test_an_archive_with_a_schema_in_the_configuration_can_be_read_by_another_process(
    tmp_path: Path,
) -> None:
    config = empty(tmp_path)
    archived(opened(config), MEMBER.keys(), message(MEMBER), tmp_path)
    program = (
        "import sys, test_datasource_fdb as t\n"
        "from pathlib import Path\n"
        "data = t.retrieved(t.opened(t.empty(Path(sys.argv[1]))), t.query_of(t.MEMBER.keys()))\n"
        "assert data == t.message(t.MEMBER)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        timeout=60,
        check=True,
    )


def test_the_home_stands_for_the_tilde(archive: dict[str, Any], tmp_path: Path) -> None:
    shutil.copy(archive["schema"], tmp_path / "fdb-schema")
    config = {**archive, "schema": "~fdb/fdb-schema"}
    datasource = opened(config, fdb_home=str(tmp_path))
    assert retrieved(datasource, query_of(SURFACE.keys())) == message(SURFACE)


def test_roots_are_made_for_nobody_else_to_read(tmp_path: Path) -> None:
    with pytest.raises(DatasourceFailed, match="not in the archive"):
        retrieved(opened(empty(tmp_path)), query_of(SURFACE.keys()))
    assert (tmp_path / "deep" / "root").stat().st_mode & 0o777 == 0o700


def test_a_root_that_cannot_be_made_is_the_operators_to_hear_of(tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("a file in the way")
    with pytest.raises(ConfigurationError, match=r"spaces: the root .*deep/root"):
        retrieved(opened(empty(tmp_path)), query_of(SURFACE.keys()))


def test_config_is_another_name_for_fdb_config(archive: dict[str, Any]) -> None:
    section = FdbConfig.read({"type": "fdb", "config": archive}, where="x")
    assert section.fdb_config == archive
    assert list(section.unknown_keys("x")) == []
    assert "schema" not in repr(section)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "this key is missing"),
        ({}, "must be a mapping with FDB's own configuration"),
        ("type: local", "must be a mapping"),
        ({"schema": {"git": {"remote": "x"}}}, "must be without a schema from git"),
        ({"schema": {"inline": ""}}, "whose `schema` is"),
        ({"schema": ["a"]}, "whose `schema` is"),
        ({"schema": {"file": "a"}}, "whose `schema` is"),
        ({"spaces": {}}, "whose `spaces` is a list"),
        ({"spaces": [{"roots": [{}]}]}, "whose `spaces` is a list"),
        ({"type": "select", "fdbs": [{"spaces": ["x"]}]}, "whose `spaces` is a list"),
    ],
)
def test_a_wrong_configuration_is_explained_at_start(value: object, text: str) -> None:
    options = {"type": "fdb"} | ({} if value is None else {"fdb_config": value})
    with pytest.raises(ConfigurationError, match=r"^datasources\.x\.fdb_config: ") as caught:
        FdbConfig.read(options, where="datasources.x")
    assert text in str(caught.value)


def test_an_unknown_text_of_the_library_stays_inside() -> None:
    told = explained("Cannot open /secret/path.data", request_id="id5")
    assert "secret" not in told
    assert "id5" in told


def test_the_library_is_imported_only_when_an_fdb_is_opened() -> None:
    program = (
        "import sys, polytope_server.config.datasources\n"
        "assert not {'pyfdb', 'eccodes', 'numpy'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
