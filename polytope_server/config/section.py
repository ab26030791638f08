"""The base of every section of the configuration, and the types its values have."""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
    WithJsonSchema,
)

from polytope_server.errors import ConfigurationError
from polytope_server.request import Verb

Place = tuple[str | int, ...]
"""Keys and list indices from the root, or from a section, down to a value."""

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?", re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_LONGEST_S = 1e10
_LARGEST_BYTES = 1 << 62


def duration_s(value: Any) -> float:
    """Seconds from ``1d2h30m10s`` (units in this order), or from a plain number of seconds."""
    if isinstance(value, bool):
        raise ValueError("a duration such as 90s or 1d12h, or a number of seconds")  # noqa: TRY004
    if isinstance(value, int | float):
        seconds = float(value)
    else:
        text = str(value).strip()
        match = _DURATION.fullmatch(text)
        if match and text:
            pairs = zip(match.groups(), _UNITS, strict=True)
            seconds = sum(float(count) * unit for count, (_, unit) in pairs if count)
        elif re.fullmatch(r"\d+(?:\.\d+)?", text, re.ASCII):
            seconds = float(text)
        else:
            raise ValueError("a duration such as 90s or 1d12h (units d h m s, in this order)")
    if not 0 <= seconds < _LONGEST_S:
        raise ValueError("a duration that is not negative and below 300 years")
    return seconds


def duration_text(seconds: float) -> str:
    """The inverse of `duration_s`, as an operator would write it: ``1d12h``, ``0.5``."""
    if seconds != int(seconds) or seconds == 0:
        return f"{seconds:g}"
    parts, rest = [], int(seconds)
    for name, unit in _UNITS:
        count, rest = divmod(rest, unit)
        parts.append(f"{count}{name}" if count else "")
    return "".join(parts)


def size_bytes(value: Any) -> int:
    """Bytes from ``10G``, ``1.5 GiB``, ``100kB`` (all 1024-based) or a plain number of bytes."""
    if isinstance(value, bool):
        raise ValueError("a size such as 10G or 512MiB, or a number of bytes")  # noqa: TRY004
    match = _SIZE.fullmatch(str(value).strip())
    if not match:
        raise ValueError("a size such as 10G or 512MiB (units K M G T P, 1024-based)")
    size = float(match[1]) * 1024 ** " KMGTP".index(match[2].upper() or " ")
    if size > _LARGEST_BYTES:
        raise ValueError("a size below 4096P")
    # through float only where there is a fraction: plain numbers of bytes stay exact
    return int(match[1]) if match[1].isdigit() and not match[2] else int(size)


def size_text(size: int) -> str:
    """The inverse of `size_bytes`, as an operator would write it: ``10G``, ``1000``."""
    for unit in ("P", "T", "G", "M", "K"):
        whole, rest = divmod(size, 1024 ** " KMGTP".index(unit))
        if whole and not rest:
            return f"{whole}{unit}"
    return str(size)


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    raise ValueError("a whole number")


