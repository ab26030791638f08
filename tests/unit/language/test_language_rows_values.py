"""The numbered rows 51 to 175 of the request language: coercion of single keys."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from polytope_server.errors import InvalidRequest
from polytope_server.language.coercion import coerce
from polytope_server.language.options import CoercionOptions

NOW = datetime(2024, 6, 15, 14, 30, tzinfo=UTC)
ZERO = CoercionOptions(number_allow_zero=True)

NAN, INFINITY = float("nan"), float("inf")


def day(back: int) -> str:
    """T minus so many days."""
    return f"{NOW - timedelta(days=back):%Y%m%d}"


ACCEPTED: list[tuple[int, str, list[Any], Any]] = [
    (51, "date", [20240105, "20240105", "2024-01-05"], "20240105"),
    (52, "date", ["2024-1-5"], "20240105"),
    (53, "date", [" 20240105 ", "20240105\n"], "20240105"),
    (54, "date", [0, "0", "-0"], day(0)),
    (55, "date", [-1, "-1", "-01"], day(1)),
    (71, "date", ["20240105/20240106"], ["20240105", "20240106"]),
    (72, "date", [[20240105, "2024-01-06"]], ["20240105", "20240106"]),
    (74, "date", ["0/20240105"], [day(0), "20240105"]),
    (76, "date", ["20240101/to/20240105"], "20240101/to/20240105"),
    (77, "date", ["2024-01-01/to/2024-01-05/by/2"], "20240101/to/20240105/by/2"),
    (78, "date", ["-5/to/-1"], f"{day(5)}/to/{day(1)}"),
    (79, "date", ["20240105/to/20240101/by/-1"], "20240105/to/20240101/by/-1"),
    (83, "date", ["20240101/TO/20240105", "20240101/To/20240105"], "20240101/to/20240105"),
    (84, "date", ["20240101 /to/ 20240105"], "20240101/to/20240105"),
    (87, "date", [["20240101/20240102", 20240103]], ["20240101", "20240102", "20240103"]),
    (88, "time", [0], "0000"),
    (89, "time", [6, "6", "06", "0600", 600, "6:0"], "0600"),
    (90, "time", [12, "12:00", 1200], "1200"),
    (101, "time", ["0/6/12/18", [0, 6, 12, 18]], ["0000", "0600", "1200", "1800"]),
    (103, "time", ["0/to/18/by/6"], "0000/to/1800/by/6"),
    (104, "time", ["18/to/0/by/-6"], "1800/to/0000/by/-6"),
    (105, "step", [0, "0"], "0"),
    (105, "step", [6], "6"),
    (106, "step", ["06"], "6"),
    (111, "step", ["1h"], "1h"),
    (111, "step", ["30m"], "30m"),
    (111, "step", ["1h30m"], "1h30m"),
    (111, "step", ["2d"], "2d"),
    (111, "step", ["30s"], "30s"),
    (112, "step", ["0-24"], "0-24"),
    (112, "step", ["1h-3h"], "1h-3h"),
    (112, "step", ["1h30m-32"], "1h30m-32"),
    (115, "step", ["0/6/12", [0, 6, 12]], ["0", "6", "12"]),
    (118, "step", ["0/to/24"], "0/to/24"),
    (118, "step", ["0/to/24/by/6"], "0/to/24/by/6"),
    (120, "step", ["0/TO/24"], "0/to/24"),
    (121, "step", ["6\n"], "6"),
    (124, "step", [[[0, 6], 12]], ["0", "6", "12"]),
    (126, "number", [1, "1"], "1"),
    (127, "number", ["01"], "1"),
    (129, "number", ["1/2/3", [1, 2, 3]], ["1", "2", "3"]),
    (130, "number", ["1/to/50"], "1/to/50"),
    (130, "number", ["1/to/50/by/5"], "1/to/50/by/5"),
    (136, "number", [["1/2"]], ["1", "2"]),
    (137, "param", [167, "167"], "167"),
    (137, "param", ["167.128"], "167.128"),
    (137, "param", ["2t"], "2t"),
    (138, "param", ["2T"], "2T"),
    (139, "param", ["2t/msl"], ["2t", "msl"]),
    (139, "param", [["2t", 167]], ["2t", "167"]),
    (147, "expver", [1, "1", "001", "0001", "00001"], "0001"),
    (148, "expver", [0], "0000"),
    (149, "expver", ["abcd"], "abcd"),
    (149, "expver", ["ABCD"], "ABCD"),
    (149, "expver", ["12ab"], "12ab"),
    (152, "expver", ["1/2"], ["0001", "0002"]),
    (157, "model", ["IFS-FESOM"], "ifs-fesom"),
    (157, "activity", [["CMIP6", "HighResMIP"]], ["cmip6", "highresmip"]),
    (158, "model", ["ICON/IFS-NEMO"], ["icon", "ifs-nemo"]),
    (159, "model", [1], "1"),
    (159, "experiment", [2020], "2020"),
    (161, "timespan", [None], "none"),
    (161, "timespan", [["1h", None]], ["1h", "none"]),
    (163, "class", ["od"], "od"),
    (163, "class", ["OD"], "OD"),
    (164, "class", ["od/rd"], ["od", "rd"]),
    (167, "levelist", [[1000, 500]], ["1000", "500"]),
    (168, "levelist", [1000], "1000"),
    (169, "levelist", ["1000/500"], ["1000", "500"]),
    (170, "grid", [[0.25, 0.25], "0.25/0.25"], ["0.25", "0.25"]),
    (170, "grid", [[1, 1]], ["1", "1"]),
    (170, "area", [[90, 0, -90, 0], "90/0/-90/0"], ["90", "0", "-90", "0"]),
    (172, "foo", [{"a": {"b": [1, 2]}}], {"a": {"b": [1, 2]}}),
    (172, "foo", [1.5], "1.5"),
]

DATE, TIME, STEP = "a date is", "a time is", "a step is"
NUMBER, EXPVER, TWICE = "an ensemble number is", "an experiment version is", "more than once"

REFUSED: list[tuple[int, str, list[Any], str]] = [
    (56, "date", [1, "+1"], DATE),
    (57, "date", [20240230, "20240230", "2024-02-30"], DATE),
    (58, "date", [202411, "2024111"], DATE),
    (59, "date", ["202401"], DATE),
    (60, "date", [20240105.0], DATE),
    (61, "date", [-1.5, -0.5], DATE),
    (62, "date", [1.0, NAN], DATE),
    (63, "date", [INFINITY], DATE),
    (64, "date", [-1000000, "-9999999999"], DATE),
    (65, "date", [True], DATE),
    (66, "date", [False], DATE),
    (67, "date", [None, {}, "", "jan", "2024-005", "2024-01-05T00:00:00"], DATE),
    (68, "date", [[]], "a list is not empty"),
    (69, "date", ["2024_01_05"], DATE),
    (70, "date", ["２０２４０１０５"], DATE),
    (73, "date", ["20240105/2024-01-05", "-1/-1"], TWICE),
    (75, "date", [[20240105, "bad"]], f"'bad': {DATE}"),
    (79, "date", ["20240105/to/20240101", "20240105/to/20240101/by/1"], "range"),
    (80, "date", ["20240101/to/20240105/by/abc", "20240101/to/20240105/by/0"], "'by'"),
    (81, "date", ["20240101/to/"], "before and after"),
    (82, "date", ["/to/20240105"], "before and after"),
    (85, "date", ["20240101/20240102/to/20240105"], "a/to/b"),
    (85, "date", ["20240101/to/20240103/20240105"], "a/to/b"),
    (86, "date", [["20240101/to/20240103", 20240110]], "alone"),
    (91, "time", ["600", "006"], TIME),
    (92, "time", ["12:30", 1230, 720, 2359], "minutes 00"),
    (93, "time", [24, "24", 2400, "24:00"], TIME),
    (94, "time", [60, 99, "0060"], TIME),
    (95, "time", [-1], "negative"),
    (96, "time", ["-1", "", "noon", "00:00:00", "1e1"], TIME),
    (97, "time", [12.0, None], TIME),
    (98, "time", [True], TIME),
    (99, "time", ["²"], TIME),
    (100, "time", ["٠٦"], TIME),
    (102, "time", [["00", "0"], "6/06:00"], TWICE),
    (104, "time", ["18/to/0/by/6", "18/to/0", "0/to/18/by/600"], "range"),
    (107, "step", [-1], "not negative"),
    (108, "step", ["-1", "", "all", "6 "], STEP),
    (109, "step", [1.0, None], STEP),
    (110, "step", [True], STEP),
    (113, "step", ["24-0"], "smaller one first"),
    (114, "step", ["3m20d", "1h-3s30m", "1h2", "1-2-3"], STEP),
    (116, "step", [[0, "0"], "0/6/6"], TWICE),
    (117, "step", ["6/6h", "60m/1", "1d/24"], TWICE),
    (119, "step", ["24/to/0", "0/to/24/by/-6", "0/to/24/by/0"], "range"),
    (119, "step", ["0/to/24/by/", "0/to/24/by/6/by/3"], "range"),
    (120, "step", ["0/to/6/to/12", "0/by/6", "0/to/24/6"], "range"),
    (122, "step", ["٦"], STEP),
    (123, "step", [10**30, "1" * 30], STEP),
    (123, "step", ["0/to/999999999"], "100000 values"),
    (125, "step", [[[0, 6], [0, 6]]], TWICE),
    (128, "number", [0, "0", -1, "0/to/50"], NUMBER),
    (131, "number", ["all", " 1", "1,2"], NUMBER),
    (131, "number", ["1/to/5/to/9"], "range"),
    (132, "number", [1.0, None], NUMBER),
    (133, "number", [True, False], NUMBER),
    (134, "number", ["²"], NUMBER),
    (135, "number", ["1" * 5000, 10**5000], NUMBER),
    (140, "param", ["2t/2t"], TWICE),
    (140, "param", ["/"], "empty"),
    (141, "param", ["2t//msl"], "empty"),
    (142, "param", ["167/to/169"], "no range"),
    (142, "param", [["167", "to", "169"]], "word of ranges"),
    (143, "param", ["", -1, "-1"], "a parameter is"),
    (144, "param", [167.128, None, {}], "a parameter is"),
    (145, "param", [True], "a parameter is"),
    (146, "param", ["tp,class=rd"], "a parameter is"),
    (150, "expver", ["abc", "toolong", ""], EXPVER),
    (150, "expver", ["a/b"], EXPVER),
    (151, "expver", [10000, -1, "10000"], EXPVER),
    (153, "expver", [[1, "0001"]], TWICE),
    (154, "expver", [1.0, None], EXPVER),
    (155, "expver", [True, "²"], EXPVER),
    (156, "expver", ["    ", "-001", "àbcd"], EXPVER),
    (159, "model", [None], "a value is"),
    (159, "activity", [True], "a value is"),
    (160, "class", [[], [[]]], "a list is not empty"),
    (160, "foo", [[]], "a list is not empty"),
    (162, "timespan", [1, {"a": 1}], "a timespan is"),
    (165, "class", [["od", "od"]], TWICE),
    (166, "class", [None, True], "a value is"),
    (169, "levelist", ["1000/1000"], TWICE),
    (171, "levelist", [[1, 1.0, "1"]], TWICE),
    (173, "foo", [[{"a": 1}, {"a": 1}]], "a value is"),
    (200, "timespan", [["1h", 1]], "a timespan is"),
]


@pytest.mark.parametrize(
    ("key", "value", "canonical"),
    [
        pytest.param(key, value, canonical, id=f"row{row}-{key}-{value!r}")
        for row, key, values, canonical in ACCEPTED
        for value in values
    ],
)
def test_a_good_value_has_one_canonical_form(key: str, value: Any, canonical: Any) -> None:
    once = coerce({key: value}, CoercionOptions(), now=NOW)
    assert once == {key: canonical}
    assert coerce(once, CoercionOptions(), now=NOW) == once


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        pytest.param(key, value, said, id=f"row{row}-{key}-{str(type(value))[8:-2]}-{index}")
        for row, key, values, said in REFUSED
        for index, value in enumerate(values)
    ],
)
def test_a_bad_value_is_refused_with_what_would_be_right(key: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        coerce({key: value}, CoercionOptions(), now=NOW)
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(f"  {key}: ")
    assert said in lines[1]


@pytest.mark.parametrize("value", [0, "0"], ids=["row128-integer", "row128-text"])
def test_ensemble_number_zero_is_the_operators_choice(value: Any) -> None:
    assert coerce({"number": value}, ZERO, now=NOW) == {"number": "0"}
    assert coerce({"number": "0/to/50"}, ZERO, now=NOW) == {"number": "0/to/50"}


def test_row174_several_bad_keys_make_one_message() -> None:
    request = {"date": "bad", "class": "od", "step": -1, "number": 0}
    with pytest.raises(InvalidRequest) as error:
        coerce(request, CoercionOptions(), now=NOW)
    header, *lines = str(error.value).splitlines()
    assert header == "The request has values that cannot be used:"
    assert [line.split(":")[0].strip() for line in lines] == ["date", "step", "number"]
    assert "(given: 'bad')" in lines[0]


def test_row175_a_long_list_takes_no_time() -> None:
    begun = time.monotonic()
    steps = coerce({"step": list(range(20_000))}, CoercionOptions(), now=NOW)["step"]
    assert len(steps) == 20_000
    assert time.monotonic() - begun < 2


def test_a_message_stays_short_whatever_was_given() -> None:
    for value in ("x," * 100_000, ["bad,"] * 50_000, 10**5000, [[["bad"]]] * 1000):
        with pytest.raises(InvalidRequest) as error:
            coerce({"step": value}, CoercionOptions(), now=NOW)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize("value", ["od/rd", ["od", "rd"]])
def test_allow_lists_means_what_it_says_in_either_spelling(value: Any) -> None:
    options = CoercionOptions(allow_lists=frozenset({"step"}))
    with pytest.raises(InvalidRequest, match="class: class takes one value only"):
        coerce({"class": value}, options, now=NOW)
    assert coerce({"class": ["od"], "step": "0/6"}, options, now=NOW) == {
        "class": "od",
        "step": ["0", "6"],
    }


def test_allow_ranges_means_what_it_says() -> None:
    options = CoercionOptions(allow_ranges=frozenset({"param"}))
    assert coerce({"param": "167/to/169"}, options, now=NOW) == {"param": "167/to/169"}
    with pytest.raises(InvalidRequest, match="step takes no range"):
        coerce({"step": "0/to/24"}, options, now=NOW)
    with pytest.raises(InvalidRequest, match="from a number to a number"):
        coerce({"param": "2t/to/msl"}, options, now=NOW)


def test_levels_take_ranges_as_archives_do() -> None:
    for value in ("1/to/137", "1/TO/137", "01/to/137.0"):
        assert coerce({"levelist": value}, CoercionOptions(), now=NOW) == {"levelist": "1/to/137"}
    with pytest.raises(InvalidRequest, match="needs a 'by'"):
        coerce({"levelist": "0.5/to/3"}, CoercionOptions(), now=NOW)


def test_paths_and_addresses_keep_their_slashes() -> None:
    request = {"target": "/tmp/a/to/b", "foo": "https://x.example/a"}
    assert coerce(request, CoercionOptions(), now=NOW) == request
