"""Values of the configuration before they are typed: each remembers where it was written.

A tree of frozen nodes, and the rules by which two of them become one. No `repr` shows a value.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from polytope_server.config.section import Place, place_text

Scalar = str | int | bool | None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value comes from: a line of a file, or nowhere, which makes it a default.

    `variables` are those of the environment that are part of the value; `reference` is the path of
    the file that holds it.
    """

    file: str = ""
    line: int = 0
    variables: tuple[str, ...] = ()
    reference: str = ""

    def __str__(self) -> str:
        if not self.file:
            return "default"
        text = f"{self.file}:{self.line}"
        if self.variables:
            text = f"environment {', '.join(self.variables)} in {text}"
        return f"file {self.reference} in {text}" if self.reference else text


DEFAULT = Source()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One value.

    `replaces` says that whatever was there before goes, instead of being merged with; `is_reference`
    that the text is the path of a file with the value; `is_hidden` that nobody may see it, nor what
    is below it; `is_faulty` that there is an error about it already; `older` what YAML 1.1 would have
    made of the text, if that is something else.
    """

    value: "Scalar | Mapping[str, Node] | tuple[Node, ...]" = field(repr=False)
    source: Source = DEFAULT
    replaces: bool = False
    is_reference: bool = False
    is_hidden: bool = False
    is_faulty: bool = False
    older: str = field(default="", repr=False)

    @property
    def children(self) -> "Mapping[str, Node]":
        """By key; nothing if this is no mapping."""
        return self.value if isinstance(self.value, Mapping) else {}

    @property
    def items(self) -> "tuple[Node, ...]":
        """In order; nothing if this is no list."""
        return self.value if isinstance(self.value, tuple) else ()


def merge(old: Node | None, new: Node) -> Node:
    """What is there after *new* has come upon *old*.

    Mappings are merged key by key; of two lists, items of the new one are appended unless the old
    one has them; everything else is replaced. A null stays as a null that has removed something, so
    that it can do the same again one level up, to what a datasource inherits.
    """
    if old is None or new.replaces:
        return new
    match old.value, new.value:
        case None, None:
            return replace(new, replaces=old.replaces)
        case (None, _) | (_, None):
            return replace(new, replaces=True)
        case Mapping() as before, Mapping() as after:
            merged = dict(before)
            for key, item in after.items():
                merged[key] = merge(merged.get(key), item)
            return replace(new, value=merged, replaces=old.replaces)
        case tuple() as before, tuple() as after:
            known = {_fingerprint(item) for item in before}
            added = tuple(item for item in after if _fingerprint(item) not in known)
            return replace(new, value=before + added, replaces=old.replaces)
    return new


def _fingerprint(node: Node) -> Hashable:
    match node.value:
        case Mapping() as items:
            return frozenset((key, _fingerprint(item)) for key, item in items.items())
        case tuple() as items:
            return tuple(_fingerprint(item) for item in items)
        case value:
            # True == 1 in Python, but not in a configuration
            return (type(value).__name__, value, node.is_reference)


def without_nulls(node: Node) -> Node:
    """The same without null values, at any depth."""
    match node.value:
        case Mapping() as items:
            kept = {k: without_nulls(item) for k, item in items.items() if item.value is not None}
            return replace(node, value=kept)
        case tuple() as items:
            kept_items = (without_nulls(item) for item in items if item.value is not None)
            return replace(node, value=tuple(kept_items))
    return node


def plain(node: Node) -> Any:
    """The bare values: dictionaries, lists and scalars."""
    match node.value:
        case Mapping() as items:
            return {key: plain(item) for key, item in items.items()}
        case tuple() as items:
            return [plain(item) for item in items]
        case value:
            return value


def at(node: Node, place: Place) -> Node | None:
    """What stands there, if anything does."""
    current: Node | None = node
    for part in place:
        if current is None:
            return None
        if isinstance(part, int):
            current = current.items[part] if 0 <= part < len(current.items) else None
        else:
            current = current.children.get(part)
    return current


def nearest(node: Node, place: Place) -> Node:
    """What stands there, or the innermost value around that place that somebody wrote."""
    for length in range(len(place), 0, -1):
        found = at(node, place[:length])
        if found is not None and found.source.file:
            return found
    return node


def put(node: Node, place: Place, made: Node | None) -> Node:
    """The same tree with *made* at that place; None takes away what is there.

    Mappings on the way are made where they are missing or null; where something else stands in the way,
    nothing changes.
    """
    head, *rest = place
    if isinstance(head, int):
        if not 0 <= head < len(node.items):
            return node
        items = list(node.items)
        below = put(items[head], tuple(rest), made) if rest else made
        items[head : head + 1] = [] if below is None else [below]
        return replace(node, value=tuple(items))
    if not isinstance(node.value, Mapping):
        return node
    kept = dict(node.value)
    below = made
    if rest:
        found = kept.get(head)
        if found is None or found.value is None:
            found = Node(value={})
        below = put(found, tuple(rest), made)
    if below is None:
        kept.pop(head, None)
    else:
        kept[head] = below
    return replace(node, value=kept)


def leaves(node: Node, place: Place = ()) -> Iterator[tuple[Place, Node]]:
    """Every scalar, and every empty mapping or list, with its place."""
    match node.value:
        case Mapping() as items if items:
            for key, item in items.items():
                yield from leaves(item, (*place, key))
        case tuple() as items if items:
            for index, item in enumerate(items):
                yield from leaves(item, (*place, index))
        case _:
            yield place, node


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to tell the operator: one line with file, line, key path, and no secret."""

    text: str
    place: Place = ()
    source: Source = DEFAULT

    def __str__(self) -> str:
        parts = [place_text(self.place), self.text]
        if self.source.file:
            parts.insert(0, f"{self.source.file}:{self.source.line}")
        line = ": ".join(part for part in parts if part)
        if self.source.variables:
            line += f" (comes from the environment: {', '.join(self.source.variables)})"
        return line
