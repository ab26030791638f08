"""Datasources with what they inherit, and that all of them are checked at the start."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytope_server.config.loading import Loaded
from polytope_server.config.resolution import Datasources
from polytope_server.config.tree import Node
from polytope_server.errors import ConfigurationError

Read = Callable[..., Loaded]


def resolved(read: Read, datasources: str, use: str, *more: str) -> Mapping[str, Any]:
    text = f"datasources: {datasources}\ncollections: {{c: {{roles: r, datasources: [{use}]}}}}\n"
    return read(text, *more).config.collections["c"].datasources[0]


def refused(read: Read, *texts: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(*texts)
    return [line.partition(".yaml:")[2] for line in str(caught.value).splitlines()]


def test_parents_then_the_entry_then_the_collection(read: Read) -> None:
    found = resolved(
        read,
        """
  p: {type: echo, repr: p, match: {class: [od], stream: [oper]}, defaults: {a: p, b: p}}
  q: {repr: q, defaults: {b: q, c: q}}
  e: {parents: [p, q], match: {class: [rd], stream: enfo}, defaults: {c: e, d: e}}
""",
        "{name: e, match: {class: [ai]}, defaults: {d: own}}",
    )
    assert found == {
        "name": "e",
        "type": "echo",
        "repr": "q",
        "match": {"class": ["od", "rd", "ai"], "stream": "enfo"},
        "defaults": {"a": "p", "b": "q", "c": "e", "d": "own"},
    }


def test_an_ancestor_that_is_reached_twice_counts_once(read: Read) -> None:
    found = resolved(
        read,
        """
  base: {type: echo, repr: base, match: {class: [od]}}
  a: {parents: [base], repr: a, match: {class: [x]}}
  b: {parents: [base], match: {class: [y]}}
  e: {parents: [a, b]}