def _secret(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def _plain_text(value: Any) -> str:
    # YAML types what looks like a number; where text is wanted, that is what was meant
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError("text")


def _role_names(value: Any) -> tuple[str, ...]:
    names = value if isinstance(value, list | tuple) else (value,)
    if not all(_is_role(name) for name in names):
        raise ValueError("a role, a list of roles, or a mapping of realms to roles")
    return tuple(str(name) for name in names)


def _is_role(name: Any) -> bool:
    return isinstance(name, str | int) and not isinstance(name, bool) and name != ""


def _roles(value: Any) -> Mapping[str, tuple[str, ...]] | tuple[str, ...]:
    if isinstance(value, Mapping):
        return {str(k): _role_names(v) for k, v in value.items()}
    return _role_names(value)


def is_address(url: str, *, schemes: Collection[str] = ("http", "https")) -> bool:
    """Whether a text is an address of a server, without user, query and fragment; it may have a path."""
    try:
        parts = urlsplit(url)
        # reading the port checks it
        usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    is_plain = "@" not in parts.netloc and not parts.query and not parts.fragment
    return usable and is_plain and url.isprintable()


def at_home(path: Path) -> Path:
    """With a home directory in place of a ``~`` that it begins with."""
    try:
        return path.expanduser()
    except RuntimeError:  # nobody knows whose; in a file such a ~ stays as well
        return path


Duration = Annotated[
    float,
    BeforeValidator(duration_s),
    WithJsonSchema({"type": ["string", "number"], "examples": ["1d12h", "90s", 0.5]}),
]
"""Seconds."""
Size = Annotated[
    int,
    BeforeValidator(size_bytes),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["10G", "512MiB", 4096]}),
]
"""Bytes."""
Secret = Annotated[SecretStr, BeforeValidator(_secret)]
"""Text that no `repr` and no log shows."""
Whole = Annotated[int, BeforeValidator(_whole), WithJsonSchema({"type": ["integer", "string"]})]
"""A whole number, which may come as text out of the environment."""
Text = Annotated[
    str,
    BeforeValidator(_plain_text),
    WithJsonSchema({"type": ["string", "number", "boolean"]}),
]
"""Text; what YAML takes for a number or a truth value is text again."""
HomePath = Annotated[Path, AfterValidator(at_home)]
"""A path; a ``~`` that it begins with is a home directory, also if it came out of a variable."""
Roles = Annotated[
    Mapping[str, tuple[str, ...]] | tuple[str, ...],
    PlainValidator(_roles),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {
                    "type": "object",
                    "additionalProperties": {
                        "anyOf": [
                            {"type": "string"},
                            {"type": "array", "items": {"type": "string"}},
                        ]
                    },
                },
            ]
        }
    ),
]
"""Who may: a mapping of realms to roles, or a tuple of roles that hold in every realm."""


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys kept aside for `unknown_keys`, errors in our words."""

    model_config = ConfigDict(
        frozen=True, extra="allow", populate_by_name=True, hide_input_in_errors=True
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        # not the unknown keys: one of them may be a misspelt password
        for name, info in type(self).model_fields.items():
            if info.repr:
                yield name, getattr(self, name)

    @classmethod
    def read(cls, options: Mapping[str, Any] | None, *, where: str) -> Self:
        """A section from its plain values; *where* is its place in the configuration.

        Raises:
            ConfigurationError: names each wrong key and the shape it should have.
        """
        try:
            return cls.model_validate(dict(options or {}))
        except ValidationError as exc:
            raise ConfigurationError("\n".join(explain(exc, where=where))) from None

    def unknown_keys(self, where: str = "") -> Iterator[str]:
        """One line for each key that nobody reads, with the nearest name that somebody does."""
        for place, text in self.unknown():
            yield f"{_joined(where, place)}: {text}"

    def unknown(self) -> Iterator[tuple[Place, str]]:
        """The same as `unknown_keys`, place and text apart."""
        known = [info.alias or name for name, info in type(self).model_fields.items()]
        for key in self.model_extra or {}:
            yield (key,), f"unknown key{nearest(key, known)}"
        for name, info in type(self).model_fields.items():
            yield from _unknown_below(getattr(self, name), (info.alias or name,))


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'this'?``, or the list of what is known."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def _unknown_below(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    match value:
        case Section():
            yield from ((place + inner, text) for inner, text in value.unknown())
        case Mapping():
            for key, item in value.items():
                yield from _unknown_below(item, (*place, str(key)))
        case list() | tuple():
            for index, item in enumerate(value):
                yield from _unknown_below(item, (*place, index))


def place_text(place: Place) -> str:
    """``collections.era5.datasources[0].match``; never more than one line."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            # an unquoted hash in a flow mapping is cut at its commas, and its rest becomes a key
            is_a_name = part.isprintable() and len(part) <= 80 and not {"$", "="} & set(part)
            name = part if is_a_name else "(a key)"
            text += f".{name}" if text else name
    return text


def _joined(where: str, place: Place) -> str:
    inner = place_text(place)
    return f"{where}{'' if inner.startswith('[') or not where or not inner else '.'}{inner}"


def explain(error: ValidationError, *, where: str) -> Iterator[str]:
    """Each fault of a section in our words: place and expected shape, never the value."""
    for place, text in faults(error):
        yield f"{_joined(where, place)}: {text}"


