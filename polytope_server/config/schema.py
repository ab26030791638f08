"""The models as one JSON schema, for editors that check YAML while it is written."""

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from importlib import import_module
from itertools import pairwise
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from polytope_server.config.builtin import ANNOUNCED, SECTIONS
from polytope_server.config.model import CHOICES, Config
from polytope_server.config.realms import AUTH_O_TRON
from polytope_server.config.section import DatasourceSection, Section

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_WORDS = {"ge": "minimum", "le": "maximum"}


class _Schema(GenerateJsonSchema):
    """Without the titles that only repeat the names of keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - as inherited
        return False


def schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a whole configuration.

    A configuration may be spread over several files, so no section is required at the top. Keys that
    are not known are allowed, as loading only warns of them.
    """
    backends = {name: _class(path) for name, path in SECTIONS.items()}
    models: list[type[Section]] = [Config, DatasourceSection, *set(backends.values())]
    references, whole = models_json_schema(
        [(model, "validation") for model in models],
        by_alias=True,
        ref_template="#/$defs/{model}",
        schema_generator=_Schema,
    )
    definitions: dict[str, Any] = whole["$defs"]
    for model in _with_parts(models):
        if model.__name__ in definitions:
            _describe(model, definitions[model.__name__])
    root = definitions.pop(references[Config, "validation"]["$ref"].rpartition("/")[2])
    properties = root["properties"]
    for abstraction in CHOICES:
        properties[abstraction] = {
            **properties[abstraction],
            **_one_backend(abstraction, backends, references),
        }
        for made in ("anyOf", "$ref", "default"):
            properties[abstraction].pop(made, None)
    alone = references[backends["authentication", AUTH_O_TRON], "validation"]
    properties["authentication"]["properties"] = {AUTH_O_TRON: alone}
    entry = definitions["DatasourceSection"]
    _allow_datasources(properties, definitions, entry)
    definitions.pop("Choice", None)  # replaced by the back-ends that may be chosen
    return {
        "$schema": _DIALECT,
        "title": "Configuration of polytope-server",
        **{key: _standard(value) for key, value in root.items() if key != "title"},
        "$defs": _standard(definitions),
    }


def _standard(part: Any) -> Any:
    """The same in the standard's own words, and without defaults that say nothing."""
    match part:
        case Mapping():
            return {
                _WORDS.get(key, key): _standard(value)
                for key, value in part.items()
                if not (key == "default" and value is None)
            }
        case list():
            return [_standard(item) for item in part]
    return part


def _class(path: str) -> type[Section]:
    module, _, name = path.partition(":")
    found: type[Section] = getattr(import_module(module), name)
    return found


def _one_backend(
    abstraction: str,
    backends: Mapping[tuple[str, str], type[Section]],
    references: Mapping[Any, Any],
) -> dict[str, Any]:
    options: dict[str, Any] = {
        name: references[model, "validation"]
        for (group, name), model in backends.items()
        if group == abstraction
    }
    announced = {name: {"type": "object"} for name in sorted(ANNOUNCED.get(abstraction, ()))}
    return {
        "description": "Exactly one back-end, with its options",
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {**options, **announced},
        "additionalProperties": {"type": "object"},
    }


def _allow_datasources(
    properties: dict[str, Any], definitions: dict[str, Any], entry: dict[str, Any]
) -> None:
    """Entries are parts of a datasource: what is missing may be inherited, null takes away."""
    rules = {
        "type": "object",
        "additionalProperties": {"type": ["string", "number", "boolean", "array", "null"]},
    }
    entry.pop("required", None)
    names = {"type": "array", "items": {"type": "string"}}
    entry["properties"] |= {
        "match": {**entry["properties"]["match"], **rules},
        "parents": {"anyOf": [{"type": "string"}, names], "description": "Inherited from"},
    }
    reference = {"$ref": "#/$defs/DatasourceSection"}
    properties["datasources"] = {
        "description": "By name; collections use them, and they inherit from each other",
        "type": "object",
        "additionalProperties": {"anyOf": [reference, {"type": "null"}]},
    }
    listed = definitions["CollectionSection"]["properties"]["datasources"]
    listed["items"] = {"anyOf": [{"type": "string"}, {**reference, "required": ["name"]}]}


def _with_parts(models: Iterable[type[Section]]) -> Iterable[type[Section]]:
    """The models and the sections that they consist of, as far as their modules hold them."""
    modules = dict.fromkeys(inspect.getmodule(model) for model in models)
    for module in modules:
        for found in vars(module).values():
            if inspect.isclass(found) and issubclass(found, Section):
                yield found


def _describe(model: type[Section], definition: dict[str, Any]) -> None:
    """Put the texts that stand below the fields in the source into the schema."""
    for owner in reversed(model.__mro__):
        if not (inspect.isclass(owner) and issubclass(owner, Section)) or owner is Section:
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
        (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
        for before, after in pairwise(body):
            match before, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str() as text)),
                ) if name in model.model_fields:
                    key = model.model_fields[name].alias or name
                    description = " ".join(inspect.cleandoc(text).split())
                    definition["properties"][key].setdefault("description", description)
