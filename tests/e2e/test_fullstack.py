"""The integration tests against all that a cluster has: MongoDB, RabbitMQ, S3, Redis and a directory."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployment import USERS
from fullstack import SERVERS, FullStack
from services.fixtures import must_be_installed
from services.stack import Stack, kind

pytestmark = pytest.mark.xdist_group("full-stack")
ROOT = Path(__file__).parents[2]
MAY_BE_SKIPPED = {
    "results are handed out by links of the storage that are good for GET alone",
}
"""What this deployment does not have."""


@pytest.fixture(scope="module")
def full_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FullStack]:
    must_be_installed(*map(kind, SERVERS))
    with Stack(SERVERS) as stack:
        slapd: Any = stack.servers["slapd"]
        people = {name: slapd.add_person(name) for name in USERS}
        slapd.add_group("staff", [people["ann"]])
        with FullStack(tmp_path_factory.mktemp("full-stack"), stack) as deployment:
            yield deployment


def test_the_integration_tests_pass_on_the_full_stack(full_stack: FullStack) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "tests/integration"),
            *("-q", "-rs", "-p", "no:cacheprovider", "--config", str(full_stack.file)),
        ],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not _is_ours(name)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + full_stack.all_logs()[-3000:]
    skipped = set(re.findall(r"^SKIPPED \[\d+\] \S+ (.*)$", done.stdout, re.MULTILINE))
    assert skipped <= MAY_BE_SKIPPED
    assert (found := re.search(r"(\d+) passed", done.stdout))
    assert int(found[1]) >= 37


def _is_ours(name: str) -> bool:
    """Of a user of some other server, or of the run of pytest that we are in."""
    return name.startswith(("POLYTOPE_", "PYTEST_"))


def test_roles_come_from_the_directory(full_stack: FullStack) -> None:
    asked = {"verb": "retrieve", "request": "x: 1"}
    for user, status in (("joe", 403), ("ann", 202)):
        answer = full_stack.call("POST", "/requests/secret", user=user, json=asked)
        assert answer.status_code == status, answer.text


def test_both_workers_take_their_part(full_stack: FullStack) -> None:
    ids = [full_stack.submit("300000", collection="slow") for _ in range(4)]
    assert {full_stack.result(each) for each in ids} == {b"x" * 300_000}
    for label in ("worker", "worker-2"):
        assert any(each in full_stack.log(label) for each in ids), label
    full_stack.call("DELETE", "/requests/all")


def test_no_process_is_unhappy_about_its_back_ends(full_stack: FullStack) -> None:
    log = full_stack.all_logs()
    assert "is away" not in log
    assert "Traceback" not in log
