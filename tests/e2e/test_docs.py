"""The lines of `docs/rest-api.md`, run as they stand there against the demo's server."""

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from deployment import free_port

from polytope_server.demo.configuration import demo_configuration
from polytope_server.demo.sample import make_fdb
from polytope_server.lifecycle import Stop
from polytope_server.standalone import Server, configuration

PAGE = Path(__file__).parents[2] / "docs" / "rest-api.md"
USER, PASSWORD = "demo", "pass-word_9"
END = "--- end of block ---"
_BLOCK = re.compile(
    r"^```sh\n(?P<code>.*?)^```\n(?:```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
_PYTHON = re.compile(r"^```python\n(?P<code>.*?)^```\n", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    code: str
    output: str | None


def blocks() -> list[Block]:
    return [Block(m["code"], m["output"]) for m in _BLOCK.finditer(PAGE.read_text())]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("demo")
    data_dir, port = directory / "server", free_port()
    tree = configuration(data_dir, port=port, password=None)
    tree |= demo_configuration(make_fdb(directory / "fdb"), username=USER, password=PASSWORD)
    server = Server(tree, [], data_dir=data_dir, strict=True, log=directory / "server.log")
    server.start(Stop())
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user's, with the programs of this environment and nobody's settings."""
    scripts = str(Path(sys.executable).parent)
    return {"PATH": f"{scripts}:{os.environ['PATH']}", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}


def with_our_server(code: str, server: Server) -> str:
    port = server.url.rpartition(":")[2]
    return code.replace("5000", port).replace("PASSWORD", PASSWORD, 1)


def test_every_line_prints_what_the_page_says(
    demo: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    found = blocks()
    assert len(found) >= 10
    script = "set -euo pipefail\n" + "".join(
        f"{with_our_server(block.code, demo) if number == 0 else block.code}echo '{END}'\n"
        for number, block in enumerate(found)
    )
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    printed = ran.stdout.split(f"{END}\n")
    assert ran.returncode == 0, f"after {printed[-2:]}: {ran.stderr[-3000:]}"
    checker = doctest.OutputChecker()
    for block, got in zip(found, printed, strict=False):
        if block.output is not None:
            said = f"{block.code}\nprinted\n{got}\nbut the page says\n{block.output}"
            assert checker.check_output(block.output, got, doctest.ELLIPSIS), said


def test_the_python_of_the_page_retrieves_a_field(
    demo: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    (found,) = _PYTHON.finditer(PAGE.read_text())
    code = with_our_server(found["code"], demo)
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=60
    )
    assert (tmp_path / "field.grib").read_bytes()[:4] == b"GRIB"
