"""`docs/extending.md`, followed word for word; and the packages in `examples`, built, installed and used."""

import doctest
import hashlib
import importlib
import inspect
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import textwrap
import venv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from deployment import REALM, Deployment, free_port

from polytope_server.registry import backends
from polytope_server.request import BINARY

pytestmark = pytest.mark.xdist_group("extending")

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"
EXAMPLES = ("polytope-radar", "polytope-dedup")
SERVER = ("polytope_server", "pyproject.toml", "README.md", "LICENSE")
"""What is built into a wheel."""
END = "--- end of block ---"

_FILE = re.compile(
    r"^`(?P<name>[^`\n]+)`:\n\n```\w+\n(?P<text>.*?)^```\n", re.MULTILINE | re.DOTALL
)
_PART = re.compile(r"^From `(?P<name>[^`\n]+)`(?P<parts>.*?)^If ", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"^```python\n(?P<text>.*?)^```\n", re.MULTILINE | re.DOTALL)
_SHELL = re.compile(
    r"^```sh\n(?P<code>.*?)^```\n(?:```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
_ROW = re.compile(
    r"^\| `(?P<kind>\w+)` \| `(?P<interface>[\w.]+)` \| (?P<suites>.*) \|$", re.MULTILINE
)
_SUITE = re.compile(r"`(?P<suite>\w+)` \((?P<fixtures>[^)]*)\)")
_NAME = re.compile(r"`(polytope_server(?:\.\w+)+)`")


# --- the page


def files() -> Mapping[str, str]:
    """Those that the page has its readers write, by name."""
    return {match["name"]: match["text"] for match in _FILE.finditer(PAGE.read_text())}


def test_the_page_has_the_files_of_the_datasource() -> None:
    assert len(files()) == 4
    for name, text in files().items():
        assert text == (ROOT / "examples" / "polytope-radar" / name).read_text(), name


def test_the_page_has_parts_of_the_staging_as_they_are() -> None:
    (found,) = _PART.finditer(PAGE.read_text())
    source = (ROOT / found["name"]).read_text()
    parts = [match["text"] for match in _PYTHON.finditer(found["parts"])]
    assert len(parts) >= 3
    for part in parts:
        assert part in source or textwrap.indent(part, "    ") in source


def test_every_name_in_the_page_is_there() -> None:
    names = set(_NAME.findall(PAGE.read_text()))
    assert len(names) > 10
    for name in names:
        module, _, attribute = name.rpartition(".")
        if not hasattr(importlib.import_module(module), attribute):
            importlib.import_module(name)


def test_the_table_names_every_kind_and_the_fixtures_of_every_suite() -> None:
    rows = list(_ROW.finditer(PAGE.read_text()))
    groups = {entry.partition(".")[2] for entry in _entry_points()}
    assert {row["kind"] for row in rows} == groups
    for row in rows:
        module = importlib.import_module(f"polytope_server.testing.{row['kind']}")
        contracts = {name for name in vars(module) if name.endswith("Contract")}
        said = {match["suite"]: match["fixtures"] for match in _SUITE.finditer(row["suites"])}
        assert said.keys() == contracts
        for suite, fixtures in said.items():
            assert set(re.findall(r"`(\w+)`", fixtures)) == _fixtures(vars(module)[suite]), suite


def _entry_points() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text()
    return set(re.findall(r'^\[project\.entry-points\."(.*)"\]$', text, re.MULTILINE))


def _fixtures(suite: type) -> set[str]:
    """What the tests of a suite ask for, besides what pytest has and what they are repeated for."""
    wanted: set[str] = set()
    for name, test in inspect.getmembers(suite, inspect.isfunction):
        if name.startswith("test_"):
            given = {
                argument.strip()
                for mark in getattr(test, "pytestmark", ())
                for names in mark.args[:1]
                for argument in (names.split(",") if isinstance(names, str) else names)
            }
            wanted |= inspect.signature(test).parameters.keys() - given - {"self", "tmp_path"}
    return wanted


# --- what is built


class Environment:
    """A virtual environment that shares our libraries, and has packages of its own.

    Nothing is asked of any package index.
    """

    def __init__(self, directory: Path) -> None:
        venv.create(directory, with_pip=False)
        self.bin = directory / "bin"
        self.python = self.bin / "python"
        paths = sysconfig.get_paths(vars={"base": str(directory), "platbase": str(directory)})
        ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (Path(paths["purelib"]) / "libraries.pth").write_text("\n".join(sorted(ours)))
        self.variables = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(directory),
            "LC_ALL": "C.UTF-8",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # which means that there is none
            "PIP_NO_INDEX": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # authors need have none of ours
        }

    def run(self, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """``python -m ...``"""
        return subprocess.run(
            [self.python, "-m", *arguments],
            cwd=cwd,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def must(self, *arguments: str | Path, cwd: Path) -> str:
        """The same; what it prints, if it succeeds."""
        ran = self.run(*arguments, cwd=cwd)
        assert ran.returncode == 0, f"{arguments}: {ran.stdout[-5000:]}\n{ran.stderr[-3000:]}"
        return ran.stdout


class Built(NamedTuple):
    """Wheels of the server and of the examples."""

    directory: Path

    def environment(self, directory: Path) -> Environment:
        """One with the server from its wheel, which hides the one beside our libraries."""
        made = Environment(directory)
        (wheel,) = self.directory.glob("polytope_server-*.whl")
        made.must("pip", "install", "--ignore-installed", "--no-deps", wheel, cwd=directory)
        return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    directory = tmp_path_factory.mktemp("built")
    sources, wheels = directory / "sources", directory / "wheels"
    server = sources / "polytope-server"
    server.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for name in SERVER:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, server / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, server)
    for name in EXAMPLES:
        shutil.copytree(ROOT / "examples" / name, sources / name, ignore=ignored)
    build = Environment(directory / "build")
    build.must("pip", "wheel", "--no-deps", "-w", wheels, *sorted(sources.iterdir()), cwd=directory)
    return Built(wheels)


@pytest.fixture(scope="module")
def environment(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One with the server and both examples."""
    made = built.environment(tmp_path_factory.mktemp("environment"))
    wanted = [f"{name}[test]" for name in EXAMPLES]
    made.must("pip", "install", "--find-links", built.directory, *wanted, cwd=built.directory)
    return made


def test_the_examples_keep_their_contracts(environment: Environment, tmp_path: Path) -> None:
    for name in EXAMPLES:
        shutil.copytree(ROOT / "examples" / name / "tests", tmp_path / name)
    printed = environment.must("pytest", "-q", *EXAMPLES, cwd=tmp_path)
    assert re.search(r"\d\d passed", printed)


def test_what_fails_in_a_suite_says_what_was_compared(
    environment: Environment, tmp_path: Path
) -> None:
    (tmp_path / "test_wrong.py").write_text(
        "import pytest\n"
        "from polytope_server.testing.datasource import DatasourceContract, query_of\n"
        "from polytope_server.datasource.echo import EchoDatasource\n"
        "class TestWrong(DatasourceContract):\n"
        "    @pytest.fixture\n"
        "    def datasource(self):\n"
        "        return EchoDatasource(EchoDatasource.Config(type='echo'))\n"
        "    @pytest.fixture\n"
        "    def query(self):\n"
        "        return query_of(text='what comes')\n"
        "    @pytest.fixture\n"
        "    def expected(self):\n"
        "        return b'what should come'\n"
    )
    ran = environment.run("pytest", "-q", cwd=tmp_path)
    assert "assert b'what comes' == b'what should come'" in ran.stdout


SCANS = {f"202601{day:02}": f"BUFR-{day}-".encode() * 600_000 + b"7777" for day in (1, 2, 3)}


def sections(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is added to a configuration for the datasource, and what takes the place of the staging."""
    datasource = {
        "type": "radar",
        "root_dir": str(directory / "scans"),
        "match": {"radar": "essen"},
    }
    added = {
        "datasources": {"radar": datasource},
        "collections": {"radar": {"roles": {REALM: ["default"]}, "datasources": ["radar"]}},
    }
    return added, {"staging": {"dedup": {"root_dir": str(directory / "deduplicated")}}}


@pytest.fixture(scope="module")
def server(
    environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    directory = tmp_path_factory.mktemp("extended")
    (directory / "scans" / "essen").mkdir(parents=True)
    for day, scans in SCANS.items():
        (directory / "scans" / "essen" / f"{day}.bufr").write_bytes(scans)
    changes, replaced = sections(directory)
    with Deployment(
        directory, changes=changes, replaced=replaced, python=environment.python
    ) as deployment:
        yield deployment


def test_their_options_are_checked_like_ours(environment: Environment, server: Deployment) -> None:
    check = ("polytope_server", "config", "check", "--strict", "-f")
    said = environment.must(*check, server.file, cwd=server.directory)
    assert "The configuration is good" in said
    wrong = server.directory / "wrong.yaml"
    wrong.write_text(server.file.read_text().replace('"root_dir"', '"root_dri"'))
    refused = environment.run(*check, wrong, cwd=server.directory)
    assert refused.returncode == 78
    for place in ("collections.radar.datasources[0]", "staging.dedup"):
        assert f"{place}.root_dir: this key is missing" in refused.stderr
        assert f"{place}.root_dri: unknown key; did you mean 'root_dir'?" in refused.stderr


def test_data_flow_from_their_datasource_through_their_staging(server: Deployment) -> None:
    request = {"radar": "essen", "date": "2026-01-01/to/2026-01-03"}
    ids = [server.submit(request, collection="radar") for _ in range(2)]
    assert [server.result(each) for each in ids] == [b"".join(SCANS.values())] * 2
    objects = server.directory / "deduplicated" / "objects"
    assert len({file.stat().st_ino for file in objects.iterdir()}) == 1
    assert {file.name.rpartition("-")[0] for file in objects.iterdir()} == set(ids)
    assert server.call("DELETE", f"/requests/{ids[0]}").status_code == 200
    location = server.finished(ids[1]).headers["Location"]
    part = server.call("GET", location, user=None, headers={"Range": "bytes=-4"})
    assert (part.status_code, part.content) == (206, b"7777")


def test_data_can_be_archived_in_their_datasource(server: Deployment) -> None:
    request, data = {"radar": "essen", "date": "20260110"}, b"BUFR-new-7777"
    archiving = server.submit(request, collection="radar", verb="archive")
    sent = server.call(
        "POST",
        f"/uploads/{archiving}",
        data=data,
        headers={"X-Checksum": hashlib.md5(data).hexdigest(), "Content-Type": BINARY},
    )
    assert sent.status_code == 202, sent.text
    assert server.finished(archiving).status_code == 200
    assert server.result(server.submit(request, collection="radar")) == data


def test_users_hear_what_their_datasource_says(server: Deployment) -> None:
    missing = server.submit({"radar": "essen", "date": "20260201"}, collection="radar")
    answer = server.finished(missing)
    assert answer.status_code == 400
    assert "There are no scans of essen on 20260201." in answer.json()["message"]


def test_the_page_leads_a_newcomer_to_a_datasource_that_works(built: Built, tmp_path: Path) -> None:
    own = built.environment(tmp_path / "environment")
    directory = tmp_path / "polytope-radar"
    for name, text in files().items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    first, *blocks = _SHELL.finditer(PAGE.read_text())
    assert "python3 -m venv .venv" in first["code"]  # what has been made here
    port = str(free_port())
    script = "set -euo pipefail\n" + "".join(
        f"{block['code'].replace('5000', port)}echo '{END}'\n" for block in blocks
    )
    with subprocess.Popen(
        ["bash", "-c", script],
        cwd=directory,
        env=own.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            output, errors = shell.communicate(timeout=200)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            raise
    printed = output.split(f"{END}\n")
    assert shell.returncode == 0, f"after {printed[-2:]}: {errors[-3000:]}"
    checker = doctest.OutputChecker()
    for block, got in zip(blocks, printed, strict=False):
        if block["output"] is not None:
            wanted = block["output"].replace("5000", port)
            said = f"{block['code']}\nprinted\n{got}\nbut the page says\n{wanted}"
            assert checker.check_output(wanted, got, doctest.ELLIPSIS), said
    assert "radar" not in backends("datasource").names  # it went into its own environment
