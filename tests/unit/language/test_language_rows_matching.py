"""The numbered rows 176 to 204 of the request language: which datasource takes a request, and as what.

Rows 229 to 242 are about release schedules, which belong to a datasource that this release does not
have; they are tested with it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from polytope_server.collection import Collection, build_collections
from polytope_server.config.model import CoercionSection, CollectionSection
from polytope_server.errors import ConfigurationError, InvalidRequest
from polytope_server.request import Verb
from polytope_server.user import User

NOW = datetime(2024, 6, 15, 14, 30, tzinfo=UTC)
USER = User(username="ann", realm="realm1", roles=frozenset({"default", "a"}))
FIELDS = SimpleNamespace(
    verbs=frozenset({Verb.RETRIEVE}), takes_feature=False, takes_free_text=False
)
FEATURES = SimpleNamespace(
    verbs=frozenset({Verb.RETRIEVE}), takes_feature=True, takes_free_text=False
)


def collection(**options: Any) -> Collection:
    kind = options.pop("type", "fields")
    section = CollectionSection.read(
        {"roles": ["default"], "datasources": [{"name": "src", "type": kind, **options}]},
        where="collections.c",
    )
    kinds = {"fields": FIELDS, "features": FEATURES}
    return build_collections({"c": section}, CoercionSection(), kinds.get)["c"]


def route(request: Mapping[str, Any], **options: Any) -> Mapping[str, Any]:
    routed = collection(**options).route(user=USER, verb=Verb.RETRIEVE, parsed=request, now=NOW)
    assert routed.datasource == "src"
    return routed.request


TAKEN: list[tuple[int, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (176, {"match": {"class": "od"}}, {"class": "od"}, {"class": "od"}),
    (177, {"match": {"class": ["od", "rd"]}}, {"class": ["od", "rd"]}, {"class": "od/rd"}),
    (178, {"match": {"class": ["od", "rd"]}}, {"class": "od/rd"}, {"class": "od/rd"}),
    (180, {"match": {"levelist": [1000, 500]}}, {"levelist": 1000}, {"levelist": "1000"}),
    (180, {"match": {"levelist": [1000, 500]}}, {"levelist": [1000]}, {"levelist": "1000"}),
    (180, {"match": {"levelist": [1000, 500]}}, {"levelist": "1000"}, {"levelist": "1000"}),
    (181, {"match": {"class": []}}, {"step": 0}, {"step": "0"}),
    (
        184,
        {"match": {"step": [0, 6, 12, 18, 24]}},
        {"step": "0/to/24/by/6"},
        {"step": "0/to/24/by/6"},
    ),
    (185, {"match": {"step": [0, 6, 12]}}, {"step": "0/6"}, {"step": "0/6"}),
    (186, {"match": {"step": "0/to/24"}}, {"step": "6"}, {"step": "6"}),
    (187, {"match": {"step": "0/6/12"}}, {"step": "6"}, {"step": "6"}),
    (188, {"match": {"time": ["00", "12"]}}, {"time": "12:00"}, {"time": "1200"}),
    (190, {"match": {"model": ["IFS-FESOM"]}}, {"model": "ifs-fesom"}, {"model": "ifs-fesom"}),
    (191, {"match": {"flag": [True]}}, {"flag": True}, {"flag": "true"}),
    (
        193,
        {"defaults": {"expver": 1, "step": [0, 6]}},
        {"class": "od"},
        {"expver": "0001", "step": "0/6", "class": "od"},
    ),
    (194, {"defaults": {"expver": 1}}, {"expver": "abcd"}, {"expver": "abcd"}),
    (
        196,
        {"patch": {"class": "rd", "foo": "bar"}},
        {"class": "od"},
        {"class": "rd", "foo": "bar"},
    ),
    (197, {"patch": {"step": [0, 6]}}, {"class": "od"}, {"class": "od", "step": "0/6"}),
    (198, {"patch": {"expver": 1}}, {"class": "od"}, {"class": "od", "expver": "0001"}),
    (198, {"patch": {"class": None}}, {"class": "od", "step": 0}, {"step": "0"}),
    (199, {}, {"param": ["2t", "msl"], "number": 1}, {"param": "2t/msl", "number": "1"}),
    (203, {"roles": ["a"]}, {"class": "od"}, {"class": "od"}),
    (203, {"roles": {"realm1": ["a"]}}, {"class": "od"}, {"class": "od"}),
    (203, {"roles": "a"}, {"class": "od"}, {"class": "od"}),
    (203, {"roles": []}, {"class": "od"}, {"class": "od"}),
]

REFUSED: list[tuple[int, dict[str, Any], dict[str, Any], str]] = [
    (179, {"match": {"class": ["od"]}}, {"class": "OD"}, "class: 'OD' is not allowed; .* od"),
    (181, {"match": {"class": []}}, {"class": "od"}, "the key class is not allowed"),
    (183, {"match": {"class": ["od"]}}, {"class": []}, "a list is not empty"),
    (184, {"match": {"step": [0, 6, 12]}}, {"step": "0/to/12"}, "step: a value of '0/to/12'"),
    (184, {"match": {"step": [0, 6, 12]}}, {"step": "0/to/18/by/6"}, "step: a value of"),
    (186, {"match": {"step": "0/to/24"}}, {"step": "25"}, "step: '25' is not allowed"),
    (186, {"match": {"step": "0/to/24"}}, {"step": "0/to/48"}, "step: a value of"),
    (187, {"match": {"step": "0/6/12"}}, {"step": "3"}, "step: '3' is not allowed"),
    (192, {"match": {"foo": ["x"]}}, {"foo": {"a": 1}}, "foo: an object is not allowed"),
    (192, {"match": {"foo": ["x"]}}, {"foo": [["y"]]}, "foo: 'y' is not allowed"),
    (200, {}, {"timespan": ["1h", 1]}, "timespan: 1: a timespan is"),
    (201, {}, {"feature": {"type": "x"}}, "the key feature is not allowed"),
    (201, {}, {"feature": {}}, "the key feature is not allowed"),
    (202, {"type": "features"}, {"feature": None}, "feature: a feature is an object"),
    (202, {"type": "features"}, {"class": "od"}, "the key feature is missing"),
    (204, {"roles": {"realm2": ["a"]}}, {"class": "od"}, "src: not authorised"),
]

WRONG: list[tuple[int, dict[str, Any], str]] = [
    (182, {"match": {"class": None}}, r"datasources\[0\].*match.*class"),
    (189, {"match": {"time": ["noon"]}}, r"datasources\[0\]\.match\.time: 'noon': a time is"),
    (189, {"match": {"number": [0]}}, r"match\.number: 0: an ensemble number is"),
    (189, {"match": {"param": None}}, "param"),
    (195, {"defaults": {"time": "noon"}}, r"datasources\[0\]\.defaults\.time: 'noon': a time is"),
    (198, {"patch": {"step": "x"}}, r"datasources\[0\]\.patch\.step: 'x': a step is"),
]


@pytest.mark.parametrize(
    ("options", "request_", "final"),
    [pytest.param(*row, id=f"row{n}-{index}") for index, (n, *row) in enumerate(TAKEN)],
)
def test_a_request_is_taken_in_its_canonical_form(
    options: dict[str, Any], request_: dict[str, Any], final: dict[str, Any]
) -> None:
    assert route(request_, **options) == final


@pytest.mark.parametrize(
    ("options", "request_", "said"),
    [pytest.param(*row, id=f"row{n}-{index}") for index, (n, *row) in enumerate(REFUSED)],
)
def test_a_request_is_refused_with_the_reason(
    options: dict[str, Any], request_: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        route(request_, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [pytest.param(*row, id=f"row{n}-{index}") for index, (n, *row) in enumerate(WRONG)],
)
def test_what_no_request_could_meet_is_found_at_the_start(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        collection(**options)


def test_row202_a_feature_is_handed_on_untouched() -> None:
    feature = {"type": "Timeseries", "Points": [[1e-05, 2]]}
    final = route({"feature": feature, "step": "06"}, type="features")
    assert final == {"feature": feature, "step": "6"}


@pytest.mark.parametrize(
    ("key", "full"),
    [
        *((key, "param") for key in ("par", "parame", "paramet", "paramete")),
        *((key, "levelist") for key in ("lev", "levell", "levelli", "levellis", "levelis")),
        *((key, "database") for key in ("d", "db", "dba", "dbas", "data")),
        ("levty", "levtype"),
        ("fiel", "fieldset"),
    ],
)
def test_a_key_cannot_be_shortened_past_its_rule(key: str, full: str) -> None:
    """MARS completes names of keys, those of aliases too."""
    with pytest.raises(InvalidRequest, match=f"{key} may be read as {full}; write it"):
        route({key: "1"}, match={full: []})
