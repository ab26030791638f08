"""Nulls that say something else than was meant, found before nulls are taken away.

A null is nothing: whoever takes one away that stands for a forgotten value must not open a door, and one
under a misspelt key is all that is left of what was to be said.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from polytope_server.config.builtin import section_of
from polytope_server.config.findings import Findings
from polytope_server.config.model import CHOICES, Config
from polytope_server.config.outline import complete
from polytope_server.config.resolution import ROLES, needless_below
from polytope_server.config.secrecy import looks_secret
from polytope_server.config.section import Place, Section
from polytope_server.config.tree import Node, at, leaves, put
from polytope_server.errors import ConfigurationError

NO_NULL: Final = "take it away, or write what it stands for"
NOTHING_TO_TAKE: Final = f"null takes away what was said before, and nothing was; {NO_NULL}"

API_KEYS: Final[Place] = ("api-keys", "authenticator")
"""Where there may be an authenticator outside of all realms."""

_HIDDEN: Final = "(a key)"
_REALM_PARTS: Final = (("authenticators", "authentication"), ("authorizers", "authorization"))


def refuse_nulls(tree: Node, findings: Findings) -> Node:
    """The same tree, with the lists marked that hold a null; each is an error, as are those of realms."""
    for place, leaf in leaves(tree):
        if leaf.value is None and place and isinstance(place[-1], int):
            findings.error(tree, place, f"null in a list says nothing; {NO_NULL}")
            listed = at(tree, place[:-1])
            if listed is not None:
                tree = put(tree, place[:-1], replace(listed, is_faulty=True))
    for name, collection in _children(tree, "collections").items():
        for part in ((ROLES,), ("limits", "per-role")):
            for inner in needless_below(at(collection, part)):
                findings.error(tree, ("collections", name, *part, *inner), NOTHING_TO_TAKE)
    return tree


def tell_unknown_nulls(tree: Node, findings: Findings) -> None:
    """Tell of keys that nobody reads and that have no value, everywhere but in datasources."""
    tell_unknown_below(Config, tree, (), findings)
    chosen: list[tuple[Place, str, str]] = [
        ((abstraction, name), abstraction, name)
        for abstraction in CHOICES
        for name in _children(tree, abstraction)
    ]
    for realm, parts in _children(tree, "authentication").items():
        for part, abstraction in _REALM_PARTS:
            for name, entry in _children(parts, part).items():
                kind = entry.children.get("type", Node(value="")).value
                chosen.append((("authentication", realm, part, name), abstraction, str(kind)))
    if (outside := at(tree, API_KEYS)) is not None:
        kind = outside.children.get("type", Node(value="")).value
        chosen.append((API_KEYS, "authentication", str(kind)))
    for place, abstraction, name in chosen:
        section = known_section(abstraction, name)
        if section is not None:
            tell_unknown_below(section, tree, place, findings)


def tell_unknown_below(
    section: type[Section], tree: Node, place: Place, findings: Findings
) -> None:
    """The same for one section, which stands at a place."""
    written = at(tree, place) if place else tree
    if written is None:
        return

    def tell(where: Place, text: str) -> None:
        found = at(tree, where)
        if found is None or found.value is not None or found.replaces:
            return  # told with its value, or it has taken a value away
        around = at(tree, where[:-1]) or tree
        if _stands_by_a_secret(found, around):
            # unquoted text in a flow mapping ends at its first comma, and the rest is a key
            text = f"unknown key without a value; text with a comma needs quotes ({text})"
            hidden = replace(around, value={**around.children, _HIDDEN: found})
            apart = put(tree, where[:-1], hidden) if where[:-1] else hidden
            findings.unknown(apart, (*where[:-1], _HIDDEN), text)
            return
        findings.unknown(tree, where, text)

    complete(section, written, place, tell)


def _stands_by_a_secret(null: Node, around: Node) -> bool:
    return any(
        item.source.line == null.source.line and (item.is_hidden or looks_secret(key))
        for key, item in around.children.items()
    )


def known_section(abstraction: str, name: str) -> type[Section] | None:
    """The model of a back-end's options; None if there is none, which is told elsewhere."""
    try:
        return section_of(abstraction, name)
    except ConfigurationError:
        return None


def _children(node: Node, key: str) -> Mapping[str, Node]:
    return node.children.get(key, Node(value={})).children
