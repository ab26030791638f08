"""YAML files to trees: safe, bounded, and typed as little as possible.

Only null, true and false, and decimal integers without leading zeros are anything but text. Values
such as ``0010``, ``no``, ``10:00``, ``2024-01-05`` and ``167.128`` stay as they are written; whoever
wants a number makes it of the text. Two tags are ours: ``!replace`` on a list or mapping takes the
place of what earlier files or inheritance give, ``!file`` in front of a path stands for the text in
that file.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.composer import Composer, ComposerError
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from polytope_server.config.section import Place
from polytope_server.config.tree import Finding, Node, Scalar, Source

MAX_FILE_BYTES: Final = 8 * 1024 * 1024
MAX_VALUES: Final = 100_000
"""In one file, with what aliases stand for."""
MAX_DEPTH: Final = 50

REPLACE: Final = "!replace"
FILE: Final = "!file"

_YAML: Final = "tag:yaml.org,2002:"
_MERGE: Final = "<<"
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTH: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII)
_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
_HARMLESS: Final = re.compile(r"['\"](?:<[a-z ]+>|[^\w\s])['\"]", re.ASCII)

_OLD_TRUTH: Final = re.compile(r"yes|no|on|off", re.IGNORECASE)
_OLD_OCTAL: Final = re.compile(r"[+-]?0[0-7_]+", re.ASCII)
_OLD_BASE: Final = re.compile(r"[+-]?0(?:x[0-9a-fA-F_]+|b[01_]+)", re.ASCII)
_OLD_SIXTIES: Final = re.compile(r"[+-]?[1-9][0-9_]*(?::[0-5]?[0-9])+", re.ASCII)
_OLD_GROUPS: Final = re.compile(r"[+-]?[1-9][0-9]*_[0-9_]*", re.ASCII)


class NotReadable(Exception):
    """A file cannot be taken; `findings` say why, one line each."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__("\n".join(map(str, findings)))
        self.findings = findings


def read_file(path: Path) -> list[Node]:
    """The documents of a file that are not empty, each a mapping.

    Raises:
        FileNotFoundError: there is no such file.
        NotReadable: it cannot be read, is not YAML as we take it, or too large.
    """
    source = Source(str(path), 1)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not a path"
        raise NotReadable(Finding(f"{path}: this file cannot be read: {reason}")) from exc
    if len(data) > MAX_FILE_BYTES:
        raise NotReadable(Finding(f"longer than {MAX_FILE_BYTES >> 20} MiB", source=source))
    return read(data, file=str(path))


def read(data: bytes, *, file: str) -> list[Node]:
    """The documents in *data* that are not empty, each a mapping; *file* is its name in messages.

    Raises:
        NotReadable: see `read_file`.
    """
    builder = _Builder(file)
    documents = [builder.node(raw, ()) for raw in _compose(data, file=file)]
    kept = [node for node in documents if node.value is not None]
    for node in kept:
        if not isinstance(node.value, Mapping):
            text = "a document must be a mapping of sections, such as 'frontend: {port: 5000}'"
            builder.findings.append(Finding(text, (), node.source))
    if builder.findings:
        raise NotReadable(*builder.findings)
    return kept


def _compose(data: bytes, *, file: str) -> Iterator[yaml.Node]:
    line = 1
    try:
        loader = _Loader(data)
        while loader.check_node():
            document = loader.get_node()
            if document is not None:
                line = document.start_mark.line + 1
                yield document
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else line
        raise NotReadable(Finding(_not_yaml(exc), source=Source(file, line))) from None
    except ReaderError as exc:
        # `data` has no lines here if it could not even be decoded
        before = data[: exc.position] if isinstance(exc.position, int) else b""
        text = "not UTF-8 text, or holds control characters"
        raise NotReadable(Finding(text, source=Source(file, before.count(b"\n") + 1))) from None
    except (ValueError, OverflowError) as exc:
        # PyYAML lets them through for numbers out of range in escapes and %YAML lines
        text = "not valid YAML: an escape or a version number is out of range"
        raise NotReadable(Finding(text, source=Source(file, line))) from exc


