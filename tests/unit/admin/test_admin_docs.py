"""The examples of docs/admin.md run, and print what stands there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from admin_command_line import CommandLine

from polytope_server.admin.deployment import Deployment
from polytope_server.request import Status
from polytope_server.request_store import ApiKey
from polytope_server.testing.request_store import enqueue, finish, new_request, start
from polytope_server.user import User

PAGE = Path(__file__).parents[3] / "docs" / "admin.md"
KEY_ID = "6c1e1e0c-5a5e-4b1c-8b53-1f0a4c0f8a11"
WORKER = "node7-25874-d8624baa"
IDS = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def examples() -> Iterator[tuple[list[str], list[str]]]:
    """Each command, as words, with the lines that are shown below it."""
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for text in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = text.splitlines()
            yield shlex.split(command), shown


def words(line: str) -> list[str]:
    return re.split(r" {2,}", line)


def test_the_examples_run_and_print_what_is_shown(run: CommandLine, deployment: Deployment) -> None:
    store = deployment.store
    datasource = {"datasources": ["echo"], "roles": ["default"]}
    run.configure({"collections": {"forecasts": datasource, "era5": datasource}})
    bob = User(username="bob", realm="example")
    key = ApiKey(id=KEY_ID, digest="0" * 64, user=bob, name="laptop", hint="4fQx")
    store.add_key(key, lifetime_s=90 * 86400, max_keys=1)
    for number, request_id in enumerate(dict.fromkeys(IDS.findall(PAGE.read_text()))):
        request = new_request(user=bob, request_id=request_id, collection="forecasts")
        (start if number == 0 else enqueue)(store, store.add(request))
    for _ in range(2):
        store.add(new_request(user=bob, collection="forecasts"))
    for _ in range(3):
        failing = start(store, store.add(new_request(user=bob, collection="era5")))
        finish(store, failing, target=Status.FAILED)
    store.take_post("broker", "node7-25873-4c78720f", duration_s=60)
    store.attend(WORKER, slots=2, busy=2)
    found = list(examples())
    assert len(found) > 10
    for command, shown in found:
        assert command[:2] == ["polytope-server", "admin"]
        assert command[-2:] == ["-f", "config.yaml"]
        result = run(*command[2:-2])
        assert result.exit_code == 0, (command, result.output)
        printed = result.stdout.splitlines()
        if len(shown) == 1:
            assert printed == shown, command
        elif shown:
            assert words(printed[0])[0] == words(shown[0])[0], command
            headers = [words(line) for line in shown if line.endswith(("remarks", "message"))]
            assert all(header in [words(line) for line in printed] for header in headers), command
