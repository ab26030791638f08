"""Options of the built-in datasources. No driver is imported here, and no file is looked at."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from polytope_server.config.section import DatasourceSection, HomePath, Size, Text
from polytope_server.request import Verb

_SCHEMA = "a mapping whose `schema` is a path, the schema itself as text, or {inline: TEXT}"
_NO_GIT = (
    "without a schema from git, which this version does not fetch: put the schema where workers "
    "can read it and give its path, or write it here as {inline: TEXT}"
)
_SPACES = (
    "a mapping whose `spaces` is a list of spaces, each with a list of `roots: [{path: PATH}]`"
)


def _fdb(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if not value:
        raise ValueError(
            "a mapping with FDB's own configuration, such as {type: remote, host: ...}"
        )
    for part in mappings(value):
        _check_schema(part.get("schema", ""))
        if "spaces" in part and not _are_spaces(part["spaces"]):
            raise ValueError(_SPACES)
    return value


def _check_schema(schema: Any) -> None:
    match schema:
        case str():
            return
        case {"git": _}:
            raise ValueError(_NO_GIT)
        case {"inline": str(text)} if len(schema) == 1 and text.strip():
            return
    raise ValueError(_SCHEMA)


def _are_spaces(spaces: Any) -> bool:
    return isinstance(spaces, list | tuple) and all(
        isinstance(space, Mapping)
        and isinstance(roots := space.get("roots", []), list | tuple)
        and all(isinstance(root, Mapping) and isinstance(root.get("path"), str) for root in roots)
        for space in spaces
    )


def schema_text(schema: Any) -> str | None:
    """The schema if it is written out in the configuration, None if it is a path."""
    match schema:
        case {"inline": str(text)}:
            return text
        case str() if "\n" in schema.strip() or schema.lstrip().startswith("["):
            return schema
    return None


def mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """A mapping and all that lie in it: FDB's configurations may hold others (``fdbs``, ``lanes``)."""
    match value:
        case Mapping():
            yield value
            for item in value.values():
                yield from mappings(item)
        case list() | tuple():
            for item in value:
                yield from mappings(item)


class FdbConfig(DatasourceSection):
    """``type: fdb``"""

    verbs: ClassVar[frozenset[Verb]] = frozenset({Verb.RETRIEVE, Verb.ARCHIVE})

    fdb_config: Annotated[Mapping[str, Any], AfterValidator(_fdb)] = Field(repr=False)
    """What FDB itself is configured with; `config` is another name for it."""
    fdb_home: HomePath = Path("/opt/fdb")
    """What ``~fdb`` stands for in FDB's paths."""
    max_fields: int = Field(default=100_000, ge=1)
    """The most fields that one request may name."""
    max_message: Size = Field(default=256 << 20, ge=1)
    """Bytes of the largest GRIB message that is archived; so much is held in memory."""
    buffer: Size = Field(default=2 << 20, ge=1 << 10, le=64 << 20)
    """Bytes that are read at once."""

    @model_validator(mode="before")
    @classmethod
    def _other_name(cls, options: Any) -> Any:
        if isinstance(options, Mapping) and "config" in options and "fdb_config" not in options:
            options = dict(options)
            options["fdb_config"] = options.pop("config")
        return options


class EchoConfig(DatasourceSection):
    """``type: echo``"""

    verbs: ClassVar[frozenset[Verb]] = frozenset({Verb.RETRIEVE, Verb.ARCHIVE})
    takes_free_text: ClassVar[bool] = True


class DummyConfig(DatasourceSection):
    """``type: dummy``"""

    takes_free_text: ClassVar[bool] = True

    max_bytes: Size = Field(default=1 << 40, ge=0)
    """The most that may be asked for."""
    chunk: Size = Field(default=1 << 20, ge=1, le=64 << 20)
    """Bytes that are handed on at once."""
    bytes_per_second: Size | None = Field(default=None, ge=1)
    """How fast the bytes come; as fast as they can unless given. For trying out slow archives."""


class RaiseConfig(DatasourceSection):
    """``type: raise``"""

    verbs: ClassVar[frozenset[Verb]] = frozenset({Verb.RETRIEVE, Verb.ARCHIVE})
    takes_free_text: ClassVar[bool] = True

    error_message: Text = "This datasource always fails."
    """What the user is told."""
    mode: Literal["error", "crash", "exit", "hang", "memory"] = "error"
    """How it fails, for trying out what a worker does about it: with the message; by a segmentation
    fault; by ending its process; by never answering; by taking all the memory it can get."""
