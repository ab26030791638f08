"""Fields out of an FDB, and into it."""

import functools
import itertools
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

# read by the library when it is loaded; it prints backtraces of errors that are no news otherwise
for _name in ("EXCEPTION", "SERIOUS_BUG", "ASSERT_FAILED"):
    os.environ.setdefault(f"ECKIT_{_name}_IS_SILENT", "1")

import pyfdb  # noqa: E402 -- see above

from polytope_server.config.datasources import FdbConfig, mappings, schema_text  # noqa: E402
from polytope_server.datasource import Query  # noqa: E402
from polytope_server.datasource.fields import Fields, canonical, fields_of  # noqa: E402
from polytope_server.datasource.grib import mars_keys, messages  # noqa: E402
from polytope_server.errors import ConfigurationError, DatasourceFailed  # noqa: E402
from polytope_server.request import GRIB  # noqa: E402

logger = logging.getLogger(__name__)

_EXAMPLES: Final = 10
_NO_DATA: Final = "No writable roots available"
_FEW_DATABASES: Final = frozenset({"class", "expver", "date"})
"""With these given, looking for fields by some of their keys costs little."""


class FdbDatasource:
    """An FDB, local or remote, opened anew for every request. See `polytope_server.datasource.Datasource`.

    What is asked for is delivered whole or not at all, as the fields are stored. What is archived
    must be what the request says, field by field.
    """

    media_type = GRIB
    Config = FdbConfig

    def __init__(self, config: FdbConfig) -> None:
        self._config = config

    def retrieve(self, query: Query) -> Iterator[memoryview]:
        fields = fields_of(query.request, max_fields=self._config.max_fields)
        with _our_errors(query):
            fdb = self._open()
            size_bytes = _size_of_all(fdb, fields)
            read_bytes = 0
            buffer = memoryview(bytearray(self._config.buffer))
            with fdb.retrieve(fields.selection()) as handle:
                # never read(n), which fills up the last chunk with zeros
                while count := handle.readinto(buffer):
                    read_bytes += count
                    yield buffer[:count]
        if read_bytes != size_bytes:
            raise DatasourceFailed(
                "The fields changed in the archive while they were read; submit the request again."
            )

    def archive(self, query: Query, data: Path) -> None:
        """Everything is checked before anything is kept; what a full disk cuts off may have been kept."""
        fields = fields_of(query.request, max_fields=self._config.max_fields)
        limit = self._config.max_message
        _check_data(fields, messages(data, max_message_bytes=limit))
        with _our_errors(query):
            fdb = self._open()
            for message in messages(data, max_message_bytes=limit):
                fdb.archive(message)
            fdb.flush()

    def _open(self) -> Any:
        # pyfdb has no type hints
        for part in mappings(self._config.fdb_config):
            _make_roots(part)
        return pyfdb.FDB(
            {"fdb_home": str(self._config.fdb_home), **_plain(self._config.fdb_config)}
        )


def _make_roots(part: Mapping[str, Any]) -> None:
    """FDB makes what is below its roots, but not these."""
    for space in part.get("spaces", ()):
        for root in space.get("roots", ()):
            path = Path(root["path"])
            if not str(path).startswith("~"):
                try:
                    path.mkdir(mode=0o700, parents=True, exist_ok=True)
                except OSError as exc:
                    raise ConfigurationError(
                        f"fdb_config.spaces: the root {path} is not there and cannot be made: "
                        f"{exc.strerror}"
                    ) from exc


