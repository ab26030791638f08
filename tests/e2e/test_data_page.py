"""The lines of `docs/data.md`, run as they stand there against a standalone server."""

import doctest
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import requests
from deployment import free_port, until

from polytope_server.lifecycle import Stop
from polytope_server.standalone import USER, Server, configuration, password_of

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
_BLOCK = re.compile(
    r"^ *```sh\n(?P<code>.*?)^ *```\n(?:\n? *```text\n(?P<output>.*?)^ *```\n)?",
    re.MULTILINE | re.DOTALL,
)


def sections() -> dict[str, list[tuple[str, str | None]]]:
    """Blocks of shell, and what they print, by heading."""
    parts = re.split(r"^## (.*)\n", PAGE.read_text(), flags=re.MULTILINE)
    texts = {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}
    return {
        name: [
            (textwrap.dedent(m["code"]), m["output"] and textwrap.dedent(m["output"]))
            for m in _BLOCK.finditer(text)
        ]
        for name, text in texts.items()
    }


class Operator:
    """Who follows the page, with a home and a place for backups of their own."""

    def __init__(self, home: Path) -> None:
        self.home, self.data_dir = home, home / ".local" / "share" / "polytope-server"
        (home / "backups").mkdir()
        self.port = free_port()
        self.password = ""

    def start(self) -> Server:
        self.password = password_of(self.data_dir)
        tree = configuration(self.data_dir, port=self.port, password=self.password)
        server = Server(tree, [], data_dir=self.data_dir, strict=True, log=self.home / "log")
        server.start(Stop())
        return server

    def result(self, size: str) -> requests.Response:
        """Of a request for so many bytes."""
        answer = self.call("POST", "/requests/dummy", json={"verb": "retrieve", "request": size})
        return self.poll(answer.headers["Location"])

    def poll(self, url: str) -> requests.Response:
        return until(lambda: [a for a in (self.call("GET", url),) if a.status_code != 202])[0]

    def call(self, method: str, path: str, **options: object) -> requests.Response:
        url = path if path.startswith("http") else f"http://127.0.0.1:{self.port}/api/v1{path}"
        return requests.request(
            method, url, auth=(USER, self.password), timeout=30, allow_redirects=False, **options
        )

    def follow(self, blocks: list[tuple[str, str | None]]) -> None:
        assert blocks
        for code, output in blocks:
            ran = subprocess.run(
                ["bash", "-euc", code.replace("/var/backups/polytope", str(self.home / "backups"))],
                cwd=self.home,
                env={
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "HOME": str(self.home),
                    "COLUMNS": "120",
                },
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert ran.returncode == 0, f"{code}: {ran.stderr}"
            if output is not None:
                said = f"{code}\nprinted\n{ran.stdout}\nbut the page says\n{output}"
                checker = doctest.OutputChecker()
                assert checker.check_output(output, ran.stdout, doctest.ELLIPSIS), said


def test_an_operator_who_follows_the_page_gets_everything_back(tmp_path: Path) -> None:
    operator, page = Operator(tmp_path), sections()
    server = operator.start()
    try:
        links = [operator.result(size).headers["Location"] for size in ("7", "1000")]
        assert operator.result("not a number").status_code == 400
        usage = operator.data_dir / "usage.jsonl"
        until(lambda: len(usage.read_text().splitlines()) == 3)
        for name in ("", "Records of use", "Back up", "Upgrade"):
            operator.follow(page[name])
    finally:
        server.stop()
    assert len((tmp_path / "usage-of-all-times.jsonl").read_text().splitlines()) == 3
    operator.follow(page["Restore"])
    server = operator.start()
    try:
        for link, size in zip(links, (7, 1000), strict=True):
            assert requests.get(link, timeout=30).content == b"x" * size
        assert operator.result("5").status_code == 303
    finally:
        server.stop()
