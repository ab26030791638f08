"""The pages for people name only commands, options, keys and files that there are."""

import functools
import re
import shlex
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from polytope_server.cli import app
from polytope_server.config.schema import schema

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
# where a command begins: a line, behind a prompt, a path, sudo, or the fields of cron
_COMMAND = re.compile(
    r"^(?:.*\s)?(?:\S*/)?polytope-server (?P<line>[a-z%].*)", re.MULTILINE | re.ASCII
)
_END = re.compile(r"[|;>)&]|\s#|\s{2}|%i")
_KEY = re.compile(r"[a-z_-]+(?:\.[a-z_-]+)+", re.ASCII)
_FILES = (".hints", ".yaml", ".json", ".jsonl", ".md", ".py", ".sqlite", ".toml")


def blocks(page: Path, *languages: str) -> list[str]:
    return [m["text"] for m in _BLOCK.finditer(page.read_text()) if m["language"] in languages]


def spans(page: Path) -> list[str]:
    return _SPAN.findall(_BLOCK.sub("", page.read_text()))


def commands(page: Path) -> Iterator[str]:
    """What stands behind ``polytope-server`` where it is to be typed; not what it prints."""
    texts = [*blocks(page, "sh", "ini", ""), *spans(page)]
    for text in blocks(page, "console"):
        texts += [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    for text in texts:
        for match in _COMMAND.finditer(text):
            yield _END.split(match["line"], maxsplit=1)[0].strip()


def wrong_with(line: str) -> str | None:
    """What of a command line there is not."""
    command: Any = typer.main.get_command(app)
    for token in shlex.split(line):
        if hasattr(command, "commands"):
            if token not in command.commands:
                return f"the command {token}"
            command = command.commands[token]
        elif token.startswith("-") and token != "-":
            known = [name for parameter in command.params for name in parameter.opts]
            if token.partition("=")[0] not in (*known, "--help"):
                return f"the option {token}"
    return None


@functools.cache
def whole() -> Mapping[str, Any]:
    return schema()


def under(nodes: list[Any], key: str) -> list[Any]:
    """What the schema has under *key* of any of *nodes*."""
    found: list[Any] = []
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if not isinstance(node, Mapping):
            continue
        if "$ref" in node:
            todo.append(whole()["$defs"][node["$ref"].rpartition("/")[2]])
        for word in ("anyOf", "oneOf", "allOf"):
            todo += node.get(word, [])
        todo += [node.get("then"), node.get("else"), node.get("items")]
        if key in node.get("properties", {}):
            found.append(node["properties"][key])
        elif isinstance(node.get("additionalProperties"), Mapping):
            found.append(node["additionalProperties"])
        elif not node.get("properties") and node.get("additionalProperties", True) is True:
            is_open = not node.keys() & {"$ref", "anyOf", "oneOf", "allOf", "then", "items"}
            if is_open and node.get("type", "object") == "object" and "const" not in node:
                found.append({})
    return found


def unknown_keys(value: Any, nodes: list[Any], place: str = "") -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from unknown_keys(item, nodes, place)
    elif isinstance(value, Mapping):
        if "type" in value and place.startswith((".datasources", ".collections")):
            # the options of other packages' datasources, and of foreign libraries, are theirs
            options = whole()["$defs"].get(f"{str(value['type']).title()}Config")
            nodes = [options or {}]
        for key, item in value.items():
            below = under(nodes, str(key))
            if below:
                yield from unknown_keys(item, below, f"{place}.{key}")
            else:
                yield f"{place}.{key}"


class _Loader(yaml.SafeLoader):
    """Reads our own tags as what they stand in front of."""


def _plain(loader: _Loader, _tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return str(node.value)


_Loader.add_multi_constructor("!", _plain)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_could_be_typed(page: Path) -> None:
    wrong = {line: found for line in commands(page) if (found := wrong_with(line))}
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_that_is_named_is_one_of_the_configuration(page: Path) -> None:
    sections = whole()["properties"]
    named = {span for span in spans(page) if _KEY.fullmatch(span)}
    keys = {
        name
        for name in named
        if name.partition(".")[0] in sections
        and not name.endswith(_FILES)
        and _module(name) is None
    }
    unknown = {
        name
        for name in keys
        if not functools.reduce(under, name.split("."), [whole()])  # type: ignore[arg-type]
    }
    assert not unknown


def _module(name: str) -> object:
    try:
        return find_spec(f"polytope_server.{name}")
    except ModuleNotFoundError:
        return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_configuration_that_is_shown_has_only_keys_that_are_read(page: Path) -> None:
    sections = whole()["properties"]
    for text in blocks(page, "yaml"):
        tree = yaml.load(text, _Loader)
        if isinstance(tree, dict) and tree.keys() & sections.keys():
            assert list(unknown_keys(tree, [whole()])) == [], text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    missing = []
    for link in _LINK.findall(_BLOCK.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert not missing


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    assert wrong_with("admin list --stauts waiting") == "the option --stauts"
    assert wrong_with("data statsu") == "the command statsu"
    assert not functools.reduce(under, ["broker", "max_agee"], [whole()])  # type: ignore[arg-type]
    tree = {"collections": {"a": {"limits": {"totl": 1}}}, "queue": {"sqlite": {"pth": "x"}}}
    assert list(unknown_keys(tree, [whole()])) == [
        ".collections.a.limits.totl",
        ".queue.sqlite.pth",
    ]
    page = tmp_path / "page.md"
    page.write_text("```console\n$ a/polytope-server data status  # now\npolytope-server: x\n```\n")
    assert list(commands(page)) == ["data status"]