def _plain(value: Any, *, key: str = "") -> Any:
    """FDB's configuration with a path in place of each schema that is written out."""
    if key == "schema" and (text := schema_text(value)) is not None:
        return _schema_file(text)
    match value:
        case Mapping():
            return {name: _plain(item, key=name) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case str() if key == "schema" and value and not value.startswith("~"):
            return str(Path(value).absolute())
    return value


@functools.cache
def _schema_file(text: str) -> str:
    """A file in memory that is gone with the process. FDB remembers schemas by path: one path, one text."""
    descriptor = os.memfd_create("fdb-schema")
    with os.fdopen(os.dup(descriptor), "w") as stream:
        stream.write(text)
    return f"/proc/self/fd/{descriptor}"


# --- retrieve: is everything there?


def _size_of_all(fdb: Any, fields: Fields) -> int:
    """Bytes of all these fields.

    Raises:
        DatasourceFailed: some are not there; the text lists the first few.
    """
    count, size_bytes = _found(fdb, fields)
    if count == len(fields):
        return size_bytes
    # one parameter at a time: two names of one would look like a field too few
    lacking = [
        (part, len(part) - found)
        for part in fields.each("param")
        if (found := _found(fdb, part)[0]) < len(part)
    ]
    if not lacking:
        return size_bytes
    number = sum(lack for _, lack in lacking)
    keys = fields.varying()
    examples: list[str] = []
    for part, _ in lacking:
        left = _EXAMPLES - len(examples)
        examples.extend(field.first(keys=keys) for field in _missing(fdb, part, at_most=left))
    more = f"; and {number - len(examples)} more" if number > len(examples) else ""
    if number < len(fields):
        raise DatasourceFailed(
            f"{number} of the {len(fields)} fields are not in the archive: "
            f"{'; '.join(examples)}{more}. Ask for the others alone."
        )
    what = "The field is not" if number == 1 else f"None of the {number} fields is"
    raise DatasourceFailed(
        f"{what} in the archive: {'; '.join(examples)}{more}.{_hint(fdb, fields)}"
    )


def _found(fdb: Any, fields: Fields) -> tuple[int, int]:
    """How many of these fields the archive would deliver, and their bytes.

    Raises:
        DatasourceFailed: the request has a key that the fields do not have.
    """
    steps = {canonical("step", step) for step in fields.values.get("step", ())}
    has_periods = any("-" in step for step in steps)
    count = size_bytes = 0
    for element in _elements(fdb.inspect, fields):
        key = element.combined_key()
        _check_keys(fields, key)
        # in place of a period that it does not hold FDB delivers the step where that begins
        if has_periods and canonical("step", key.get("step", "")) not in steps:
            continue
        count += 1
        size_bytes += element.length()
    return count, size_bytes


def _check_keys(fields: Fields, found: Mapping[str, str]) -> None:
    """FDB says nothing of keys that are not in its schema, and delivers as if they had not been given."""
    for key in fields.values:
        if key not in found:
            full = next((name for name in found if name.startswith(key)), None)
            advice = f"write {full} in full" if full else "leave it out"
            raise DatasourceFailed(f"The fields have no {key}; {advice}.")


def _elements(
    call: Callable[[dict[str, list[str]]], Iterator[Any]], fields: Fields
) -> Iterator[Any]:
    """What `inspect` or `list` find; nothing where FDB complains that a closed archive is empty."""
    try:
        yield from call(fields.selection())
    except RuntimeError as exc:
        if _NO_DATA not in str(exc):
            raise


def _missing(fdb: Any, fields: Fields, *, at_most: int) -> Iterator[Fields]:
    """The first of those that are not there, each alone; halves where some are and some are not."""
    parts = [fields]
    while parts and at_most > 0:
        part = parts.pop()
        if _found(fdb, part)[0] >= len(part):
            continue
        if len(part) == 1:
            at_most -= 1
            yield part
        else:
            parts.extend(reversed(part.halves()))


def _hint(fdb: Any, fields: Fields) -> str:
    """Which key may have been forgotten, if nothing is found without it."""
    left_out = sorted(_FEW_DATABASES - fields.values.keys())
    if not left_out:
        element = next(_elements(fdb.list, fields), None)
        if element is not None:
            left_out = sorted(element.combined_key().keys() - fields.values.keys())
    if not left_out:
        return ""
    return (
        " A request must give every key of its fields, and this one leaves out "
        f"{', '.join(left_out)}."
    )


# --- archive: are the data what the request says?


def _check_data(fields: Fields, data: Iterator[bytes]) -> None:
    """Each message is one of the fields, and each field one message.

    Raises:
        DatasourceFailed: names the message, the key, and the value found and wanted.
    """
    wanted = {
        key: {canonical(key, value): value for value in values}
        for key, values in fields.values.items()
    }
    seen: dict[tuple[str, ...], int] = {}
    for number, message in enumerate(data, start=1):
        field = _field_of(message, wanted, number=number)
        earlier = seen.setdefault(field, number)
        if earlier != number:
            raise DatasourceFailed(f"Messages {earlier} and {number} are the same field.")
    if len(seen) < len(fields):
        _refuse_incomplete(fields, seen.keys())


def _field_of(
    message: bytes, wanted: Mapping[str, Mapping[str, str]], *, number: int
) -> tuple[str, ...]:
    """The request's values, in the order of its keys, that a message has."""
    found = dict(mars_keys(message, number=number))
    short_name = found.pop("short_name", "")
    field = []
    for key, values in wanted.items():
        asked = _some(list(values.values()))
        if key not in found:
            raise DatasourceFailed(
                f"Message {number} has no {key}; the request says {key} {asked}."
            )
        value = found.pop(key)
        spellings = [canonical(key, value)]
        if key == "param":
            spellings.append(short_name.lower())
        match = next((values[spelling] for spelling in spellings if spelling in values), None)
        if match is None:
            name = f" ({short_name})" if key == "param" else ""
            raise DatasourceFailed(
                f"Message {number} has {key} {value}{name}; the request says {key} {asked}."
            )
        field.append(match)
    if found:
        others = ", ".join(f"{key} {value}" for key, value in found.items())
        raise DatasourceFailed(
            f"Message {number} has {others}, about which the request says nothing; "
            "it must give every key of the data."
        )
    return tuple(field)


def _refuse_incomplete(fields: Fields, seen: Collection[tuple[str, ...]]) -> NoReturn:
    names = fields.varying()
    lacking = (
        dict(zip(fields.values, combination, strict=True))
        for combination in itertools.product(*fields.values.values())
        if combination not in seen
    )
    examples = [
        ", ".join(f"{key} {field[key]}" for key in names)
        for field in itertools.islice(lacking, _EXAMPLES)
    ]
    number = len(fields) - len(seen)
    more = f"; and {number - len(examples)} more" if number > len(examples) else ""
    raise DatasourceFailed(
        f"The request names {len(fields)} fields, and the data lack {number} of them: "
        f"{'; '.join(examples)}{more}."
    )


def _some(values: Sequence[str]) -> str:
    return "/".join(values[:_EXAMPLES]) + ("/..." if len(values) > _EXAMPLES else "")


# --- errors: the library has one type for all, and texts full of paths


@contextmanager
def _our_errors(query: Query) -> Iterator[None]:
    try:
        yield
    except RuntimeError as exc:
        logger.warning("the FDB refused or failed", exc_info=True)
        raise DatasourceFailed(explained(str(exc), request_id=query.id)) from exc


def explained(text: str, *, request_id: str) -> str:
    """What a user is told in place of an FDB's error text."""
    own = text.partition(" request=")[0]
    for pattern, sentence in _SENTENCES:
        if match := pattern.search(own):
            return sentence.format(*match.groups())
    return f"The archive failed. This is not your fault; please quote request {request_id}."


_SENTENCES: Final = tuple(
    (re.compile(pattern, re.ASCII), sentence)
    for pattern, sentence in (
        (
            r"Cannot match parameter ([\w.]+)",
            "The archive knows no param {0} for this class, stream, type and levtype.",
        ),
        (r"Cannot match \[(\w+)\] in \[", "The archive knows no key {0}."),
        (r"Only one value possible for '(\w+)'", "{0} may have one value only in each request."),
        (
            r"Key \[(\w+)\] not acceptable",
            "{0} does not go together with the other keys, such as type, stream and levtype.",
        ),
        # a type may be made of others, which then stand in its brackets
        (
            r"\[name=(\w+)[^']*\]: cannot expand '([\w.:+-]*)'",
            "{0} has no value {1} that is known.",
        ),
        (
            r"Ambiguous value '([\w.:+-]*)' could be",
            "The archive does not know what {0} is short for; write it in full.",
        ),
        (
            r"missing Key \[(\w+)\] - required with context: Context\[Include\[key=(\w+)",
            "With this {1} the archive wants {0} as well; leave out {1}, or give both.",
        ),
        (r"missing Key \[(\w+)\]", "{0} is missing; the archive wants it with the other keys."),
        (
            r"(?:Bad value|Bad parameter|Assertion failed: value\b)",
            "The archive does not understand a value of the request; compare its dates, times, "
            "steps, levels and numbers with fields that are there.",
        ),
        (
            r"Could not find a rule to archive",
            "The data do not fit this archive: its schema has no place for fields with these keys.",
        ),
        (
            r"Found multiple FDB roots",
            "The archive holds these fields in two places and cannot choose; its operators must.",
        ),
        (_NO_DATA, "Nothing can be archived here at present: the archive is closed for writing."),
    )
)