""",
        "e",
    )
    assert found["match"]["class"] == ["od", "x", "y"]
    assert found["repr"] == "a"


def test_a_parent_may_be_empty_and_a_single_name(read: Read) -> None:
    found = resolved(read, "{p: {}, e: {parents: p, type: echo}}", "e")
    assert found == {"name": "e", "type": "echo"}


def test_a_circle_is_told_once_with_its_path(read: Read) -> None:
    lines = refused(
        read,
        """
        datasources:
          a: {type: echo, parents: [b]}
          b: {parents: [c]}
          c: {parents: [a]}
          d: {parents: [a]}
        collections: {x: {roles: r, datasources: [d]}}
        """,
    )
    assert lines == ["3: datasources.a.parents: parents go round in a circle: a -> b -> c -> a"]


def test_a_parent_that_does_not_exist_is_told_where_it_is_named(read: Read) -> None:
    lines = refused(
        read,
        """
        datasources:
          base: {type: echo}
          a: {parents: [bas]}
          b: {parents: [a]}
        collections: {x: {roles: r, datasources: [a, b]}}
        """,
    )
    assert lines[0] == (
        "4: datasources.a.parents: there is no 'bas' under datasources; did you mean 'base'?"
    )


def test_a_datasource_without_an_entry_of_its_own_is_refused(read: Read) -> None:
    lines = refused(
        read,
        "datasources: {real: {type: echo}}\n"
        "collections:\n"
        "  x: {roles: r, datasources: [reel, {name: inline, type: echo}, {type: echo}, [real]]}\n",
    )
    assert lines == [
        "3: collections.x.datasources[0]: there is no 'reel' under datasources; "
        "did you mean 'real'?",
        "3: collections.x.datasources[1]: there is no 'inline' under datasources; known: real",
        "3: collections.x.datasources[2]: must be the name of a datasource, or a mapping with `name`",
        "3: collections.x.datasources[3]: must be the name of a datasource, or a mapping with `name`",
    ]


@pytest.mark.parametrize(
    "entry",
    ["{name: e, match: {class: null}}", "{name: e, match: null}", "{name: e, match: !replace {}}"],
)
def test_null_takes_away_what_is_inherited(read: Read, entry: str) -> None:
    found = resolved(read, "{e: {type: echo, match: {class: [od]}}}", entry)
    assert not found.get("match")


def test_null_in_an_entry_takes_away_what_a_parent_says_also_over_several_files(
    read: Read,
) -> None:
    found = resolved(
        read,
        "{p: {type: echo, repr: p, match: {class: [od], stream: [oper]}}, e: {parents: [p]}}",
        "e",
        "datasources: {e: {repr: null, match: {class: null}}}",
    )
    assert found == {"name": "e", "type": "echo", "match": {"stream": ["oper"]}}


def test_null_and_then_new_values_in_later_files_replace_what_is_inherited(read: Read) -> None:
    found = resolved(
        read,
        "{p: {type: echo, match: {class: [od]}}, e: {parents: [p]}}",
        "e",
        "datasources: {e: {match: null}}",
        "datasources: {e: {match: {stream: [oper]}}}",
    )
    assert found["match"] == {"stream": ["oper"]}


def test_an_entry_that_was_removed_and_written_again_still_inherits(read: Read) -> None:
    found = resolved(
        read,
        "{p: {type: echo}, e: {parents: [p], repr: old}}",
        "e",
        "datasources: {e: null}",
        "datasources: {e: {parents: [p]}}",
    )
    assert found == {"name": "e", "type": "echo"}


def test_replace_narrows_what_a_collection_may_fetch(read: Read) -> None:
    found = resolved(
        read,
        "{p: {type: echo, match: {class: [od]}}, e: {parents: [p], match: {class: [rd]}}}",
        "{name: e, match: {class: !replace [ai]}}",
    )
    assert found["match"] == {"class": ["ai"]}


def test_a_null_rule_with_nothing_to_take_away_is_refused(read: Read) -> None:
    lines = refused(
        read,
        "datasources: {e: {type: echo, match: {class: null, a: []}}}\n"
        "collections: {x: {roles: r, datasources: [e]}, y: {roles: r, datasources: [e]}}\n",
    )
    assert len(lines) == 1
    assert lines[0].startswith("1: collections.x.datasources[0].match.class: null takes")


@pytest.mark.parametrize(
    ("entry", "own", "place"),
    [
        ("match: {class: [null]}", "", "datasources.e.match.class[0]"),
        ("match: {class: [od, null]}", "", "datasources.e.match.class[1]"),
        ("roles: [null]", "", "datasources.e.roles[0]"),
        ("roles: {example: [a, ~]}", "", "datasources.e.roles.example[1]"),
        ("patch: {class: [null]}", "", "datasources.e.patch.class[0]"),
        ("repr: e", "match: {class: [null]}", "collections.c.datasources[0].match.class[0]"),
        ("repr: e", "roles: [null]", "collections.c.datasources[0].roles[0]"),
        ("repr: e", "roles: {example: null}", "collections.c.datasources[0].roles.example"),
        ("roles: {example: null}", "", "collections.c.datasources[0].roles.example"),
        (
            "roles: {example: [a]}",
            "roles: {example: null}",
            "collections.c.datasources[0].roles",
        ),
        (
            "roles: {example: [a]}",
            "roles: {exampel: null}",
            "collections.c.datasources[0].roles.exampel",
        ),
    ],
)
def test_a_null_that_would_open_a_datasource_is_refused(
    read: Read, entry: str, own: str, place: str
) -> None:
    text = (
        f"datasources:\n  e: {{type: echo, {entry}}}\n"
        f"collections:\n  c: {{roles: r, datasources: [{{name: e, {own}}}]}}\n"
    )
    (line,) = refused(read, text)
    assert line.startswith((f"2: {place}: null", f"4: {place}: null"))


def test_nulls_take_realms_away_as_long_as_one_is_left(read: Read) -> None:
    found = resolved(
        read, "{e: {type: echo, roles: {a: [x], b: [y]}}}", "{name: e, roles: {a: null}}"
    )
    assert found["roles"] == {"b": ["y"]}
    found = resolved(read, "{e: {type: echo, roles: {a: [x]}}}", "{name: e, roles: null}")
    assert "roles" not in found


@pytest.mark.parametrize(
    ("collection", "place"),
    [
        ("roles: [null]", "roles[0]"),
        ("roles: {example: null}", "roles.example"),
        ("roles: r, limits: {per-role: {example: null}}", "limits.per-role.example"),
        ("roles: r, limits: {per-role: {example: {a: ~}}}", "limits.per-role.example.a"),
        ("roles: r, datasources: [null]", "datasources[1]"),
    ],
)
def test_a_null_of_a_collection_that_says_nothing_is_refused(
    read: Read, collection: str, place: str
) -> None:
    first = "datasources: {e: {type: echo}}\ncollections: {c: {datasources: [e]}}\n"
    (line,) = refused(read, first, f"collections: {{c: {{{collection}}}}}\n")
    assert line.startswith(f"1: collections.c.{place}: null")


def test_a_null_in_patch_stays_and_means_that_the_key_is_removed(read: Read) -> None:
    found = resolved(
        read,
        "{p: {type: echo, patch: {a: 1, b: null, c: 2}}, e: {parents: [p], patch: {a: null}}}",
        "{name: e, patch: {d: null}}",
    )
    assert found["patch"] == {"a": None, "b": None, "c": 2, "d": None}


def test_patch_as_a_whole_can_be_taken_away(read: Read) -> None:
    found = resolved(read, "{e: {type: echo, patch: {a: 1}}}", "{name: e, patch: null}")
    assert "patch" not in found


def test_parents_in_a_collection_are_not_read_and_warned_of(read: Read) -> None:
    loaded = read(
        "datasources: {p: {repr: p}, e: {type: echo}}\n"
        "collections: {c: {roles: r, datasources: [{name: e, parents: [p]}]}}\n"
    )
    assert loaded.config.collections["c"].datasources[0] == {"name": "e", "type": "echo"}
    assert any("collections.c.datasources[0].parents: not read" in w for w in loaded.warnings)


def test_every_fault_of_every_datasource_is_found_at_the_start(read: Read) -> None:
    lines = refused(
        read,
        """
        datasources:
          typeless: {repr: x}
          unknown: {type: fbd}
          fdb: {type: fdb}
          rules: {type: echo, match: {a: {b: 1}}}
          lists: {type: echo, defaults: [1], patch: 5, roles: {r: {x: y}}}
          unused: {type: dummy, chunk: many}
          part: {type: fdb}
          whole: {parents: [part], fdb_config: {type: local}}
          text: 5
          names: {type: echo, parents: [[a]]}
        collections:
          x: {roles: r, datasources: [typeless, unknown, fdb, rules, lists, whole]}
        """,
    )
    places = {line.partition(": ")[2].partition(": ")[0] for line in lines}
    x = "collections.x.datasources"
    assert places == {
        f"{x}[0].type",
        f"{x}[1]",
        f"{x}[2].fdb_config",
        f"{x}[3].match",
        f"{x}[4].defaults",
        f"{x}[4].patch",
        f"{x}[4].roles",
        "datasources.unused.chunk",
        "datasources.text",
        "datasources.names.parents",
    }
    assert any("no such back-end: 'fbd'; did you mean 'fdb'?" in line for line in lines)


def test_rules_defaults_and_patches_are_told_with_all_other_faults(read: Read) -> None:
    lines = refused(
        read,
        """
        frontend: {port: many}
        datasources:
          base:
            match: {time: noon}
          used:
            type: dummy
            chunk: many
            parents: [base]
            defaults: {number: x}
          spare:
            type: fdb
            fdb_config: {type: local}
            patch: {step: [], foo: {a: 1}}
            match:
              date: yesterday
              levtyp: [sfc]
              levtype: [pl]
              stream: null
          mixin: {match: {class: null, number: zero}}
          mixed: {type: echo, parents: [mixin]}
          typeless: {match: {step: x}, roles: {r: ""}}
          later: {type: mars, defaults: {date: "2024-02-30"}}
        collections: {c: {roles: r, datasources: [used, later]}}
        """,
    )
    told = {line.partition(": ")[0]: [] for line in lines}
    for line in lines:
        number, _, text = line.partition(": ")
        told[number].append(text.partition(": ")[0])
    c = "collections.c.datasources"
    assert told == {
        "2": ["frontend.port"],
        "5": [f"{c}[0].match.time"],
        "8": [f"{c}[0].chunk"],
        "10": [f"{c}[0].defaults.number"],
        "14": ["datasources.spare.patch.step", "datasources.spare.patch.foo"],
        "16": ["datasources.spare.match.date"],
        "18": ["datasources.spare.match.levtype"],
        "19": ["datasources.spare.match.stream"],
        "20": ["datasources.mixed.match.class", "datasources.mixin.match.number"],
        "22": ["datasources.typeless.roles", "datasources.typeless.match.step"],
        "23": [f"{c}[1].defaults.date"],
    }


def test_a_value_that_may_be_a_secret_is_not_told_with_its_fault(read: Read) -> None:
    text = (
        "datasources: {{e: {{type: echo, defaults: {{{}}}}}}}\n"
        "collections: {{c: {{roles: r, datasources: [e]}}}}\n"
    )
    for fault in ("date: $X", "my_token: [hunter2, {a: 1}]"):
        lines = refused(lambda *t: read(*t, environ={"X": "hunter2"}), text.format(fault))
        assert len(lines) == 1
        assert "hunter2" not in lines[0]
        assert "this cannot be a value of the key" in lines[0]


def test_a_fault_that_collections_share_is_told_once(read: Read) -> None:
    lines = refused(
        read,
        "datasources: {e: {type: dummy, chunk: many}}\n"
        "collections: {x: {roles: r, datasources: [e]}, y: {roles: r, datasources: [e]}}\n",
    )
    assert len(lines) == 1


@pytest.mark.parametrize(
    "kind", ["mars", "polytope", "gribjump", "webmars", "federated", "ionbeam"]
)
def test_datasources_of_later_releases_are_taken_as_they_are_with_a_warning(
    read: Read, kind: str
) -> None:
    text = (
        f"datasources: {{e: {{type: {kind}, anything: {{a: [1]}}, match: {{a: b}}}}}}\n"
        "collections: {c: {roles: r, datasources: [e]}}\n"
    )
    loaded = read(text, strict=True)
    assert loaded.config.collections["c"].datasources[0]["anything"] == {"a": [1]}
    assert any(f"'{kind}' is not part of this release" in line for line in loaded.warnings)
    with pytest.raises(ConfigurationError, match=r"datasources\[0\]\.match"):
        read(text.replace("{a: b}", "5"))


def test_unknown_keys_of_datasources_are_told(read: Read) -> None:
    text = (
        "datasources: {e: {type: echo, mach: {a: b}}}\n"
        "collections: {c: {roles: r, datasources: [e]}}\n"
    )
    (warning,) = read(text).warnings
    assert "collections.c.datasources[0].mach: unknown key; did you mean 'match'?" in warning
    with pytest.raises(ConfigurationError, match="did you mean 'match'"):
        read(text, strict=True)


def test_a_collection_needs_a_datasource_and_is_closed_without_roles(read: Read) -> None:
    lines = refused(read, "collections: {a: {roles: r}, b: {roles: r, datasources: []}}\n")
    assert lines == [
        "1: collections.a.datasources: this key is missing",
        "1: collections.b.datasources: must be at least 1 long",
    ]
    loaded = read("datasources: {e: {type: echo}}\ncollections: {a: {datasources: [e]}}\n")
    assert loaded.config.collections["a"].roles == ()
    assert any("collections.a: there are no roles" in line for line in loaded.warnings)


@pytest.mark.parametrize(
    ("roles", "result"),
    [
        ("a", ("a",)),
        ("[a, b]", ("a", "b")),
        ("{r: a, s: [b, c]}", {"r": ("a",), "s": ("b", "c")}),
        ("{}", {}),
    ],
)
def test_roles_have_one_shape_in_the_end(read: Read, roles: str, result: Any) -> None:
    config = read(
        f"datasources: {{e: {{type: echo}}}}\ncollections: {{c: {{roles: {roles}, datasources: [e]}}}}"
    ).config
    assert config.collections["c"].roles == result


def test_limits_are_typed_and_may_be_null(read: Read) -> None:
    text = (
        "datasources: {{e: {{type: echo}}}}\n"
        "collections: {{c: {{roles: r, datasources: [e], limits: {}}}}}\n"
    )
    limits = read(text.format("{total: 5, per-user: '2', per-role: {a: {b: 3}}}")).config
    assert limits.collections["c"].limits.model_dump() == {
        "total": 5,
        "per_user": 2,
        "per_role": {"a": {"b": 3}},
    }
    assert read(text.format("null")).config.collections["c"].limits.total is None
    lines = refused(read, text.format("{total: -1, per-user: many, per-role: {a: 3}}"))
    assert [line.partition(": ")[2] for line in lines] == [
        "collections.c.limits.total: must be at least 0",
        "collections.c.limits.per-user: must be a whole number",
        "collections.c.limits.per-role.a: must be a mapping of keys to values",
    ]


graphs = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3), max_size=6
)


@given(graphs)
def test_ancestors_come_before_descendants_each_once_or_there_is_a_circle(
    parents: dict[str, list[str]],
) -> None:
    entries = {
        name: Node(value={"parents": Node(value=tuple(Node(value=p) for p in of))})
        for name, of in parents.items()
    }
    known = Datasources(entries)
    for name in entries:
        try:
            order = known.lineage(name)
        except ConfigurationError as exc:
            circle = str(exc).partition(": ")[2].split(" -> ")
            assert circle[0] == circle[-1]
            assert all(b in parents[a] for a, b in pairwise(circle))
        else:
            assert order[-1] == name
            assert len(set(order)) == len(order)
            for place, found in enumerate(order):
                assert all(p in order[:place] for p in parents[found] if p in entries)


def test_long_chains_of_parents_are_no_problem() -> None:
    entries = {str(n): Node(value={"parents": Node(value=str(n - 1))}) for n in range(1, 5000)}
    entries["0"] = Node(value={})
    assert len(Datasources(entries).lineage("4999")) == 5000
