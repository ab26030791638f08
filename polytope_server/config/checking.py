"""From a merged tree to typed sections: every value is checked, also those of back-ends."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from polytope_server.config.builtin import section_of
from polytope_server.config.findings import Findings
from polytope_server.config.model import CHOICES, CoercionSection, Config
from polytope_server.config.nulls import (
    API_KEYS,
    NOTHING_TO_TAKE,
    known_section,
    refuse_nulls,
    tell_unknown_below,
    tell_unknown_nulls,
)
from polytope_server.config.outline import complete
from polytope_server.config.resolution import (
    MATCH,
    NAME,
    PARENTS,
    ROLES,
    Datasources,
    needless_below,
    needless_nulls,
    opens_by_null,
    settled,
)
from polytope_server.config.secrecy import PLAIN_NAMES, looks_secret
from polytope_server.config.section import DatasourceSection, Place, Section, faults, is_rule
from polytope_server.config.tree import (
    Finding,
    Node,
    at,
    leaves,
    merge,
    nearest,
    plain,
    put,
    without_nulls,
)
from polytope_server.errors import ConfigurationError
from polytope_server.language.options import CoercionOptions
from polytope_server.language.written import read_written

_ABOUT_REQUESTS: Final = ("match", "defaults", "patch", ROLES)
_SHORT_AGE_S: Final = 60.0
_REALM_PARTS: Final = (("authenticators", "authentication"), ("authorizers", "authorization"))

_Some = TypeVar("_Some", bound=Section)


def with_defaults(tree: Node) -> Node:
    """The same tree with those defaults that values in the files are merged with."""
    tree = put(tree, ("coercion",), _coercion(tree.children.get("coercion")))
    caching = tree.children.get("caching")
    if caching is None or caching.value is None:
        tree = put(tree, ("caching", "memory"), Node(value={}))
    return tree


def _coercion(written: Node | None) -> Node:
    if written is not None and not isinstance(written.value, Mapping | None):
        return written
    defaults = CoercionSection()
    lists = {"allow_ranges": defaults.allow_ranges, "allow_lists": defaults.allow_lists}
    base = Node(
        value={
            key: Node(value=tuple(Node(value=name) for name in names))
            for key, names in lists.items()
        }
    )
    if written is None or written.value is None:
        return base
    merged = dict(merge(base, written).children)
    for key in lists:
        if merged[key].value is None:
            merged[key] = replace(merged[key], value=())
    return replace(written, value=merged)


def with_resolved_collections(tree: Node, findings: Findings) -> tuple[Node, Mapping[str, Node]]:
    """The same tree: datasources of collections with all they inherit, and no nulls but in `patch`.

    And the datasources that no collection uses, by name, in the same form; those that others inherit
    from are alone.
    """
    tree = refuse_nulls(tree, findings)
    tell_unknown_nulls(tree, findings)
    known = Datasources(tree.children.get("datasources", Node(value={})).children)
    for inner, text in known.faults():
        findings.error(tree, ("datasources", *inner), text)
    collections = tree.children.get("collections", Node(value={})).children
    resolved: dict[Place, Node] = {}
    place: Place
    for name, collection in collections.items():
        listed = collection.children.get("datasources")
        if listed is not None and isinstance(listed.value, tuple):
            place = ("collections", name, "datasources")
            resolved[place] = _resolved_list(tree, listed, place, known, findings)
    unused = _unused(tree, known, resolved.values(), findings)
    settled_entries = {
        name: settled(entry) for name, entry in known.entries.items() if entry.value is not None
    }
    whole = without_nulls(tree)
    if settled_entries:
        section = whole.children["datasources"]
        tree = put(whole, ("datasources",), replace(section, value=settled_entries))
    else:
        tree = whole
    for place, node in resolved.items():
        tree = put(tree, place, node)
    return tree, unused


def _unused(
    tree: Node, known: Datasources, lists: Iterable[Node], findings: Findings
) -> Mapping[str, Node]:
    used = {
        plain(item.children[NAME]) for listed in lists for item in listed.items if item.children
    }
    inherited = known.inherited
    found: dict[str, Node] = {}
    for name, entry in known.entries.items():
        if name in used or not isinstance(entry.value, Mapping):
            continue
        node = entry
        if name not in inherited:
            try:
                node = known.resolve(name)
            except ConfigurationError:
                continue  # told with the entries
            _check_references(tree, node, None, ("datasources", name), findings)
            _tell_unknown_nulls(tree, node, ("datasources", name), findings)
        found[name] = settled(node)
    return found


def _resolved_list(
    tree: Node, listed: Node, place: Place, known: Datasources, findings: Findings
) -> Node:
    made: list[Node] = []
    for index, item in enumerate(listed.items):
        if item.value is None:
            continue
        name, own = _reference(item)
        # what cannot be resolved keeps its place in the list, with its fault told here
        node = Node(value={}, source=item.source, is_faulty=True)
        if name is None:
            text = "must be the name of a datasource, or a mapping with `name`"
            findings.error(tree, (*place, index), text)
        else:
            try:
                node = known.resolve(name, own=own)
            except ConfigurationError as exc:
                if name not in known.entries:
                    findings.error(tree, (*place, index), str(exc))
            _check_references(tree, node, own, (*place, index), findings)
            _tell_unknown_nulls(tree, node, (*place, index), findings)
        made.append(settled(node))
    return replace(listed, value=tuple(made))


def _tell_unknown_nulls(tree: Node, node: Node, place: Place, findings: Findings) -> None:
    kind = node.children.get("type", Node(value="")).value
    section = known_section("datasource", str(kind))
    if section is not None:
        tell_unknown_below(section, put(tree, place, node), place, findings)


def _check_references(
    tree: Node, node: Node, own: Node | None, place: Place, findings: Findings
) -> None:
    if own is not None and PARENTS in own.children:
        text = "not read here: parents belong to the entry under datasources"
        findings.warn(tree, (*place, PARENTS), text)
    for key in needless_nulls(node):
        # placed by the rule itself, which may be in an entry that is inherited
        text = "null takes an inherited rule away, and there is none; [] means that requests must "
        rule = node.children[MATCH].children[key]
        findings.errors.append(
            Finding(f"{text}not have the key", (*place, MATCH, key), rule.source)
        )
    roles = node.children.get(ROLES, Node(value=()))
    nulls = list(needless_below(roles))
    for inner in nulls:
        source = nearest(roles, inner).source
        findings.errors.append(Finding(NOTHING_TO_TAKE, (*place, ROLES, *inner), source))
    if not nulls and opens_by_null(node):
        text = "null takes the last realm away; write `roles: null` if everybody may use this"
        findings.errors.append(Finding(text, (*place, ROLES), roles.source))


def _reference(item: Node) -> tuple[str | None, Node | None]:
    """The name of a datasource, and what the collection says over it, if anything."""
    if isinstance(item.value, Mapping):
        name = item.children.get(NAME)
        if name is None or not isinstance(name.value, str | int):
            return None, None
        own = {key: value for key, value in item.children.items() if key != NAME}
        return str(name.value), replace(item, value=own)
    if isinstance(item.value, str | int) and not isinstance(item.value, bool):
        return str(item.value), None
    return None, None


def checked(
    section: type[_Some], tree: Node, place: Place, findings: Findings
) -> tuple[_Some | None, Node]:
    """The section at a place, and the tree with its defaults; None if there are errors about it."""
    written = at(tree, place) if place else tree
    if written is None or written.is_faulty:
        return None, tree
    unknown: list[tuple[Place, str]] = []
    completed = complete(section, written, place, lambda *found: unknown.append(found))
    made: _Some | None = None
    try:
        made = section.model_validate(plain(written))
        # the model itself knows best, as it may read keys under several names
        unknown = [((*place, *inner), text) for inner, text in made.unknown()]
    except ValidationError as exc:
        for inner, text in faults(exc):
            findings.error(tree, (*place, *inner), text)
    tree = put(tree, place, completed) if place else completed
    for where, text in unknown:
        findings.unknown(tree, where, text)
        # nobody can say what it is: it may be a misspelt password
        tree = put(tree, where, replace(at(tree, where) or completed, is_hidden=True))
    return made, tree


def check_backends(tree: Node, findings: Findings) -> Node:
    """The same tree with the options of every back-end checked and completed."""
    for abstraction in CHOICES:
        chosen = tree.children.get(abstraction)
        if chosen is not None and len(chosen.children) == 1:
            (name,) = chosen.children
            tree = _check(tree, (abstraction, name), abstraction, name, findings)
    for realm, parts in tree.children.get("authentication", Node(value={})).children.items():
        for part, abstraction in _REALM_PARTS:
            for name in parts.children.get(part, Node(value={})).children:
                place = ("authentication", realm, part, name)
                tree = _check_typed(tree, place, abstraction, findings)
    if (written := at(tree, API_KEYS)) is not None and written.children:
        tree = _check_typed(tree, API_KEYS, "authentication", findings)
    return tree


def check_datasources(tree: Node, unused: Mapping[str, Node], findings: Findings) -> Node:
    """The same tree with every datasource of a collection checked and completed.

    Those that no collection uses are checked too; if others inherit from them, or they have no type, they
    need not be whole.
    """
    collections = tree.children.get("collections", Node(value={})).children
    for name, collection in collections.items():
        listed = collection.children.get("datasources", Node(value=()))
        for index in range(len(listed.items)):
            place = ("collections", name, "datasources", index)
            tree = _check_typed(tree, place, "datasource", findings)
    inherited = Datasources(tree.children.get("datasources", Node(value={})).children).inherited
    for name, whole in unused.items():
        apart = put(tree, ("datasources", name), whole)
        if name in inherited or "type" not in whole.children:
            _check_part(apart, ("datasources", name), findings)
        else:
            _check_typed(apart, ("datasources", name), "datasource", findings)
    return tree


def _check_part(tree: Node, place: Place, findings: Findings) -> None:
    """Check what can be judged of a datasource that need not be whole: what it says about requests."""
    entry = at(tree, place) or tree
    parts = {key: entry.children[key] for key in _ABOUT_REQUESTS if key in entry.children}
    kind = entry.children.get("type", Node(value="nothing"))
    part = put(tree, place, replace(entry, value={"type": kind, **parts}))
    checked(DatasourceSection, part, place, findings)
    _check_requests(known_section("datasource", str(kind.value)), tree, place, findings)


def _check_requests(
    section: type[Section] | None, tree: Node, place: Place, findings: Findings
) -> None:
    """Check what a datasource says about requests; *section* is of its type, if that is known."""

    def part(name: str) -> Mapping[str, Any]:
        written = at(tree, (*place, name))
        return {key: plain(item) for key, item in written.children.items()} if written else {}

    def report(part: str, key: str, text: str) -> None:
        written = at(tree, (*place, part, key)) or tree
        inside = [leaf for _, leaf in leaves(written)]
        if looks_secret(key) or any(leaf.is_hidden or leaf.source.variables for leaf in inside):
            text = "this cannot be a value of the key"  # the text says which value it is
        findings.error(tree, (*place, part, key), text)

    takes_objects: bool | None = None
    if section is not None and issubclass(section, DatasourceSection):
        takes_objects = None if section.takes_free_text else section.takes_feature
    read_written(
        # of what has no shape of a rule its section tells
        match={key: value for key, value in part("match").items() if is_rule(value)},
        defaults=part("defaults"),
        patch=part("patch"),
        options=_coercion_options(tree),
        now=datetime.now(UTC),
        takes_objects=takes_objects,
        report=report,
    )


def _coercion_options(tree: Node) -> CoercionOptions:
    try:
        written = plain(tree.children.get("coercion", Node(value={})))
        return CoercionSection.model_validate(written).options()
    except ValidationError:  # told with that section
        return CoercionOptions()


def _check_typed(tree: Node, place: Place, abstraction: str, findings: Findings) -> Node:
    entry = at(tree, place)
    if entry is None or entry.is_faulty or not isinstance(entry.value, Mapping):
        return tree
    kind = entry.children.get("type")
    if kind is None or not isinstance(kind.value, str):
        text = "this key is missing" if kind is None else "must be text"
        findings.error(tree, (*place, "type"), f"{text}; it names the back-end")
        return tree
    return _check(tree, place, abstraction, kind.value, findings)


def _check(tree: Node, place: Place, abstraction: str, name: str, findings: Findings) -> Node:
    try:
        section = section_of(abstraction, name)
    except ConfigurationError as exc:
        findings.error(tree, place, str(exc))
        return tree
    if section is None:
        text = f"the back-end {name!r} is not part of this release; its options are not checked"
        findings.warn(tree, place, text)
        tree = _with_unknown_hidden(tree, place, is_datasource=abstraction == "datasource")
        if abstraction != "datasource":
            return tree
        # what all datasources have is checked; of the other keys nothing is known, so none is unknown
        quiet = Findings(strict=False, errors=findings.errors)
        checked(DatasourceSection, tree, place, quiet)
        _check_requests(None, tree, place, findings)
        return tree
    _, tree = checked(section, tree, place, findings)
    if abstraction == "datasource":
        _check_requests(section, tree, place, findings)
    return tree


def _with_unknown_hidden(tree: Node, place: Place, *, is_datasource: bool) -> Node:
    """The same tree; of options that no model describes, only those with well-known names are shown."""
    described = DatasourceSection.model_fields.keys() if is_datasource else frozenset()
    for inner, leaf in leaves(at(tree, place) or tree):
        keys = [part for part in inner if isinstance(part, str)]
        if keys and keys[0] not in {*described, "repr"} and keys[-1] not in PLAIN_NAMES:
            tree = put(tree, (*place, *inner), replace(leaf, is_hidden=True))
    return tree


def warn_of_doubtful(config: Config, tree: Node, findings: Findings) -> None:
    """Warnings about values that are possible but hardly meant."""
    ages = {"age": config.garbage_collector.age, "upload_age": config.garbage_collector.upload_age}
    for key, age_s in ages.items():
        if age_s < _SHORT_AGE_S:
            text = f"is {age_s:g} seconds; a number without a unit is in seconds"
            findings.warn(tree, ("garbage-collector", key), text)
    if not config.collections:
        findings.warn(tree, ("collections",), "there are none, so nobody can request anything")
    for name, collection in config.collections.items():
        if not collection.roles:
            text = "there are no roles, so nobody may use this collection"
            findings.warn(tree, ("collections", name), text)
