"""What the models say about a tree: which keys nobody reads, what is left out, what is secret."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BeforeValidator, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from polytope_server.config.section import (
    Place,
    Section,
    duration_s,
    duration_text,
    nearest,
    size_bytes,
    size_text,
)
from polytope_server.config.tree import DEFAULT, Node

Report = Callable[[Place, str], None]
"""Told of each unknown key: its place, and a text."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """The part of a type that matters here."""

    type: Any
    arguments: tuple[Any, ...] = ()
    writes: Callable[[Any], str] | None = None


def complete(section: type[Section], node: Node, place: Place, report: Report) -> Node:
    """The same mapping with what was left out, as a default, and with secrets hidden.

    Whatever is not of the shape that the model has is left as it is; that is for the model to say.
    """
    if not isinstance(node.value, Mapping):
        return node
    rest = dict(node.value)
    made: dict[str, Node] = {}
    for name, info in section.model_fields.items():
        key = next((k for k in (info.alias, name) if k and k in rest), info.alias or name)
        written = rest.pop(key, None)
        if written is not None:
            shape = _shape(info.annotation, tuple(info.metadata))
            made[key] = _complete(shape, written, (*place, key), report)
        elif (default := _default(info, (*place, key), report)) is not None:
            made[key] = default
    known = [info.alias or name for name, info in section.model_fields.items()]
    for key, item in rest.items():
        report((*place, key), f"unknown key{nearest(key, known)}")
        made[key] = item
    return replace(node, value=made)


def _complete(shape: _Shape, node: Node, place: Place, report: Report) -> Node:
    if shape.type in (SecretStr, SecretBytes):
        return replace(node, is_hidden=True)
    if isinstance(shape.type, type) and issubclass(shape.type, Section):
        return complete(shape.type, node, place, report)
    match node.value:
        case Mapping() as items if len(shape.arguments) == 2:
            inner = _shape(shape.arguments[1])
            made = {k: _complete(inner, v, (*place, k), report) for k, v in items.items()}
            return replace(node, value=made)
        case tuple() as items if shape.arguments:
            inner = _shape(shape.arguments[0])
            listed = (_complete(inner, v, (*place, i), report) for i, v in enumerate(items))
            return replace(node, value=tuple(listed))
    return node


def _shape(annotation: Any, metadata: tuple[Any, ...] = ()) -> _Shape:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _shape(inner, (*more, *metadata))
    if origin in (Union, UnionType):
        options = [option for option in get_args(annotation) if option is not NoneType]
        return _shape(options[0], metadata) if len(options) == 1 else _Shape(annotation)
    readers = {item.func for item in metadata if isinstance(item, BeforeValidator)}
    writes: Callable[[Any], str] | None = None
    if duration_s in readers:
        writes = duration_text
    elif size_bytes in readers:
        writes = size_text
    return _Shape(origin or annotation, get_args(annotation), writes)


def _default(info: FieldInfo, place: Place, report: Report) -> Node | None:
    if info.annotation is Any or info.is_required():
        return None
    shape = _shape(info.annotation, tuple(info.metadata))
    if isinstance(shape.type, type) and issubclass(shape.type, Section):
        return complete(shape.type, Node(value={}), place, report)
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return None
    if value is not None and shape.writes:
        value = shape.writes(value)
    return _node(value)


def _node(value: Any) -> Node:
    match value:
        case None | bool() | int() | str():
            return Node(value=value, source=DEFAULT)
        case SecretStr() | SecretBytes():
            return Node(value="", source=DEFAULT, is_hidden=True)
        case Mapping():
            return Node(value={str(k): _node(v) for k, v in value.items()}, source=DEFAULT)
        case list() | tuple() | set() | frozenset():
            return Node(value=tuple(_node(item) for item in value), source=DEFAULT)
        case _:
            return Node(value=str(value), source=DEFAULT)
