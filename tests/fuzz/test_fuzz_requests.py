"""Any bytes as the body of a submission: understood or refused, soon, and the same when read again."""

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from damage import damaged
from effort import bounded, tries
from hypothesis import given, target
from hypothesis import strategies as st

from polytope_server.collection import (
    Collection,
    DatasourceRule,
    Routed,
    Traits,
    build_collections,
    datasource_section,
)
from polytope_server.config.model import CoercionSection, CollectionSection
from polytope_server.errors import InvalidRequest, NotSupported
from polytope_server.frontend.answers import json_bytes
from polytope_server.frontend.submission import Submission
from polytope_server.language.coercion import coerce, joined
from polytope_server.language.text import MAX_TEXT, parse
from polytope_server.language.values import READERS
from polytope_server.request import Request, Status, Verb
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.user import User

NOW = datetime(2024, 6, 15, 14, 30, tzinfo=UTC)
USER = User(username="ann", realm="r", roles=frozenset({"default", "staff"}))
SECONDS = 4.0
"""Of this thread, for the largest body that a frontend takes; some hundred times what is usual."""
MIB = 300
LONGEST_MESSAGE = 200_000

COLLECTIONS_YAML = """
operational:
  roles: {r: [default]}
  datasources:
    - type: fdb
      name: recent
      match: {class: od, stream: [oper, enfo], type: [an, fc, pf], date: "<30d", step: 0/to/240}
      defaults: {expver: 1, domain: g}
    - type: fdb
      name: old
      match: {class: [od, rd], date: ">30d", time: ["00", "12"], feature: []}
      defaults: {date: -40, param: 2t/msl}
    - type: fdb
      name: staff
      roles: {r: [staff]}
      match: {class: ea, date: 19400101/to/20231231, levelist: [1000, 850.5, 500], number: []}
climate:
  roles: default
  datasources:
    - type: polytope
      match: {class: d1, dataset: [climate-dt, extremes-dt], model: [IFS-FESOM, icon], georef: []}
    - type: fdb
      match: {class: d1}
      patch: {expver: 1, database: null, stream: clte}
anything:
  roles: default
  datasources: [{type: fdb, name: fields}, {type: polytope, name: points}]
text:
  roles: default
  datasources: [{type: dummy, match: {class: od}}, {type: echo}]
"""
KEYS = [*READERS, "feature", "target", "grid", "area", "database", "levtyp", "parameter", "foo"]
VALID: list[Any] = [
    {"class": "od", "stream": "oper", "type": "fc", "date": -1, "time": "00", "step": "0/to/24/by/6",
     "levtype": "sfc", "param": "2t/msl"},
    {"class": "ea", "date": "1979-01-01/to/1979-01-05", "levelist": ["1000", 850.5], "param": [130, 131]},
    {"class": "d1", "dataset": "climate-dt", "model": "ICON", "date": 20240601, "param": "167",
     "feature": {"type": "timeseries", "points": [[-9.1, 38.7]], "axes": "step"}},
    "class: od\nstream: enfo\ntype: pf\ndate: -2\ntime: '12:00'\nnumber: 1/to/50\nstep: [0, 6, 12h]\n",
    "retrieve, class = od, date = -40, time = 0/12, param = 2t/msl, # a comment\n target = \"a/b.grib\"",
    "class=d1,expver=0001,database=x,step=0-24/24-48,area=10/-10/-10/10",
    "any words at all",
]  # fmt: skip
LISTED_WORDS = """
    0 1 -1 6 06 0-24 30m 1h30m to by TO all od rd d1 2t msl 167.128 0001 1000 850.5 19790101 2024-06-01
    12:00 1e5 1e999 ~ null true no 0/to/24/by/6 -5/to/-1 1/to/99999999 0/to/100000/by/0.00001 a//b / //
    , = : - [ ] { } ' " # & * ! << ? | > % @ ` \\ \\ud800 \\u0000 \u00b2 \u0666 \ufeff  \x00
    \ud800 !!python/name:os.system
"""
WORDS = [*LISTED_WORDS.split(), "\u2028", "\x85", "\u3000", "a b"]
PIECES = [word.encode("utf-8", "surrogatepass") for word in WORDS]


