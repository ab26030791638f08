"""YAML as it is written: text stays text, and nothing in a file can do harm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from polytope_server.config.loading import Loaded, load
from polytope_server.config.reading import MAX_DEPTH, NotReadable, read
from polytope_server.config.show import show
from polytope_server.config.tree import plain
from polytope_server.errors import ConfigurationError

Read = Callable[..., Loaded]


def value(text: str) -> Any:
    (document,) = read(f"a: {text}\n".encode(), file="f")
    return plain(document)["a"]


@pytest.mark.parametrize(
    "text",
    [
        *("0010", "0x10", "0b1", "1_000", "+5", "-0", "00", "10:00", "1:30", "2024-01-05"),
        *("no", "No", "yes", "on", "OFF", "y", "=", "167.128", "1.5", "1e3", ".inf", ".nan"),
        "2024-01-05 10:00:00",
    ],
)
def test_what_may_be_meant_as_text_stays_as_it_is_written(text: str) -> None:
    assert value(text) == text


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("0", 0),
        ("5", 5),
        ("-5", -5),
        ("123456789012345678", 123456789012345678),
        ("1234567890123456789012", "1234567890123456789012"),
        ("true", True),
        ("False", False),
        ("'5'", "5"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ("!!int 5", 5),
        ("!!float 0.5", "0.5"),
        ("|\n  one\n  two", "one\ntwo\n"),
    ],
)
def test_plain_numbers_truth_values_and_quoted_text_are_what_they_seem(
    text: str, result: Any
) -> None:
    assert value(text) == result
    assert type(value(text)) is type(result)


def test_keys_are_text_as_they_are_written() -> None:
    (document,) = read(b"{1: a, true: b, 0010: c, no: d, ~: e}", file="f")
    assert plain(document) == {"1": "a", "true": "b", "0010": "c", "no": "d", "~": "e"}


def test_anchors_and_merge_keys_work() -> None:
    text = b"""
    base: &base {a: 1, b: 2}
    one: *base
    two: {<<: *base, b: 3}
    three: {<<: [{c: 1}, *base], c: 0}
    """
    (document,) = read(text, file="f")
    found = plain(document)
    assert found["one"] == {"a": 1, "b": 2}
    assert found["two"] == {"a": 1, "b": 3}
    assert found["three"] == {"a": 1, "b": 2, "c": 0}


def fault(data: bytes) -> str:
    with pytest.raises(NotReadable) as caught:
        read(data, file="f.yaml")
    return str(caught.value)


def test_a_key_twice_is_refused_with_both_lines() -> None:
    said = fault(b"a:\n  b: 1\n  c: 2\n  b: 3\n")
    assert said == "f.yaml:4: a.b: this key is in line 2 already"


@pytest.mark.parametrize(
    "text",
    ["!secret x", "!!python/object/apply:os.system [id]", "!!set {a}", "!!binary aGk=", "!!int x"],
)
def test_tags_that_we_do_not_know_are_refused(text: str) -> None:
    said = fault(f"a:\n  b: {text}\n".encode())
    assert said.startswith("f.yaml:2: a.b: ")
    assert "no other tag is known" in said


def test_several_faults_of_one_file_are_told_at_once() -> None:
    said = fault(b"a: !x 1\nb: 1\nb: 2\n? [c]\n: 1\n")
    assert [line.split(": ")[0] for line in said.splitlines()] == [
        "f.yaml:1",
        "f.yaml:3",
        "f.yaml:4",
    ]


@pytest.mark.parametrize("text", ["[a, b]", "just text", "5", "- a\n- b"])
def test_a_document_that_is_no_mapping_is_refused(text: str) -> None:
    assert "must be a mapping of sections" in fault(text.encode())


def test_nested_aliases_do_not_explode() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "more than 100000 values" in fault("\n".join(lines).encode())


@pytest.mark.parametrize(
    "text", ["a: &x {b: *x}", "a: &x [*x, *x]", "a: &x {<<: *x}", "a: &x {<<: [*x, {b: 1}]}"]
)
def test_an_alias_to_itself_is_refused(text: str) -> None:
    assert "nested more than" in fault(text.encode())


def test_deep_nesting_is_refused_before_it_exhausts_anything() -> None:
    assert f"more than {MAX_DEPTH} deep" in fault(b"a: " + b"[" * 50_000)
    assert value("[" * 40 + "]" * 40)


@pytest.mark.parametrize(
    "data",
    [
        b"a: \xff\xfe\xfd",
        b"a: \x01",
        b'a: "\\0"',
        b'a: "\\ud800"',
        b'a: "\\UFFFFFFFF"',
        b'"\\0": a',
        b"%YAML 999999999999999999999999999999.1\n---\na: 1",
        b"\x00",
        b"\xef\xbb\xbf\x00",
        b"\xff\xfea\x00:",
    ],
)
def test_what_is_not_text_is_refused(data: bytes) -> None:
    assert fault(data).startswith("f.yaml:")


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    (document,) = read(b"\xef\xbb\xbfa: 1", file="f")
    assert plain(document) == {"a": 1}


@pytest.mark.parametrize(
    "text",
    [
        "password: *hunter2",
        "password: !hunter2 x",
        "password: 'hunter2",
        "password: @hunter2",
        "password: {hunter2",
        'password: "\\hunter2"',
        "password: hunter2: x",
        "password: |hunter2",
        "password: !<hunter2",
        "password: &hunter2 &hunter2 x",
        "%hunter2 x\n--- a: 1\n--- hunter2",
        "password: hunter2\nhunter2",
    ],
)
def test_what_is_not_yaml_is_told_with_its_line_but_without_its_text(text: str) -> None:
    said = fault(f"ok: 1\n{text}\n".encode())
    assert said.startswith("f.yaml:")
    assert "hunter2" not in said


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8")))
@example(b"? ")
@example(b"- - : ? !<")
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    refusal = ""
    try:
        documents = read(data, file="f")
    except NotReadable as exc:
        refusal = str(exc)
        documents = []
    assert all(line.startswith("f:") for line in refusal.splitlines())
    assert all(isinstance(plain(document), dict) for document in documents)


names = st.sampled_from(
    (
        "admin",
        "age",
        "allow_lists",
        "authentication",
        "authenticators",
        "authorizers",
        "broker",
        "caching",
        "coercion",
        "collections",
        "datasources",
        "defaults",
        "deployment",
        "echo",
        "fdb",
        "frontend",
        "garbage-collector",
        "limits",
        "local",
        "logging",
        "match",
        "metric_age",
        "metric_store",
        "name",
        "parents",
        "patch",
        "per-role",
        "per-user",
        "plain",
        "port",
        "queue",
        "request_store",
        "roles",
        "sqlite",
        "staging",
        "timeout",
        "type",
        "uid",
        "users",
        "worker",
    )
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.text(max_size=5)
    | st.sampled_from(["echo", "fdb", "plain", "${X}", "$X", "$$", "~", "~/x", "10s", "1G", "a"])
)
documents = st.dictionaries(
    names,
    st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(names | st.just("a"), inner, max_size=4)
        ),
        max_leaves=25,
    ),
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(documents, min_size=1, max_size=3), st.booleans())
def test_any_yaml_makes_a_configuration_or_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, texts: list[Any], strict: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / "config.yaml"
    path.write_text(yaml.safe_dump_all(texts, allow_unicode=True), encoding="utf-8")
    said = ""
    try:
        shown = list(
            show(load([path], environ={}, strict=strict, system_file=Path("/nonexistent")))
        )
    except ConfigurationError as exc:
        said, shown = str(exc), []
    assert bool(said) != bool(shown)
    assert all(line.startswith(str(path)) for line in said.splitlines())
    assert all("\n" not in line for line in shown)


def test_ambiguous_values_of_requests_are_text_with_a_warning(read: Read) -> None:
    loaded = read("""
        datasources:
          a:
            type: echo
            match: {expver: [0010], class: [no], time: [10:00], param: 167.128, step: [0]}
            defaults: {expver: 0001, stream: "no"}
        collections: {c: {roles: [r], datasources: [a, {name: a, patch: {type: on}}]}}
        """)
    first, second = loaded.config.collections["c"].datasources
    assert first["match"] == {
        "expver": ["0010"],
        "class": ["no"],
        "time": ["10:00"],
        "param": "167.128",
        "step": [0],
    }
    assert first["defaults"] == {"expver": "0001", "stream": "no"}
    assert second["patch"] == {"type": "on"}
    told = [line for line in loaded.warnings if "put it between quotes" in line]
    assert len(told) == 4
    for part in (
        "datasources.a.match.expver[0]: taken as the text '0010'",
        "datasources.a.match.class[0]: taken as the text 'no'",
        "datasources.a.match.time[0]: taken as the text '10:00'",
        "collections.c.datasources[1].patch.type: taken as the text 'on'",
    ):
        assert any(part in line for line in told)
