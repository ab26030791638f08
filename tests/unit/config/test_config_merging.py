"""How several files become one tree: each row of the merge table, lists, nulls, ``!replace``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytope_server.config.loading import Loaded, load, merged
from polytope_server.config.tree import Node, merge, plain, without_nulls
from polytope_server.errors import ConfigurationError

Read = Callable[..., Loaded]


def combined(tmp_path: Path, *texts: str) -> Any:
    files = []
    for number, text in enumerate(texts):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(text, encoding="utf-8")
    return plain(without_nulls(merged(files, system_file=tmp_path / "none")))


@pytest.mark.parametrize(
    ("before", "after", "result"),
    [
        ("{}", "{a: {b: 1}}", {"a": {"b": 1}}),
        ("{}", "{a: null}", {}),
        ("{a: 1}", "{a: null}", {}),
        ("{a: {b: 1}}", "{a: null}", {}),
        ("{a: [1]}", "{a: null}", {}),
        ("{a: {b: 1, c: 2}}", "{a: {b: 3, d: 4}}", {"a": {"b": 3, "c": 2, "d": 4}}),
        ("{a: {b: {c: 1}}}", "{a: {b: {d: 2}}}", {"a": {"b": {"c": 1, "d": 2}}}),
        ("{a: [1, 2]}", "{a: [3]}", {"a": [1, 2, 3]}),
        ("{a: 1}", "{a: 2}", {"a": 2}),
        ("{a: 1}", "{a: [2]}", {"a": [2]}),
        ("{a: [1]}", "{a: 2}", {"a": 2}),
        ("{a: {b: 1}}", "{a: 2}", {"a": 2}),
        ("{a: 1}", "{a: {b: 2}}", {"a": {"b": 2}}),
        ("{a: {b: 1}}", "{a: [2]}", {"a": [2]}),
    ],
)
def test_every_row_of_the_merge_table_holds(
    tmp_path: Path, before: str, after: str, result: Any
) -> None:
    assert combined(tmp_path, before, after) == result


def test_documents_of_one_file_are_merged_like_files(tmp_path: Path) -> None:
    assert combined(tmp_path, "a: [1]\n---\na: [2]\nb: 3\n") == {"a": [1, 2], "b": 3}


@pytest.mark.parametrize("empty", ["", "---\n", "# nothing\n---\n", "null\n", "---\n---\n...\n"])
def test_empty_documents_are_skipped_wherever_they_stand(tmp_path: Path, empty: str) -> None:
    assert combined(tmp_path, f"{empty}", "a: 1\n---\n", f"---\na: 2\n---\n{empty}") == {"a": 2}


def test_a_file_given_twice_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: [1, {b: [x]}]\nc: {d: [2]}\n", encoding="utf-8")
    once = merged([path], system_file=tmp_path / "none")
    twice = merged([path, path], system_file=tmp_path / "none")
    assert plain(once) == plain(twice)


def test_a_list_keeps_what_it_says_twice_itself(tmp_path: Path) -> None:
    assert combined(tmp_path, "{a: [1, 1]}", "{a: [2, 1]}") == {"a": [1, 1, 2]}


def test_a_number_and_a_truth_value_are_not_the_same_item(tmp_path: Path) -> None:
    result = combined(tmp_path, "{a: [1]}", "{a: [true, '1']}")
    assert [type(item) for item in result["a"]] == [int, bool, str]


@pytest.mark.parametrize(
    ("before", "after", "result"),
    [
        ("{a: [1, 2]}", "{a: !replace [3]}", {"a": [3]}),
        ("{a: {b: 1, c: 2}}", "{a: !replace {b: 3}}", {"a": {"b": 3}}),
        ("{a: {b: [1]}}", "{a: {b: !replace []}}", {"a": {"b": []}}),
    ],
)
def test_replace_takes_the_place_of_earlier_values(
    tmp_path: Path, before: str, after: str, result: Any
) -> None:
    assert combined(tmp_path, before, after) == result


def test_after_replace_later_files_add_again(tmp_path: Path) -> None:
    assert combined(tmp_path, "{a: [1]}", "{a: !replace [2]}", "{a: [3]}") == {"a": [2, 3]}


def test_what_was_removed_by_null_can_come_back(tmp_path: Path) -> None:
    assert combined(tmp_path, "{a: {b: 1}}", "{a: null}", "{a: {c: 2}}") == {"a": {"c": 2}}


def test_nulls_are_gone_at_every_level_also_in_the_first_document(tmp_path: Path) -> None:
    text = "{a: null, b: {c: null, d: [1, null, {e: null}]}}"
    assert combined(tmp_path, text) == {"b": {"d": [1, {}]}}


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=12,
)
mappings = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


def as_node(value: Any) -> Node:
    if isinstance(value, dict):
        return Node(value={key: as_node(item) for key, item in value.items()})
    if isinstance(value, list):
        return Node(value=tuple(as_node(item) for item in value))
    return Node(value=value)


@given(mappings, mappings)
def test_merging_the_same_again_changes_nothing(first: Any, second: Any) -> None:
    once = merge(as_node(first), as_node(second))
    assert plain(merge(once, as_node(second))) == plain(once)


@given(mappings, mappings)
def test_scalars_of_the_later_tree_win(first: Any, second: Any) -> None:
    result = plain(merge(as_node(first), as_node(second)))
    for key, value in second.items():
        if not isinstance(value, dict | list):
            assert result[key] == value


def test_the_system_file_comes_first_and_may_be_absent(tmp_path: Path) -> None:
    system, own = tmp_path / "system.yaml", tmp_path / "own.yaml"
    system.write_text("frontend: {port: 1, bind_to: host}\n", encoding="utf-8")
    own.write_text("frontend: {port: 2}\n", encoding="utf-8")
    config = load([own], environ={}, system_file=system).config
    assert (config.frontend.port, config.frontend.bind_to) == (2, "host")
    config = load([own], environ={}, system_file=tmp_path / "absent" / "config.yaml").config
    assert (config.frontend.port, config.frontend.bind_to) == (2, "localhost")
    assert load([], environ={}, system_file=system).config.frontend.port == 1


def test_without_any_file_it_is_said_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="-f FILE"):
        load([], environ={}, system_file=tmp_path / "absent")


def test_every_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml", folder]
    with pytest.raises(ConfigurationError) as caught:
        load(files, environ={}, system_file=tmp_path / "absent")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(str(path) in line for path, line in zip(files, lines, strict=True))


def test_every_value_knows_where_it_was_written(read: Read) -> None:
    loaded = read(
        "frontend:\n  port: 1\n  bind_to: a\n",
        "frontend:\n\n  port: ${PORT}\nlogging: {defaults: {app: $APP-x}}\n",
        environ={"PORT": "7", "APP": "it"},
    )
    origins = loaded.origins
    assert origins["frontend.bind_to"].endswith("1.yaml:3")
    assert origins["frontend.port"].startswith("environment PORT in ")
    assert origins["frontend.port"].endswith("2.yaml:3")
    assert origins["frontend.threads"] == "default"
    assert origins["logging.defaults.app"].startswith("environment APP in ")
    assert origins["coercion.allow_ranges[0]"] == "default"