def traits_of(kind: str) -> Traits | None:
    """As those of features will be, and otherwise the real ones."""
    if kind == "polytope":
        verbs = frozenset({Verb.RETRIEVE})
        return SimpleNamespace(verbs=verbs, takes_feature=True, takes_free_text=False)
    return datasource_section(kind)


def collections() -> Mapping[str, Collection]:
    sections = {
        name: CollectionSection.read(value, where=name)
        for name, value in yaml.safe_load(COLLECTIONS_YAML).items()
    }
    return build_collections(sections, CoercionSection(), traits_of)


COLLECTIONS = collections()
NAMES = st.sampled_from(sorted(COLLECTIONS))


# --- what is sent

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS)
    | st.text(max_size=8) | st.lists(st.sampled_from(WORDS), min_size=2, max_size=5).map("/".join)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
VALID_VALUES = st.sampled_from(
    [
        (key, value)
        for request in VALID
        if isinstance(request, dict)
        for key, value in request.items()
    ]
)
ODD_NUMBERS = st.sampled_from([float("inf"), float("-inf"), float("nan"), -0.0, 10**18, 10**4000])
FEATURES = st.dictionaries(
    st.sampled_from(["type", "points", "a", "\ud800"]),
    VALUES | ODD_NUMBERS | st.lists(ODD_NUMBERS, max_size=2),
    max_size=3,
)
KEYS_AND_VALUES = (
    VALID_VALUES
    | st.tuples(st.sampled_from(KEYS), VALUES)
    | st.tuples(st.just("feature"), FEATURES)
)
CHANGES = st.lists(KEYS_AND_VALUES, max_size=2).map(dict)
OBJECTS = FEATURES.map(lambda feature: {"class": "od", "feature": feature}) | st.builds(
    lambda request, changes: request | changes,
    st.sampled_from([request for request in VALID if isinstance(request, dict)]),
    CHANGES,
) | st.lists(
    KEYS_AND_VALUES, min_size=1, max_size=8
).map(dict)  # fmt: skip


def mars(items: list[tuple[str, str]], comma: str, is_verbose: bool) -> str:
    head = "retrieve," if is_verbose else ""
    return head + comma.join(f"{key}={value}" for key, value in items)


MARS = st.builds(
    mars,
    st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(WORDS)), min_size=1, max_size=6),
    st.sampled_from([",", " ,\n  ", ", # well\n"]),
    st.booleans(),
)
FRAGMENTS = st.lists(
    st.sampled_from([*WORDS, *KEYS, "\n", "\n  ", "- ", ": ", ", ", " "]), max_size=30
)
TEXTS = (
    FRAGMENTS.map("".join)
    | MARS
    | OBJECTS.map(lambda request: yaml.safe_dump(request, allow_unicode=True))
    | OBJECTS.map(lambda request: yaml.safe_dump(request, default_flow_style=True, width=20))
    | st.sampled_from([request for request in VALID if isinstance(request, str)])
    | st.text(max_size=60)
)


def body(request: object, verb: object, more: Mapping[str, Any]) -> bytes:
    text = json.dumps({"verb": verb, "request": request, **more})
    # which JSON can say, other than Infinity
    return text.replace("Infinity", "1e999").encode()


def damaged_text(text: bytes) -> bytes:
    return body(text.decode("utf-8", "surrogateescape"), "retrieve", {})


VERBS = st.sampled_from(["retrieve"] * 20 + ["archive", "RETRIEVE", None, ["retrieve"], "\ud800"])
WELL_FORMED = st.builds(
    body,
    OBJECTS | TEXTS | st.sampled_from(VALID),
    VERBS,
    st.just({}) | st.dictionaries(st.sampled_from(["url", "x", "verb"]), SCALARS, max_size=1),
)
BODIES = (
    WELL_FORMED
    | damaged(WELL_FORMED, PIECES)
    | damaged(TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")), PIECES).map(
        damaged_text
    )
    | st.binary(max_size=60)
)


# --- what comes of it


