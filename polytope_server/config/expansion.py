"""What a text in a file stands for: variables of the environment, a home directory, another file."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from polytope_server.config.section import Place, at_home
from polytope_server.config.tree import Finding, Node

MAX_REFERENCE_BYTES: Final = 64 * 1024

_HASH: Final = "$argon2"
_NAME: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_VARIABLE: Final = re.compile(
    rf"\$(?:(?P<dollar>\$)|\{{(?P<braced>{_NAME})\}}|(?P<broken>\{{)|(?P<bare>{_NAME}))", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Expansion:
    """Expands every text below a node; keys never. What is wrong is noted, and the text left as it is.

    ``${NAME}`` must be set, ``$NAME`` stays as it is if it is not, ``$$`` is a dollar, and a ``~`` that
    the text begins with is a home directory. What comes in is taken as it is, not expanded again. Texts
    that begin with ``$argon2`` are hashes of passwords and stay as they are.
    """

    environ: Mapping[str, str]
    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    on_read: Callable[[Path], object] = lambda _path: None
    """Told of each file just before it is read."""

    def expand(self, node: Node, place: Place = ()) -> Node:
        """The same tree with its texts expanded."""
        match node.value:
            case Mapping() as items:
                made = {key: self.expand(item, (*place, key)) for key, item in items.items()}
                return replace(node, value=made)
            case tuple() as items:
                listed = (self.expand(item, (*place, i)) for i, item in enumerate(items))
                return replace(node, value=tuple(listed))
            case str():
                expanded = self._text(node, node.value, place)
                if node.is_reference and not expanded.is_faulty:
                    return self._referenced(expanded, place)
                return expanded
        return node

    def _text(self, node: Node, text: str, place: Place) -> Node:
        if text.startswith(_HASH) or not ("$" in text or text.startswith("~")):
            return node
        used: dict[str, None] = {}
        faults: list[str] = []

        def value_of(match: re.Match[str]) -> str:
            if match["dollar"]:
                return "$"
            if match["broken"]:
                faults.append(
                    "after ${ there must be the name of a variable and }; $$ is a plain dollar"
                )
                return match[0]
            name = match["braced"] or match["bare"]
            value = self.environ.get(name)
            if value is None:
                if match["braced"]:
                    faults.append(f"the environment has no {name}; $$ is a plain dollar")
                else:
                    text = (
                        "holds a $NAME that the environment does not have, and which stays as it is"
                    )
                    self.warnings.append(
                        Finding(f"{text}; $$ is a plain dollar", place, node.source)
                    )
                return match[0]
            if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
                faults.append(f"what the environment has as {name} is not UTF-8 text")
            used[name] = None
            return value

        made = _VARIABLE.sub(value_of, self._at_home(text))
        self.errors.extend(Finding(fault, place, node.source) for fault in dict.fromkeys(faults))
        if faults:
            return replace(node, is_faulty=True)
        return replace(node, value=made, source=replace(node.source, variables=tuple(used)))

    def _at_home(self, text: str) -> str:
        if not text.startswith("~"):
            return text
        head, slash, rest = text.partition("/")
        home = self.environ.get("HOME") if head == "~" else None
        expanded = home or os.path.expanduser(head)
        if expanded == head:
            return text
        # what came from outside is not looked at again
        return expanded.replace("$", "$$") + slash + rest

    def _referenced(self, node: Node, place: Place) -> Node:
        # relative to the file that names it, wherever the process was started
        path = Path(node.source.file).parent / at_home(Path(str(node.value)))
        self.on_read(path)
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_REFERENCE_BYTES + 1)
            text = data.decode("utf-8-sig")
        except OSError as exc:
            return self._faulty(node, place, f"the file {path} cannot be read: {exc.strerror}")
        except UnicodeDecodeError:
            return self._faulty(node, place, f"the file {path} does not hold UTF-8 text")
        if len(data) > MAX_REFERENCE_BYTES or "\0" in text:
            return self._faulty(node, place, f"the file {path} does not hold a short text")
        text = text.removesuffix("\n").removesuffix("\r")
        source = replace(node.source, reference=str(path))
        return replace(node, value=text, source=source, is_reference=False, is_hidden=True)

    def _faulty(self, node: Node, place: Place, text: str) -> Node:
        self.errors.append(Finding(text, place, node.source))
        return replace(node, is_faulty=True)
