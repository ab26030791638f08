"""What holds for every request: it is understood or refused, in one way only, whatever its spelling."""

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from polytope_server.collection import Collection, build_collections
from polytope_server.config.model import CoercionSection, CollectionSection
from polytope_server.errors import InvalidRequest, NotSupported
from polytope_server.language import rules
from polytope_server.language.coercion import coerce, joined
from polytope_server.language.options import CoercionOptions
from polytope_server.language.text import Parsed, parse
from polytope_server.language.values import READERS
from polytope_server.request import Verb
from polytope_server.user import User

NOW = datetime(2024, 6, 15, 14, 30, tzinfo=UTC)
OPTIONS = CoercionOptions()
USER = User(username="ann", realm="r")

many = settings(max_examples=100, deadline=None)

KEYS = st.sampled_from([*READERS, "feature", "foo", "grid", "target", "Date", "level", "<<", "a b"])
LISTED = """
    0 1 6 06 6h 0-24 -1 to by TO all od rd 2t 0001 1000 20240105 2024-01-05 12:00 ~ null 1e-05 no
    2t/msl 0/to/24 0/to/24/by/6 -5/to/-1 1/to/5 a//b ,class=rd { [ ' \" # & * ! ² ٦ １
"""
WORDS = st.sampled_from(LISTED.split())
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=8)
    | st.lists(WORDS, min_size=2, max_size=5).map("/".join)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
REQUESTS = st.dictionaries(KEYS, VALUES, max_size=5)
TEXTS = (
    st.text(max_size=80)
    | st.lists(WORDS | KEYS | st.sampled_from([": ", "\n", ", ", "=", "- ", "/"])).map("".join)
    | REQUESTS.map(lambda request: json.dumps(request, allow_nan=True))
    | REQUESTS.map(lambda request: yaml.safe_dump(request, allow_unicode=True))
)


def parsed_or_none(value: object) -> Parsed | None:
    try:
        return parse(value)
    except InvalidRequest:
        return None