def routed_of(sent: bytes, name: str, now: datetime = NOW) -> tuple[Submission, Routed] | None:
    """What a frontend makes of a body; None if it is the user's mistake."""
    try:
        submission = Submission.from_body(sent)
        parsed = parse(submission.request)
        return submission, COLLECTIONS[name].route(
            user=USER, verb=submission.verb, parsed=parsed, now=now
        )
    except (InvalidRequest, NotSupported) as exc:
        answer = json.loads(json_bytes({"message": str(exc)}))
        assert 0 < len(answer["message"]) < LONGEST_MESSAGE
        return None


def rule_of(name: str, routed: Routed) -> DatasourceRule:
    return next(r for r in COLLECTIONS[name].datasources if r.name == routed.datasource)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SqliteRequestStore:
    path = tmp_path_factory.mktemp("store") / "requests.sqlite"
    return SqliteRequestStore(SqliteRequestStore.Config(path=path))


@given(sent=BODIES, name=NAMES)
@tries(600)
def test_a_body_is_understood_or_refused(store: SqliteRequestStore, sent: bytes, name: str) -> None:
    with bounded(seconds=SECONDS, mib=MIB):
        found = routed_of(sent, name)
    if found is None:
        return
    submission, routed = found
    target(len(routed.request), label="keys of what is routed")
    assert routed_of(sent, name) == found
    stored = store.add(
        Request(
            id=str(uuid.uuid4()),
            user=USER,
            verb=submission.verb,
            collection=name,
            datasource=routed.datasource,
            user_request=submission.text,
            coerced_request=routed.request,
            status=Status.WAITING,
        ),
        idempotency_key=None,
        max_unfinished=1_000_000,
    )
    assert store.get(stored.id).coerced_request == routed.request
    assert store.get(stored.id).user_request == submission.text


@given(sent=WELL_FORMED, name=NAMES, days=st.integers(0, 20))
@tries(400)
def test_what_is_routed_means_the_same_when_it_is_read_again(
    sent: bytes, name: str, days: int
) -> None:
    found = routed_of(sent, name)
    if found is None or not found[1].request:
        return
    routed = found[1]
    rule = rule_of(name, routed)
    parsed = parse(json.loads(json.dumps(routed.request, allow_nan=False)))
    assert parsed == routed.request
    canonical = coerce(parsed, rule.coercion, now=NOW + timedelta(days=days))
    assert joined(canonical) == routed.request
    if not rule.patch:
        assert list(rule.matches(canonical, NOW)) == []
        assert rule.with_defaults(canonical, NOW) == canonical
    assert rule.patched(canonical, NOW) == canonical
    assert list(rule.unfit(routed.request)) == []


LARGE = 200_000
assert LARGE < MAX_TEXT


@given(
    head=st.sampled_from(
        ["", "class: od\nparam: ", "retrieve, class=od, param=", "[", "a: {", "a: '"]
    ),
    piece=FRAGMENTS.map("".join).filter(bool) | MARS,
    name=NAMES,
    is_text=st.booleans(),
)
@tries(60)
def test_a_long_body_is_no_trouble(head: str, piece: str, name: str, is_text: bool) -> None:
    """What grows faster than the body shows here."""
    text = head + piece * (LARGE // len(piece))
    request: Any = text if is_text else {"class": "od", "param": text[: len(text) // 2]}
    with bounded(seconds=SECONDS, mib=MIB):
        routed_of(body(request, "retrieve", {}), name)


@given(
    opening=st.sampled_from(["[", '{"a":', '[{"a":', '"x",', "1,", "-", '{"a":1,']),
    head=st.sampled_from(
        ['{"verb":"retrieve","request":', '{"verb":', '{"request":{"class":[', ""]
    ),
    count=st.integers(1, 50_000),
    closing=st.sampled_from(["", "]", "}"]),
    name=NAMES,
)
@tries(60)
def test_a_deep_body_is_no_trouble(
    opening: str, head: str, count: int, closing: str, name: str
) -> None:
    text = head + opening * count + closing * count
    with bounded(seconds=SECONDS, mib=MIB):
        routed_of(text.encode(), name)
