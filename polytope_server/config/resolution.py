"""Datasources with what they inherit: parents, the entry itself, and what a collection adds to it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from polytope_server.config.section import Place, nearest
from polytope_server.config.tree import Node, merge, without_nulls
from polytope_server.errors import ConfigurationError

PARENTS = "parents"
NAME = "name"
MATCH = "match"
PATCH = "patch"
ROLES = "roles"


class _Circle(ConfigurationError):
    """Datasources that are parents of each other, in this order."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"parents go round in a circle: {' -> '.join(names)}")
        self.members = frozenset(names)


class _NoNames(ConfigurationError):
    """What stands under ``parents`` is no list of names."""


@dataclass(frozen=True, slots=True)
class Datasources:
    """The entries under ``datasources``, by name, nulls and all."""

    entries: Mapping[str, Node]

    def faults(self) -> Iterator[tuple[Place, str]]:
        """What is wrong with the entries themselves: their shape, their parents, circles."""
        circles: set[frozenset[str]] = set()
        for name, entry in self.entries.items():
            if entry.value is None:
                continue
            if not isinstance(entry.value, Mapping):
                yield (name,), "must be a mapping of keys to values"
                continue
            try:
                for parent in self._parents(name):
                    if not self._has(parent):
                        yield (name, PARENTS), self._missing(parent)
                self.lineage(name)
            except _Circle as exc:
                if exc.members not in circles:
                    yield (name, PARENTS), str(exc)
                circles.add(exc.members)
            except _NoNames as exc:
                yield (name, PARENTS), str(exc)

    @property
    def inherited(self) -> frozenset[str]:
        """Names of those that others inherit from, or would, if they were there."""
        return frozenset(
            str(parent.value)
            for entry in self.entries.values()
            if (parents := entry.children.get(PARENTS)) is not None
            for parent in (parents.items or (parents,))
        )

    def lineage(self, name: str) -> Sequence[str]:
        """All ancestors of a datasource and itself: ancestors first, each once, parents in their order.

        Raises:
            ConfigurationError: there is no such datasource; or its parents go round in a circle, or
                are not a list of names. Parents that do not exist are left out.
        """
        if not self._has(name):
            raise ConfigurationError(self._missing(name))
        order: dict[str, None] = {}
        path: list[str] = [name]
        pending: list[Iterator[str]] = [iter(self._parents(name))]
        while pending:
            parent = next(pending[-1], None)
            if parent is None:
                pending.pop()
                order[path.pop()] = None
            elif parent in path:
                raise _Circle([*path[path.index(parent) :], parent])
            elif parent not in order and self._has(parent):
                path.append(parent)
                pending.append(iter(self._parents(parent)))
        return list(order)

    def _has(self, name: str) -> bool:
        entry = self.entries.get(name)
        return entry is not None and entry.value is not None

    def _missing(self, name: str) -> str:
        return f"there is no {name!r} under datasources{nearest(name, self.entries)}"

    def _parents(self, name: str) -> Sequence[str]:
        parents = self.entries[name].children.get(PARENTS)
        if parents is None or parents.value is None:
            return ()
        listed = parents.items if isinstance(parents.value, tuple) else (parents,)
        if not all(type(parent.value) in (str, int) for parent in listed):
            raise _NoNames("must be a list of names of datasources")
        return [str(parent.value) for parent in listed]

    def resolve(self, name: str, *, own: Node | None = None) -> Node:
        """A datasource with all that it inherits; *own* is what the collection says over it.

        Nulls have removed what was inherited and still stand in its place, for `needless_nulls` and
        `settled`. `name` is part of the result; `parents` is not.

        Raises:
            ConfigurationError: see `lineage`.
        """
        merged = Node(value={})
        for ancestor in self.lineage(name):
            # an entry that replaces those of earlier files still inherits from its parents
            merged = merge(merged, replace(self.entries[ancestor], replaces=False))
        if own is not None:
            merged = merge(merged, replace(own, replaces=False))
        source = own.source if own is not None else merged.source
        kept = {key: item for key, item in merged.children.items() if key not in (PARENTS, NAME)}
        return replace(merged, value={NAME: Node(value=name, source=source), **kept})


def needless_nulls(resolved: Node) -> Iterator[str]:
    """Keys of ``match`` that are null although there is no inherited rule to remove."""
    match = resolved.children.get(MATCH)
    for key, rule in match.children.items() if match else ():
        if rule.value is None and not rule.replaces:
            yield key


def needless_below(node: Node | None) -> Iterator[Place]:
    """Places, below a mapping, of nulls that take nothing away."""
    for key, item in node.children.items() if node else ():
        if item.value is None and not item.replaces:
            yield (key,)
        for inner in needless_below(item):
            yield (key, *inner)


def opens_by_null(resolved: Node) -> bool:
    """Whether all realms of a datasource's roles were taken away one by one: everybody would get in."""
    roles = resolved.children.get(ROLES)
    realms = roles.children.values() if roles else ()
    return bool(realms) and all(realm.value is None for realm in realms)


def settled(entry: Node) -> Node:
    """A datasource without nulls, except those that stand directly in ``patch``."""
    patch = entry.children.get(PATCH)
    kept = without_nulls(entry)
    if patch is None or not isinstance(patch.value, Mapping):
        return kept
    rules = {
        key: rule if rule.value is None else without_nulls(rule)
        for key, rule in patch.value.items()
    }
    return replace(kept, value={**kept.children, PATCH: replace(patch, value=rules)})