def faults(error: ValidationError) -> Iterator[tuple[Place, str]]:
    """The same as `explain`, place and text apart."""
    for fault in error.errors(include_url=False, include_input=False):
        kind, context = fault["type"], fault.get("ctx", {})
        place = tuple(part for part in fault["loc"] if part != "[key]")
        if kind == "missing":
            yield place, "this key is missing"
        elif kind == "value_error":
            # only our own validators raise these, and their texts hold no value
            yield place, f"must be {context['error']}"
        else:
            shape = _SHAPES.get(kind, "of another shape; see docs/configuration.md")
            yield place, f"must be {shape.format_map(context)}"


_TEXT = "text"
_LIST = "a list"
_MAPPING = "a mapping of keys to values"
_WHOLE_TEXT = "a whole number"
_NUMBER = "a number"
_TRUTH = "true or false"
_SHAPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "string_type": _TEXT,
        "string_too_short": "text of at least {min_length} characters",
        "string_too_long": "text of at most {max_length} characters",
        "string_pattern_mismatch": "text of the form {pattern}",
        "list_type": _LIST,
        "tuple_type": _LIST,
        "set_type": _LIST,
        "too_short": "at least {min_length} long",
        "too_long": "at most {max_length} long",
        "dict_type": _MAPPING,
        "mapping_type": _MAPPING,
        "model_type": _MAPPING,
        "model_attributes_type": _MAPPING,
        "int_type": _WHOLE_TEXT,
        "int_parsing": _WHOLE_TEXT,
        "int_parsing_size": _WHOLE_TEXT,
        "int_from_float": _WHOLE_TEXT,
        "float_type": _NUMBER,
        "float_parsing": _NUMBER,
        "finite_number": "a finite number",
        "bool_type": _TRUTH,
        "bool_parsing": _TRUTH,
        "greater_than": "more than {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "less than {lt}",
        "less_than_equal": "at most {le}",
        "literal_error": "one of {expected}",
        "enum": "one of {expected}",
        "none_required": "nothing",
        "path_type": "a path",
        "path_not_directory": "a directory that exists",
        "path_not_file": "a file that exists",
        "url_type": "a URL",
        "url_parsing": "a URL",
        "url_scheme": "a URL that begins with {expected_schemes}",
    }
)
"""What should have been there, by pydantic's name of the fault; the names in braces are of limits."""


def is_rule(value: Any) -> bool:
    """Whether it has the shape of a rule: a value, or a list of values."""
    plain = str | int | float | bool
    return isinstance(value, plain) or (
        isinstance(value, list | tuple) and all(isinstance(item, plain) for item in value)
    )


def _rules(value: Mapping[str, Any]) -> Mapping[str, Any]:
    for key, rule in value.items():
        if not is_rule(rule):
            raise ValueError(
                f"a mapping of keys to a value or a list of values; {place_text((key,))!r} is neither"
            )
    return value


class DatasourceSection(Section):
    """What every datasource's options begin with, and what kinds of requests its type takes."""

    verbs: ClassVar[frozenset[Verb]] = frozenset({Verb.RETRIEVE})
    takes_feature: ClassVar[bool] = False
    """Whether requests must hold a `feature`; if not, none may."""
    takes_free_text: ClassVar[bool] = False
    """Whether requests need not be a mapping of keys."""

    type: Text
    """Which datasource it is."""
    name: Text = ""
    """Its own in the collection; given by the entry under ``datasources``."""
    label: Text | None = Field(default=None, alias="repr")
    """What users are shown; `name`, then `type`, if there is none."""
    roles: Roles = ()
    """Who may use it besides what the collection says; nothing here means everybody."""
    defaults: Mapping[str, Any] = Field(default_factory=dict)
    """Keys that are added to requests without them."""
    match: Annotated[Mapping[str, Any], AfterValidator(_rules)] = Field(default_factory=dict)
    """Key to the value or values it may have; an empty list means that the key must be absent."""
    patch: Mapping[str, Any] = Field(default_factory=dict)
    """Keys that are put over the request's own; null removes one."""
