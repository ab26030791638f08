"""The numbered rows 1 to 50 of the request language: from what was posted to the canonical form."""

from datetime import UTC, datetime
from typing import Any

import pytest

from polytope_server.errors import InvalidRequest
from polytope_server.language.coercion import coerce
from polytope_server.language.options import CoercionOptions
from polytope_server.language.text import parse

NOW = datetime(2024, 6, 15, 14, 30, tzinfo=UTC)

ALIAS_BOMB = (
    "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b]\n"
)

ACCEPTED: list[tuple[int, Any, dict[str, Any]]] = [
    (1, "time: 10:00", {"time": "1000"}),
    (2, "time: 20:00", {"time": "2000"}),
    (3, "time: 5:00", {"time": "0500"}),
    (4, "time: 12:00", {"time": "1200"}),
    (5, "time: 06:00", {"time": "0600"}),
    (6, "time: '10:00'", {"time": "1000"}),
    (7, "time: 0600", {"time": "0600"}),
    (8, "time: 0000", {"time": "0000"}),
    (9, "time: 08", {"time": "0800"}),
    (10, "time: 00/12", {"time": ["0000", "1200"]}),
    (11, "expver: 0001", {"expver": "0001"}),
    (12, "expver: 0010", {"expver": "0010"}),
    (13, "expver: 0079", {"expver": "0079"}),
    (14, "expver: 0x10", {"expver": "0x10"}),
    (15, "expver: 12e3", {"expver": "12e3"}),
    (16, "date: 2024-01-05", {"date": "20240105"}),
    (17, "date: 2024-01-05/to/2024-01-10", {"date": "20240105/to/20240110"}),
    (20, "step: 010\nnumber: 010", {"step": "10", "number": "10"}),
    (22, "param: no", {"param": "no"}),
    (22, "param: on", {"param": "on"}),
    (23, "param: 167.128", {"param": "167.128"}),
    (24, "experiment: 1950\nmodel: 2.0", {"experiment": "1950", "model": "2.0"}),
    (25, "timespan: ~", {"timespan": "none"}),
    (26, "step: 0-24", {"step": "0-24"}),
    (27, "foo: 2024-01-05", {"foo": "2024-01-05"}),
    (29, "true: x", {"true": "x"}),
    (30, "feature: {points: [[1e-05, 2.0]]}", {"feature": {"points": [[1e-05, 2.0]]}}),
    (32, "<<: {a: 1}\nb: 2", {"a": "1", "b": "2"}),
    (38, "retrieve,class=od,param=2t", {"class": "od", "param": "2t"}),
    (43, {"date": "2024-01-05"}, {"date": "20240105"}),
    (44, {"timespan": None}, {"timespan": "none"}),
    (46, {"x": True}, {"x": "true"}),
    (47, {"x": "a\nb"}, {"x": "a\nb"}),
    (48, {"x": 'it\'s "q"'}, {"x": 'it\'s "q"'}),
    (49, {"feature": {"points": [[1e-05, 2.5]]}}, {"feature": {"points": [[1e-05, 2.5]]}}),
]

REFUSED: list[tuple[int, Any, str]] = [
    (18, "date: 2024-02-30", "date: a date is YYYYMMDD"),
    (19, "date: 20240105.5", "date: a date is YYYYMMDD"),
    (21, "step: 1:30", "step: a step is"),
    (28, "foo: !!set {a}", "tag"),
    (29, "1: x", "1' is no key"),
    (31, "a: 1\na: 2", "line 2, column 1.*'a' is given more than once"),
    (33, "", "empty"),
    (33, "null", "empty"),
    (33, "~", "empty"),
    (33, "# nothing", "empty"),
    (36, "[a, b]", "is a list"),
    (37, "[1, 2]", "is a list"),
    (39, "class: od\n---\nclass: rd\n", "line 2.*one document"),
    (40, "a: b: c", "not valid YAML .line 1, column 5"),
    (40, "a: {b", "not valid YAML .line"),
    (40, "a:\n\tb: c", "not valid YAML .line 2"),
    (41, "!!python/object/apply:os.system [ls]", "tag"),
    (42, ALIAS_BOMB, "line 1, column 4.*anchors"),
    (45, {"model": None}, "model: a value is text"),
    (50, None, "text, or an object"),
]


@pytest.mark.parametrize(
    ("posted", "canonical"), [pytest.param(p, c, id=f"row{n}-{p}") for n, p, c in ACCEPTED]
)
def test_what_was_posted_means_what_it_says(posted: Any, canonical: dict[str, Any]) -> None:
    parsed = parse(posted)
    assert not isinstance(parsed, str)
    assert coerce(parsed, CoercionOptions(), now=NOW) == canonical


@pytest.mark.parametrize(
    ("posted", "said"), [pytest.param(p, s, id=f"row{n}-{str(p)[:20]}") for n, p, s in REFUSED]
)
def test_what_cannot_be_meant_is_refused_with_a_reason(posted: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=f"(?s){said}"):
        coerce(parse(posted), CoercionOptions(), now=NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("posted", "text"),
    [
        pytest.param("hello_world", "hello_world", id="row34"),
        pytest.param("1000", "1000", id="row35"),
        pytest.param("'1000'\n", "1000", id="row35-quoted"),
    ],
)
def test_a_lone_value_is_free_text(posted: str, text: str) -> None:
    assert parse(posted) == text