def _not_yaml(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "not understood"
    if problem.startswith("found undefined alias"):
        return "not valid YAML: an alias without its anchor; text that begins with * needs quotes"
    if "cannot start any token" in problem:
        return "not valid YAML: text that begins with one of % @ ` or a tab needs quotes"

    def harmless(match: re.Match[str]) -> str:
        # what is quoted comes out of the file, and may be a piece of a password
        return match[0] if _HARMLESS.fullmatch(match[0]) else "(something)"

    return f"not valid YAML: {_QUOTED.sub(harmless, problem)}"


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML up to the graph of nodes, without recursion that a file could exhaust."""

    def __init__(self, stream: bytes) -> None:
        Reader.__init__(self, stream)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._depth >= MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ComposerError(None, None, f"nested more than {MAX_DEPTH} deep", mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is not yaml.ScalarNode:
            return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]
        if not implicit[0]:
            return f"{_YAML}str"
        if value in _NULL:
            return f"{_YAML}null"
        if value in _TRUTH:
            return f"{_YAML}bool"
        return f"{_YAML}int" if _INTEGER.fullmatch(value) else f"{_YAML}str"


class _Builder:
    """From PyYAML's graph, which aliases make, to our tree; notes what is wrong and goes on."""

    def __init__(self, file: str) -> None:
        self.findings: list[Finding] = []
        self._file = file
        self._count = 0

    def node(self, raw: yaml.Node, place: Place) -> Node:
        source = self._source(raw)
        self._count += 1
        if self._count > MAX_VALUES:
            text = f"this file holds more than {MAX_VALUES} values, counting what aliases stand for"
            raise NotReadable(*self.findings, Finding(text, source=source))
        if len(place) > MAX_DEPTH:
            text = f"nested more than {MAX_DEPTH} deep, counting what aliases stand for"
            raise NotReadable(*self.findings, Finding(text, source=source))
        match raw:
            case yaml.MappingNode():
                replaces = self._replaces(raw, place, own="map")
                return Node(value=self._mapping(raw, place), source=source, replaces=replaces)
            case yaml.SequenceNode():
                replaces = self._replaces(raw, place, own="seq")
                items = (self.node(item, (*place, i)) for i, item in enumerate(raw.value))
                return Node(value=tuple(items), source=source, replaces=replaces)
            case yaml.ScalarNode():
                return self._scalar(raw, place)
            case _:
                raise TypeError("YAML knows mappings, sequences and scalars only")

    def _source(self, raw: yaml.Node) -> Source:
        return Source(self._file, raw.start_mark.line + 1)

    def _note(self, raw: yaml.Node, place: Place, text: str) -> None:
        self.findings.append(Finding(text, place, self._source(raw)))

    def _replaces(self, raw: yaml.Node, place: Place, *, own: str) -> bool:
        if raw.tag not in (f"{_YAML}{own}", REPLACE):
            self._note_tag(raw, place)
        return bool(raw.tag == REPLACE)

    def _note_tag(self, raw: yaml.Node, place: Place) -> None:
        text = "!replace stands before a list or a mapping, !file before a path; no other tag is"
        self._note(raw, place, f"{text} known (text that begins with ! needs quotes)")

    def _mapping(self, raw: yaml.MappingNode, place: Place) -> dict[str, Node]:
        found: dict[str, Node] = {}
        inherited: list[Mapping[str, Node]] = []
        for raw_key, raw_value in raw.value:
            key = self._key(raw_key, place)
            if key is None:
                continue
            if key == _MERGE and raw_key.style is None:
                inherited.extend(self._inherited(raw_value, place))
                continue
            if key in found:
                before = found[key].source.line
                self._note(raw_key, (*place, key), f"this key is in line {before} already")
                continue
            found[key] = self.node(raw_value, (*place, key))
        for other in inherited:
            for key, node in other.items():
                found.setdefault(key, node)
        return found

    def _key(self, raw: yaml.Node, place: Place) -> str | None:
        if not isinstance(raw, yaml.ScalarNode) or not raw.tag.startswith(_YAML):
            self._note(raw, place, "a key must be text")
            return None
        if not raw.value or not _is_clean(raw.value):
            self._note(raw, place, "a key must be text, not empty, without NUL or half characters")
            return None
        return str(raw.value)

    def _inherited(self, raw: yaml.Node, place: Place) -> Iterator[Mapping[str, Node]]:
        for source in raw.value if isinstance(raw, yaml.SequenceNode) else [raw]:
            node = self.node(source, (*place, _MERGE))  # deeper: it may stand for itself
            if isinstance(node.value, Mapping):
                yield node.value
            else:
                self._note(source, (*place, _MERGE), "must be a mapping, or a list of mappings")

    def _scalar(self, raw: yaml.ScalarNode, place: Place) -> Node:
        text, source = str(raw.value), self._source(raw)
        if not _is_clean(text):
            self._note(raw, place, "must not hold NUL or half characters")
        if raw.tag == FILE:
            if not text:
                self._note(raw, place, "!file must be followed by a path")
            return Node(value=text, source=source, is_reference=True)
        kind = raw.tag.removeprefix(_YAML)
        if kind in ("str", "float"):
            older = _older(text) if raw.style is None else ""
            return Node(value=text, source=source, older=older)
        try:
            return Node(value=_typed(kind, text), source=source)
        except ValueError:
            self._note_tag(raw, place)
            return Node(value=None, source=source)


def _typed(kind: str, text: str) -> Scalar:
    if kind == "null" and text in _NULL:
        return None
    if kind == "bool" and text in _TRUTH:
        return _TRUTH[text]
    if kind == "int" and _INTEGER.fullmatch(text):
        return int(text)
    raise ValueError(f"not of the type {kind}")


def _is_clean(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _older(text: str) -> str:
    """What YAML 1.1 makes of unquoted text that we leave alone, where it is a value of other meaning."""
    if _OLD_TRUTH.fullmatch(text):
        return "a truth value"
    if _OLD_OCTAL.fullmatch(text):
        digits = text.replace("_", "")
        return "" if int(digits) == int(digits, 8) else "an octal number"
    if _OLD_BASE.fullmatch(text):
        return "a hexadecimal or binary number"
    if _OLD_SIXTIES.fullmatch(text):
        return "a number in base 60"
    return "a decimal number" if _OLD_GROUPS.fullmatch(text) else ""
