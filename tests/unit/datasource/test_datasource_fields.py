"""Which fields a request names."""

import datetime as dt
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytope_server.datasource.fields import Fields, canonical, fields_of
from polytope_server.errors import DatasourceFailed


def expanded(key: str, value: object, *, max_fields: int = 1000) -> list[str]:
    return list(fields_of({key: value}, max_fields=max_fields).values[key])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("step", "0", "0"),
        ("step", "0/6/12", "0 6 12"),
        ("step", "0/to/24/by/6", "0 6 12 18 24"),
        ("step", "0/to/24", "0 12 24"),
        ("step", "0/TO/20/BY/6", "0 6 12 18"),
        ("step", "6/to/0/by/-3", "6 3 0"),
        ("step", "0/to/2h/by/30m", "0 30m 1 90m 2"),
        ("step", "0/to/1m/by/20s", "0 20s 40s 1m"),
        ("step", "0-24/24-48", "0-24 24-48"),
        ("step", "6/06/6h/360m", "6"),
        ("time", "0000/to/1800", "0000 0600 1200 1800"),
        ("time", "0000/to/1800/by/12", "0000 1200"),
        ("time", "0000/to/0100/by/30m", "0000 0030 0100"),
        ("time", "0000/to/0300/by/0130", "0000 0130 0300"),
        ("time", "0/00:00/0000/12", "0 12"),
        ("date", "20241230/to/20250102", "20241230 20241231 20250101 20250102"),
        ("date", "20250103/to/20250101/by/-2", "20250103 20250101"),
        ("number", "1/to/3", "1 2 3"),
        ("number", "1/to/50/by/20", "1 21 41"),
        ("levelist", "1000/to/500/by/-250", "1000 750 500"),
        ("levelist", "0/to/1/by/0.5", "0 0.5 1"),
        ("levelist", "500/500.0", "500"),
        ("levelist", 500, "500"),
        ("param", "167/167.128/2t", "167 2t"),
        ("param", "21.162/162021", "21.162"),
        ("expver", "1/0001", "1"),
        ("class", "od/OD/rd", "od rd"),
    ],
)
def test_values_are_written_out_each_once(key: str, value: object, expected: str) -> None:
    assert expanded(key, value) == expected.split()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("step", "24/to/0", "does not lead"),
        ("step", "0/to/24/by/0", "does not lead"),
        ("step", "0/to/24/by/-6", "does not lead"),
        ("step", "0/to/x", "not a step"),
        ("step", "0/to/24/by/", "'to'"),
        ("step", "all", "'all'"),
        ("step", "0/to/6/12", "'to'"),
        ("step", "0/to/24/by/6/by/3", "'to'"),
        ("step", "0//6", "no field has: ''"),
        ("step", "6\n,class=rd", "no field has"),
        ("param", "t,class=rd", "no field has"),
        ("param", 'x"', "no field has"),
        ("param", "x" * 65, "no field has"),
        ("number", "1/to/99999999999999999999", "not a number"),
        ("time", "0000/to/2500", "not a time"),
        ("date", "20250230/to/20250301", "not a date"),
        ("date", "20250101/to/20250102/by/0.5", "not a date"),
        ("grid", "1/1", "leave out grid"),
        ("area", "90/0/-90/0", "leave out area"),
        ("Step", "6", "not a key"),
        ("a b", "6", "not a key"),
        ("step", None, "must be a value"),
        ("step", True, "must be a value"),
        ("step", {"a": 1}, "must be a value"),
        ("target", "x", "names no key"),
    ],
)
def test_what_means_nothing_is_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(DatasourceFailed, match=message):
        expanded(key, value)


@pytest.mark.parametrize(
    "request_",
    [
        {"step": "0/to/1000000000000/by/1s"},
        {"number": "0/to/999999999999999999"},
        {"levelist": "0/to/999999999/by/0.000000001"},
        {"step": "/".join(str(n) for n in range(1001))},
        {"step": "0/to/99/by/1", "number": "1/to/11"},
    ],
)
def test_more_fields_than_allowed_are_refused_before_they_are_made(
    request_: dict[str, str],
) -> None:
    with pytest.raises(DatasourceFailed, match="more than 1000 fields"):
        fields_of(request_, max_fields=1000)


def test_keys_that_say_nothing_about_fields_are_left_out() -> None:
    fields = fields_of(
        {"param": "t", "target": "out.grib", "expect": "any", "grid": "av"}, max_fields=9
    )
    assert fields.selection() == {"param": ["t"]}


def test_the_fields_are_the_product_of_all_values() -> None:
    fields = fields_of({"param": "t/u", "step": "0/to/24", "date": "20250101"}, max_fields=6)
    assert len(fields) == 6
    assert fields.varying() == ["param", "step"]
    assert fields.first(keys=["step", "param"]) == "step 0, param t"


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 6), min_size=1))
def test_halving_again_and_again_yields_every_field_once(sizes: dict[str, int]) -> None:
    fields = Fields({key: [f"{key}{n}" for n in range(size)] for key, size in sizes.items()})
    parts, found = [fields], []
    while parts:
        part = parts.pop()
        if len(part) == 1:
            found.append(tuple(values[0] for values in part.values.values()))
        else:
            parts.extend(part.halves())
    assert sorted(found) == sorted(itertools.product(*fields.values.values()))


@given(st.dates(dt.date(1950, 1, 1), dt.date(2050, 1, 1)), st.integers(0, 400), st.integers(1, 40))
def test_a_range_of_dates_is_what_counting_days_gives(first: dt.date, days: int, by: int) -> None:
    last = first + dt.timedelta(days=days)
    wanted = [f"{first + dt.timedelta(days=n):%Y%m%d}" for n in range(0, days + 1, by)]
    assert expanded("date", f"{first:%Y%m%d}/to/{last:%Y%m%d}/by/{by}") == wanted


@given(
    st.sampled_from(["step", "time", "date", "param", "number", "levelist", "expver", "class"]),
    st.text(),
)
def test_any_text_has_a_canonical_form_that_is_its_own(key: str, text: str) -> None:
    once = canonical(key, text)
    assert canonical(key, once) == once


@given(
    st.dictionaries(
        st.text(max_size=8), st.one_of(st.none(), st.integers(), st.floats(), st.text())
    )
)
def test_any_request_is_either_expanded_or_refused(request_: dict[str, object]) -> None:
    try:
        fields = fields_of(request_, max_fields=100)
    except DatasourceFailed:
        return
    assert 1 <= len(fields) <= 100
    assert len(list(itertools.product(*fields.values.values()))) == len(fields)
