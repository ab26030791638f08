"""The base of every section of the configuration, and the types its values have."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr, ValidationError

from polytope_server.errors import ConfigurationError
from polytope_server.request import Verb

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?", re.ASCII | re.IGNORECASE)
_SECONDS = (86400, 3600, 60, 1)


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
            seconds = float(
                sum(int(n) * unit for n, unit in zip(match.groups(), _SECONDS, strict=True) if n)
            )
        elif re.fullmatch(r"\d+(?:\.\d+)?", text, re.ASCII):
            seconds = float(text)
        else:
            raise ValueError("a duration such as 90s or 1d12h (units d h m s, in this order)")
    if not 0 <= seconds < 1e10:
        raise ValueError("a duration that is not negative and below 300 years")
    return seconds


def size_bytes(value: Any) -> int:
    """Bytes from ``10G``, ``1.5 GiB``, ``100kB`` (all 1024-based) or a plain number of bytes."""
    if isinstance(value, bool):
        raise ValueError("a size such as 10G or 512MiB, or a number of bytes")  # noqa: TRY004
    match = _SIZE.fullmatch(str(value).strip())
    if not match:
        raise ValueError("a size such as 10G or 512MiB (units K M G T P, 1024-based)")
    power = " KMGTP".index(match[2].upper() or " ")
    return int(float(match[1]) * 1024**power)


Duration = Annotated[float, BeforeValidator(duration_s)]
"""Seconds."""
Size = Annotated[int, BeforeValidator(size_bytes)]
"""Bytes."""
Secret = Annotated[SecretStr, BeforeValidator(lambda v: str(v) if isinstance(v, int | float) else v)]
"""Text that no `repr` and no log shows."""


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys kept aside for `unknown_keys`, errors in our words."""

    model_config = ConfigDict(
        frozen=True, extra="allow", populate_by_name=True, hide_input_in_errors=True
    )

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
        known = [info.alias or name for name, info in type(self).model_fields.items()]
        for key in self.model_extra or {}:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            yield f"{where}.{key}: unknown key{hint}".removeprefix(".")
        for name, info in type(self).model_fields.items():
            yield from _unknown_below(getattr(self, name), f"{where}.{info.alias or name}")


def _unknown_below(value: Any, where: str) -> Iterator[str]:
    match value:
        case Section():
            yield from value.unknown_keys(where.removeprefix("."))
        case Mapping():
            for key, item in value.items():
                yield from _unknown_below(item, f"{where}.{key}")
        case list() | tuple():
            for index, item in enumerate(value):
                yield from _unknown_below(item, f"{where}[{index}]")


def explain(error: ValidationError, *, where: str) -> Iterator[str]:
    """Each fault of a section in our words: place and expected shape, never the value."""
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        place = ".".join([where, *(str(part) for part in fault["loc"])]).strip(".")
        kind, text = fault["type"], fault["msg"]
        if kind == "missing":
            yield f"{place}: this key is missing"
        elif kind == "value_error":
            yield f"{place}: must be {text.removeprefix('Value error, ')}"
        elif text.startswith("Input should be"):
            yield f"{place}: must be {text.removeprefix('Input should be ')}"
        else:
            yield f"{place}: {text[:1].lower()}{text[1:]}"


class DatasourceSection(Section):
    """What every datasource's options begin with, and what kinds of requests its type takes."""

    verbs: ClassVar[frozenset[Verb]] = frozenset({Verb.RETRIEVE})
    takes_feature: ClassVar[bool] = False
    """Whether requests must hold a `feature`; if not, none may."""
    takes_free_text: ClassVar[bool] = False
    """Whether requests need not be a mapping of keys."""

    type: str
    name: str = ""