def coerced_or_none(request: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return coerce(request, OPTIONS, now=NOW)
    except InvalidRequest:
        return None


# --- it is understood or refused, and nothing else


@given(TEXTS | VALUES | st.binary(max_size=5))
@many
def test_reading_ends_in_plain_values_or_in_a_refusal(value: object) -> None:
    parsed = parsed_or_none(value)
    if isinstance(parsed, dict):
        json.dumps(parsed, allow_nan=False).encode()
        assert all(key == key.lower() and key.isidentifier() for key in parsed)
        assert parse(parsed) == parsed
    elif isinstance(parsed, str):
        assert parsed.strip() == parsed != ""


@given(REQUESTS)
@many
def test_coercion_ends_in_a_canonical_form_or_in_a_refusal(request: dict[str, Any]) -> None:
    once = coerced_or_none(request)
    if once is None:
        return
    later = NOW + timedelta(days=400)
    assert coerce(once, OPTIONS, now=later) == once
    for value in once.values():
        if isinstance(value, list):
            assert len(value) > 1
        for text in value if isinstance(value, list) else [value]:
            assert isinstance(text, str | dict)


@pytest.mark.parametrize("key", sorted(READERS))
@given(value=VALUES | WORDS | st.lists(WORDS, min_size=2, max_size=3).map("/".join))
@settings(max_examples=60, deadline=None)
def test_no_value_of_a_known_key_can_begin_another_key(key: str, value: Any) -> None:
    once = coerced_or_none({key: value})
    if once is None:
        return
    text = joined(once)[key]
    assert isinstance(text, str)
    assert text
    assert text.isascii()
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.~+:/-")
    assert all(text.split("/"))


# --- one meaning, whatever the spelling


def spellings_of(key: str) -> st.SearchStrategy[Sequence[Any]]:
    """Spellings that all mean the same one value of a key."""
    match key:
        case "date":
            days = st.dates(date(1900, 1, 1), date(2100, 1, 1))
            return days.map(
                lambda d: (
                    f"{d:%Y%m%d}",
                    int(f"{d:%Y%m%d}"),
                    f"{d:%Y-%m-%d}",
                    f"{d.year}-{d.month}-{d.day}",
                    f" {d:%Y%m%d}\n",
                    *([(d - NOW.date()).days] if d <= NOW.date() else []),
                )
            )
        case "time":
            return st.integers(0, 23).map(
                lambda h: (h, str(h), f"{h:02}", f"{h:02}00", f"{h:02}:00", f"{h}:0", f" {h}")
            )
        case "step":
            return st.integers(0, 999).map(
                lambda n: (n, str(n), f"0{n}", f"{n}\n", f"{n}h", f"{n * 60}m", f"0{n}h")
            )
        case "number":
            return st.integers(1, 999).map(lambda n: (n, str(n), f"0{n}", f"{n}\n"))
        case "expver":
            return st.integers(0, 9999).map(lambda n: (n, str(n), f"{n:04}", f"0{n:04}"))
        case "levelist":
            return st.integers(1, 1000).map(
                lambda n: (n, float(n), str(n), f"{n}.0", f"0{n}", f" {n}")
            )
        case "model":
            return st.sampled_from(["ifs", "icon", "ifs-nemo"]).map(
                lambda name: (name, name.upper(), name.title(), f" {name}")
            )
    raise AssertionError(key)


SPELT = ("date", "time", "step", "number", "expver", "levelist", "model")


def rule_of(key: str, value: Any) -> rules.Rule:
    return rules.read(key, value, OPTIONS, now=NOW, where="match")


@pytest.mark.parametrize("key", SPELT)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_all_spellings_of_a_value_are_the_same_to_coercion_and_rules(
    key: str, data: st.DataObject
) -> None:
    spellings = data.draw(spellings_of(key))
    one, other = (data.draw(st.sampled_from(spellings)) for _ in range(2))
    alone = coerce({key: other}, OPTIONS, now=NOW)
    assert coerce({key: [other]}, OPTIONS, now=NOW) == alone
    # the same twice, in whatever spelling, is the same twice
    with pytest.raises(InvalidRequest, match="more than once"):
        coerce({key: [one, other]}, OPTIONS, now=NOW)
    if key != "date":
        assert rule_of(key, one).refusal(alone, NOW) is None
    elif isinstance(one, str) and one.strip() == one and len(one) >= 8 and one.count("-") != 1:
        assume("-" not in one or len(one) == 10)
        assert rule_of(key, one).refusal(alone, NOW) is None


OFFERED, OTHER = [0, 6, 12], [1, 3, 18, 24]


def written(key: str, values: list[int]) -> st.SearchStrategy[Any]:
    """Some ways to write several values of a key."""
    one = st.sampled_from(
        {
            "step": [str, int, "0{}".format, "{}h".format, "{}\n".format],
            "time": [str, int, "{:02}".format, "{:02}00".format, "{:02}:00".format],
            "number": [str, int, "0{}".format],
            "levelist": [str, int, float, "{}.0".format, "0{}".format],
        }[key]
    )
    items = st.tuples(*(one.map(lambda spell, v=value: spell(v)) for value in values))
    return (
        items.map(list)
        | items.map(lambda texts: [list(texts)])
        | items.map(lambda texts: "/".join(map(str, texts)))
        | items.map(lambda texts: [str(texts[0]), "/".join(map(str, texts[1:]))])
    )


@pytest.mark.parametrize("key", ["step", "time", "number", "levelist"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_a_rule_refuses_passes_in_no_list(key: str, data: st.DataObject) -> None:
    options = CoercionOptions(number_allow_zero=True)
    rule = rules.read(key, OFFERED, options, now=NOW, where="match")
    values = data.draw(st.lists(st.sampled_from(OFFERED + OTHER), min_size=2, unique=True))
    try:
        request = coerce({key: data.draw(written(key, values))}, options, now=NOW)
    except InvalidRequest:
        return
    assert (rule.refusal(request, NOW) is None) == (set(values) <= set(OFFERED))


@pytest.mark.parametrize("key", ["step", "time", "number", "levelist", "foo"])
@given(
    first=st.integers(0, 23),
    last=st.integers(0, 23),
    by=st.none() | st.integers(-12, 12).filter(bool),
    offered=st.sets(st.integers(0, 23), min_size=1),
    words=st.sampled_from([("to", "by"), ("TO", "By")]),
)
@settings(max_examples=100, deadline=None)
def test_a_range_passes_exactly_if_all_that_it_may_mean_does(
    key: str,
    first: int,
    last: int,
    by: int | None,
    offered: set[int],
    words: tuple[str, str],
) -> None:
    options = CoercionOptions(number_allow_zero=True)
    text = f"{first}/{words[0]}/{last}" + ("" if by is None else f"/{words[1]}/{by}")
    try:
        request = coerce({key: text}, options, now=NOW)
    except InvalidRequest:
        assert (last - first) * (by or 1) < 0
        return
    stride = by or 1
    meant = set(range(first, last + (1 if stride > 0 else -1), stride))
    listed = rules.read(key, sorted(offered), options, now=NOW, where="match")
    assert (listed.refusal(request, NOW) is None) == (meant <= offered)
    low, high = min(offered), max(offered)
    spanned = rules.read(key, f"{low}/to/{high}", options, now=NOW, where="match")
    refused = spanned.refusal(request, NOW)
    if min(first, last) >= low and max(first, last) <= high:
        assert refused is None
    else:
        assert (refused is None) == all(low <= value <= high for value in meant)


@given(
    first=st.integers(0, 60),
    days=st.integers(0, 30),
    by=st.none() | st.integers(1, 9),
    low=st.integers(0, 60),
    high=st.integers(0, 60),
)
@many
def test_a_range_of_dates_passes_exactly_if_every_day_does(
    first: int, days: int, by: int | None, low: int, high: int
) -> None:
    ends = [NOW.date() - timedelta(days=n) for n in (first + days, first)]
    text = f"{ends[0]}/to/{ends[1]}" + ("" if by is None else f"/by/{by}")
    request = coerce({"date": text}, OPTIONS, now=NOW)
    each = [ends[0] + timedelta(days=n) for n in range(0, days + 1, by or 1)]
    for rule in (f"-{low}/to/-{high}", f">{low}d", f"<{low}d"):
        read = rule_of("date", rule)
        alone = [
            read.refusal(coerce({"date": str(one)}, OPTIONS, now=NOW), NOW) is None for one in each
        ]
        assert (read.refusal(request, NOW) is None) == all(alone)


# --- rules fail closed


@given(value=VALUES, rule=st.lists(st.sampled_from(["od", "rd", "0-24"]), min_size=1))
@many
def test_a_rule_only_lets_its_own_values_through(value: Any, rule: list[str]) -> None:
    for key in ("class", "foo"):
        request = coerced_or_none({key: value})
        if request is None or rule_of(key, rule).refusal(request, NOW) is not None:
            continue
        assert set(str(joined(request)[key]).split("/")) <= set(rule)


ECHO = SimpleNamespace(verbs=frozenset(Verb), takes_feature=False, takes_free_text=True)
FIELDS = SimpleNamespace(verbs=frozenset(Verb), takes_feature=False, takes_free_text=False)
FEATURES = SimpleNamespace(verbs=frozenset(Verb), takes_feature=True, takes_free_text=False)


def collection(kind: str) -> Collection:
    source = {"name": "s", "type": kind, "defaults": {"date": -1}, "patch": {"number": None}}
    section = CollectionSection.read({"roles": ["default"], "datasources": [source]}, where="c")
    kinds = {"echo": ECHO, "fields": FIELDS, "features": FEATURES}
    return build_collections({"c": section}, CoercionSection(), kinds.get)["c"]


COLLECTIONS = {kind: collection(kind) for kind in ("echo", "fields", "features")}


@given(REQUESTS | TEXTS, st.sampled_from(sorted(COLLECTIONS)), st.sampled_from(sorted(Verb)))
@many
def test_a_request_is_routed_or_refused_and_nothing_else(
    posted: object, kind: str, verb: Verb
) -> None:
    parsed = parsed_or_none(posted)
    assume(parsed is not None)
    assert parsed is not None
    refusal = ""
    try:
        routed = COLLECTIONS[kind].route(user=USER, verb=verb, parsed=parsed, now=NOW)
    except (InvalidRequest, NotSupported) as exc:
        refusal = str(exc)
    if refusal:
        assert len(refusal) < 5000
        return
    json.dumps(routed.request).encode()
    if isinstance(parsed, str):
        assert (kind, routed.request) == ("echo", {})
        return
    assert "number" not in routed.request
    for key, value in routed.request.items():
        if kind == "fields" or (kind == "features" and key in READERS):
            assert isinstance(value, str)
            assert not set(value) & set(",='\"\n\r#!\\")
