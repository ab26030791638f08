"""What was asked of a MongoDB server, and whether its indexes answer that."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pymongo.monitoring
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

Command = Mapping[str, Any]
Key = Sequence[tuple[str, int]]

_ASKING: Final = ("find", "aggregate", "distinct", "count", "update", "findAndModify", "delete")
_OF_THE_CONNECTION: Final = frozenset(
    {"lsid", "$db", "$clusterTime", "$readPreference", "txnNumber", "maxTimeMS", "readConcern"}
    | {"writeConcern", "apiVersion"}
)


class Listener(CommandListener):
    """Hears of commands before they are sent, and when they are over."""

    def started(self, event: CommandStartedEvent) -> None: ...

    def succeeded(self, event: CommandSucceededEvent) -> None: ...

    def failed(self, event: CommandFailedEvent) -> None: ...


class Recorder(Listener):
    """Every command to one database, while it records."""

    def __init__(self, database: str) -> None:
        self._database = database
        self.commands: list[Command] = []
        self.is_recording = False

    def started(self, event: CommandStartedEvent) -> None:
        name = event.command_name
        if self.is_recording and event.database_name == self._database and name in _ASKING:
            self.commands.append(
                {k: v for k, v in event.command.items() if k not in _OF_THE_CONNECTION}
            )

    @contextmanager
    def recording(self) -> Iterator[list[Command]]:
        """What is asked meanwhile."""
        self.commands = []
        self.is_recording = True
        try:
            yield self.commands
        finally:
            self.is_recording = False


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Clients that are made meanwhile tell it of their commands, for as long as they live."""
    pymongo.monitoring.register(listener)
    try:
        yield
    finally:
        # there is no other way to take one back
        pymongo.monitoring._LISTENERS.command_listeners.remove(listener)


@dataclass(frozen=True, slots=True)
class Question:
    """Which documents a command looks for, in which order, and how many of them."""

    collection: str
    filter: Command
    sort: Key = ()
    limit: int = 0
    groups: bool = False
    """Whether all that fit are wanted, to be counted."""
    command: Command = field(default_factory=dict)


def questions(command: Command) -> Iterator[Question]:
    """One for each part of a command; those that are about documents by their ids are none."""
    (name, collection), *_ = command.items()
    found: list[Question] = []
    match name:
        case "find":
            sort = tuple(command.get("sort", {}).items())
            limit = command.get("limit", 0)
            found = [Question(collection, command.get("filter", {}), sort, limit)]
        case "aggregate":
            found = [_of_pipeline(collection, command["pipeline"])]
        case "distinct":
            found = [Question(collection, command.get("query", {}), groups=True)]
        case "count":
            found = [Question(collection, command.get("query", {}), groups=True)]
        case "update":
            found = [Question(collection, part["q"]) for part in command["updates"]]
        case "delete":
            found = [Question(collection, part["q"]) for part in command["deletes"]]
        case "findAndModify":
            sort = tuple(command.get("sort", {}).items())
            found = [Question(collection, command["query"], sort, 1)]
    for question in found:
        if not _names_ids(question.filter):
            yield Question(
                question.collection,
                question.filter,
                question.sort,
                question.limit,
                question.groups,
                command,
            )


def _of_pipeline(collection: str, stages: Sequence[Command]) -> Question:
    matched: dict[str, Any] = {}
    sort: Key = ()
    limit, groups = 0, False
    for stage in stages:
        ((name, value),) = stage.items()
        match name:
            case "$match":
                assert not matched.keys() & value.keys(), "two conditions on one field"
                matched |= value
            case "$sort":
                sort = tuple(value.items())
            case "$limit":
                limit = value
            case "$group":
                groups = True
    return Question(collection, matched, sort, limit, groups)


def _names_ids(condition: Command) -> bool:
    wanted = condition.get("_id")
    return isinstance(wanted, str) or (isinstance(wanted, Mapping) and set(wanted) == {"$in"})


def serving(question: Question, indexes: Mapping[str, Key]) -> list[str]:
    """The indexes that have what is asked for in one piece for each combination of what must be equal,
    and there in the order that is asked for: none of them makes the server sort, or read on after the last
    that it gives."""
    return [name for name, key in indexes.items() if _serves(question, key)]


def _serves(question: Question, key: Key) -> bool:
    rest = list(key)
    while rest and _is_equality(question.filter.get(rest[0][0])):
        rest.pop(0)
    bound = len(rest) < len(key)
    wanted = [(name, way) for name, way in question.sort if name not in _equal(question.filter)]
    same = rest[: len(wanted)] == wanted
    inverse = rest[: len(wanted)] == [(name, -way) for name, way in wanted]
    in_order = not wanted or same or inverse
    first = rest[0][0] if rest else ""
    some = bound or _is_range(question.filter.get(first)) or bool(wanted and question.limit)
    return in_order and some


def _equal(condition: Command) -> set[str]:
    return {name for name, value in condition.items() if _is_equality(value)}


def _is_equality(value: Any) -> bool:
    if isinstance(value, Mapping):
        return set(value) == {"$in"}
    return value is not None


def _is_range(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(set(value) & {"$gt", "$gte", "$lt", "$lte"})


def stages(plan: Any) -> Iterator[str]:
    """The names of all stages of an explanation."""
    if isinstance(plan, Mapping):
        if isinstance(plan.get("stage"), str):
            yield plan["stage"]
        for value in plan.values():
            yield from stages(value)
    elif isinstance(plan, list):
        for value in plan:
            yield from stages(value)
