"""``make services``: what it says, and what it leaves behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import deployed
from services.stack import USES, Stack

TESTS = Path(__file__).parents[2]


def started(directory: Path, *names: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """The process, and all that it has said before it waits."""
    process = subprocess.Popen(
        [sys.executable, "-m", "services", "--directory", str(directory), *names],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, "".join(_until(process, "polytope-server standalone"))


def _until(process: subprocess.Popen[str], words: str) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if words in line:
            return


@pytest.mark.skipif(not shutil.which("redis-server"), reason="there is no redis-server")
def test_servers_run_until_they_are_told_to_end_and_the_configuration_is_whole(
    tmp_path: Path,
) -> None:
    process, said = started(tmp_path, "redis")
    try:
        file = tmp_path / "services.yaml"
        assert file.read_text().strip() in said
        assert str(file) in said
        found = deployed([file], environ={"POLYTOPE_SYSTEM_CONFIG": ""})
        assert [user.name for user in found.users] == ["joe", "ann"]
        assert found.config.caching.name == "redis"
        assert found.config.request_store is not None
        assert found.config.request_store.name == "sqlite"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    port = re.search(r"port: (\d+)", said)
    assert port
    assert port[1] not in subprocess.run(["ps", "axww"], capture_output=True, text=True).stdout


def test_a_server_that_is_not_installed_is_told_with_what_installs_it(tmp_path: Path) -> None:
    process, said = started(tmp_path, "mongodb", POLYTOPE_SERVICES=str(tmp_path / "nowhere"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert "Left out: mongodb: there is no" in said
    assert "install it with: " in said
    assert "request_store: !replace\n  sqlite:" in said


def test_a_name_that_no_server_has_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services", "oracle"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert "no such server: oracle" in done.stderr
    assert "redis" in done.stderr
    with pytest.raises(ValueError, match="oracle"):
        Stack(["oracle"])
    assert "redis" in USES
