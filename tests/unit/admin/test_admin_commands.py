"""The command line of operators: what it prints, what it refuses, and how it ends."""

import getpass
import grp
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from admin_command_line import CommandLine
from typer.testing import CliRunner

from polytope_server.admin.commands import admin_app
from polytope_server.admin.deployment import Deployment
from polytope_server.admin.operator import Operator
from polytope_server.admin.overview import SILENT_S
from polytope_server.errors import OperatorNotAllowed
from polytope_server.request import Request, Status
from polytope_server.request_store import RequestStore
from polytope_server.testing.request_store import ANN, enqueue, finish, new_request, start
from polytope_server.user import User


@pytest.fixture
def store(deployment: Deployment) -> RequestStore:
    return deployment.store


@pytest.fixture
def some(store: RequestStore) -> dict[str, Request]:
    """One waiting, one running, one failed, one of another user."""
    return {
        "waiting": store.add(new_request()),
        "running": start(store, store.add(new_request()), holder="w1/0"),
        "failed": finish(store, start(store, store.add(new_request())), target=Status.FAILED),
        "anns": store.add(new_request(user=ANN, collection="c2")),
    }


def ids(found: Sequence[dict[str, Any]]) -> list[str]:
    return [each["id"] for each in found]


# --- looking


def test_requests_are_listed_newest_first_and_by_options(
    run: CommandLine, some: dict[str, Request]
) -> None:
    everything = [request.id for request in some.values()]
    assert ids(run.json("list")) == everything[::-1]
    assert ids(run.json("list", "--oldest-first")) == everything
    for options, names in (
        (["--status", "waiting"], ["waiting", "anns"]),
        (["--status", "waiting", "--status", "failed"], ["waiting", "failed", "anns"]),
        (["--user", "ann"], ["anns"]),
        (["--user", "joe", "--realm", "r", "--status", "failed"], ["failed"]),
        (["--realm", "elsewhere"], []),
        (["--collection", "c2"], ["anns"]),
        (["--worker", "w1"], ["running"]),
        (["--older-than", "1h"], []),
        (["--newer-than", "1h"], list(some)),
    ):
        found = ids(run.json("list", "--oldest-first", *options))
        assert found == [some[name].id for name in names], options


def test_a_list_says_how_to_go_on(run: CommandLine, store: RequestStore) -> None:
    everything = [store.add(new_request()).id for _ in range(60)]
    first = run("list", "--json", "-n", "40")
    shown = [json.loads(line)["id"] for line in first.stdout.splitlines()]
    assert shown == everything[:19:-1]
    hint = re.search(r"--after (\S+)", first.stderr)
    assert hint is not None
    second = run("list", "--json", "-n", "40", "--after", hint[1])
    shown += [json.loads(line)["id"] for line in second.stdout.splitlines()]
    assert shown == everything[::-1]
    assert second.stderr == ""


def test_a_table_for_programs_has_no_broken_lines(run: CommandLine, store: RequestStore) -> None:
    request = start(store, store.add(new_request()), holder="w" * 60)
    header, row = run("list").stdout.splitlines()
    assert header.split()[:3] == ["id", "status", "collection"]
    assert row.split()[:3] == [request.id, "processing", "c1"]
    assert "w" * 60 in row


def test_everything_about_a_request_is_shown(run: CommandLine, some: dict[str, Request]) -> None:
    running = some["running"]
    shown = run("show", running.id).stdout
    for text in (running.id, "processing", "joe@r", "staff", "w1/0, ends in", "class: od", "try 1"):
        assert text in shown
    (found,) = run.json("show", running.id)
    assert found["user_request"] == "class: od"
    assert found["coerced_request"] == dict(running.coerced_request)
    assert found["holder"] == "w1/0"
    assert found["lease_expires_at"] == running.lease_expires_at
    assert found["status_history"] == dict(running.status_history)
    assert run("fail", running.id, "--reason", "closed").exit_code == 0
    (found,) = run.json("show", running.id)
    assert [entry["command"] for entry in found["audit"]] == ["fail"]
    assert "closed" in run("show", running.id).stdout


def test_the_place_in_line_is_shown(run: CommandLine, store: RequestStore) -> None:
    one, two = store.add(new_request()), store.add(new_request())
    store.put_positions("c1", [one.id, two.id])
    assert "waiting, number 2 in line" in run("show", two.id).stdout
    assert run.json("show", two.id)[0]["position"] == 2


def test_an_unknown_request_is_one_line_and_a_status(run: CommandLine, store: RequestStore) -> None:
    result = run("show", "nobody")
    assert result.exit_code == 1
    assert result.stderr == "polytope-server admin show: Request nobody not found\n"


def test_nothing_of_a_users_can_forge_a_line_or_a_colour(
    run: CommandLine, store: RequestStore
) -> None:
    evil = "a\x1b[31mred\x1b]0;title\x07\n\rid: forged\u202e\x9b"
    request = store.add(
        Request(
            id="r1",
            user=User(username=evil, realm="r"),
            verb=new_request().verb,
            collection="c1",
            datasource="d",
            user_request=evil,
            coerced_request={"key": evil, evil: "[bold]x[/]"},
            status=Status.WAITING,
            message=evil,
        )
    )
    for command in (["list"], ["show", request.id], ["list", "--json"], ["show", "r1", "--json"]):
        output = run(*command).stdout
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", output), command
        assert not any(line.startswith("id: forged") for line in output.splitlines())
    assert "[bold]x[/]" in run("show", "r1").stdout


def test_the_deployment_at_a_glance(
    run: CommandLine, store: RequestStore, some: dict[str, Request]
) -> None:
    store.add(new_request(collection="removed"))
    enqueue(store, store.add(new_request()))
    store.take_post("broker", "broker-1", duration_s=60)
    store.attend("w1", slots=2, busy=1)
    assert run("pause", "c2", "--reason", "tape robot").exit_code == 0
    (found,) = run.json("status")
    collections = {each["name"]: each for each in found["collections"]}
    assert list(collections) == ["c1", "c2", "removed"]
    assert collections["c1"]["counts"] == {"waiting": 1, "queued": 1, "processing": 1, "failed": 1}
    assert (collections["c1"]["active"], collections["c1"]["limit_total"]) == (2, 20)
    assert (collections["c1"]["most_by_one_user"], collections["c1"]["limit_per_user"]) == (2, 4)
    assert 0 <= collections["c1"]["oldest_waiting_s"] < 60
    assert collections["c1"]["paused"] is None
    assert collections["c2"]["paused"]["reason"] == "tape robot"
    assert (collections["c2"]["limit_total"], collections["c2"]["limit_per_user"]) == (None, None)
    assert not collections["removed"]["is_configured"]
    assert found["broker"] == "broker-1"
    assert found["queue_size"] == 0
    assert [(each["name"], each["state"]) for each in found["workers"]] == [("w1", "working")]
    text = run("status").stdout
    for said in ("broker-1", "2/20", "2/4", "tape robot", "not configured", "w1"):
        assert said in text


def test_an_empty_deployment_is_shown_too(run: CommandLine) -> None:
    text = run("status").stdout
    assert "broker: none is active" in text
    assert "no worker is known" in text
    assert run("list").exit_code == run("audit").exit_code == run("workers").exit_code == 0
    assert run.json("list") == run.json("audit") == run.json("workers") == []


def test_workers_are_working_draining_drained_or_silent(
    run: CommandLine, store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def states() -> list[str]:
        return [each["state"] for each in run.json("workers")]

    store.attend("w1", slots=2, busy=1)
    assert states() == ["working"]
    assert run("drain", "w1").stdout == "w1: drains\n"
    assert states() == ["draining"]
    store.attend("w1", slots=2, busy=0)
    assert states() == ["drained"]
    run("undrain", "w1")
    assert states() == ["working"]
    seen = store.workers()[0].seen_at
    monkeypatch.setattr("time.time", lambda: seen + SILENT_S + 1)
    assert states() == ["silent"]


# --- stepping in


def test_each_target_is_told_of_and_the_status_says_if_any_was_refused(
    run: CommandLine, some: dict[str, Request]
) -> None:
    result = run("requeue", some["failed"].id, some["waiting"].id, some["running"].id, "nobody")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{some['failed'].id}: requeued",
        f"{some['running'].id}: requeued",
    ]
    told = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert told == [
        f"{some['waiting'].id}: is waiting; only requests that are failed, processing can be "
        "requeued",
        "nobody: is not stored here",
    ]
    outcome = run("revoke", "nobody", "--json")
    assert json.loads(outcome.stdout) == {
        "target": "nobody",
        "outcome": "is not stored here",
        "done": False,
    }


def test_many_are_counted_and_asked_about_first(
    run: CommandLine, store: RequestStore, some: dict[str, Request]
) -> None:
    choice = ["fail", "--collection", "c1", "--status", "waiting", "--reason", "closed"]
    for answer in ("n\n", "", "what\n"):
        refused = run(*choice, answer=answer)
        assert refused.exit_code == 1
        assert "Found 1 waiting. Fail them all?" in refused.stderr
        assert store.get(some["waiting"].id) == some["waiting"]
    assert run(*choice, answer="y\n").stdout.endswith("\n1 failed\n")
    assert store.get(some["waiting"].id).status is Status.FAILED
    assert run(*choice, "--yes").stdout == "none found\n"
    assert store.get(some["anns"].id) == some["anns"]


def test_what_runs_is_requeued_only_if_that_is_said(
    run: CommandLine, store: RequestStore, some: dict[str, Request]
) -> None:
    assert run("requeue", "--collection", "c1", "-y").stdout == "1 requeued\n"
    assert store.get(some["running"].id) == some["running"]
    assert run("requeue", "--worker", "w1", "-y").stdout == "1 requeued\n"
    assert store.get(some["running"].id).status is Status.WAITING


def test_what_was_done_to_many_is_told_one_by_one_to_programs(
    run: CommandLine, some: dict[str, Request]
) -> None:
    outcomes = run.json("revoke", "--user", "joe", "--yes")
    joes = {some[name].id for name in ("waiting", "running", "failed")}
    assert {each["target"] for each in outcomes} == joes
    assert all(each["done"] for each in outcomes)


@pytest.mark.parametrize(
    "arguments",
    [
        ["fail", "r1"],
        ["fail", "--reason", "x"],
        ["fail", "r1", "--collection", "c1", "--reason", "x"],
        ["requeue"],
        ["revoke"],
        ["revoke", ""],
        ["revoke", "a\nb"],
        ["revoke", "a\udcffb"],
        ["revoke", "x" * 501],
        ["fail", "r1", "--reason", "two\nlines"],
        ["fail", "r1", "--reason", " "],
        ["list", "--status", "gone"],
        ["list", "--older-than", "soon"],
        ["list", "-n", "0"],
        ["list", "--user", "\x1b"],
        ["pause"],
        ["drain"],
        ["show"],
        ["list", "--unknown"],
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_happens(
    run: CommandLine, store: RequestStore, arguments: list[str]
) -> None:
    request = store.add(new_request(request_id="r1"))
    assert run(*arguments).exit_code == 2
    assert store.get("r1") == request
    assert store.noted() == []


def test_what_was_done_is_in_the_audit(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "alice\x1b[2J")
    run("pause", "c1", "--reason", "tape robot")
    run("resume", "c1")
    latest, first = run.json("audit")
    me = getpass.getuser()
    assert (latest["command"], first["command"]) == ("resume", "pause")
    assert (first["user"], first["sudo_user"]) == (me, "alice\x1b[2J")
    assert first["host"] == os.uname().nodename
    assert (first["target"], first["reason"], first["outcome"]) == ("c1", "tape robot", "done")
    text = run("audit", "--target", "c1").stdout
    assert f"alice\\x1b[2J as {me}" in text
    assert "\x1b" not in text
    assert run.json("audit", "--target", "c2") == []
    assert len(run.json("audit", "-n", "1")) == 1


def test_the_command_line_drags_in_no_back_end_and_no_large_library() -> None:
    code = (
        "import sys, polytope_server.cli\n"
        "large = {'pydantic', 'rich', 'sqlite3', 'yaml', 'polytope_server.config.model'}\n"
        "assert not large & sys.modules.keys(), large & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- who may, and with what


def test_only_those_may_whom_the_configuration_names(
    run: CommandLine, store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, group = getpass.getuser(), grp.getgrgid(os.getgid()).gr_name
    monkeypatch.setenv("SUDO_USER", "alice")
    for users, status in (([me], 0), ([group], 0), (["alice"], 77), ([], 77), (["x", me], 0)):
        run.configure({"admin": {"users": users, "roles": {"r": ["a"]}}})
        for command in (["list"], ["status"], ["pause", "c1"], ["resume", "c1"]):
            result = run(*command)
            assert result.exit_code == status, (users, command)
            if status:
                assert result.stdout == ""
                assert result.stderr == (
                    f"polytope-server admin {command[0]}: {me} may not use this command; "
                    "admin.users names those who may\n"
                )
    assert len(store.noted()) == 6


def test_an_operator_is_known_by_ids_and_not_by_the_environment() -> None:
    operator = Operator.current({"SUDO_USER": "root", "USER": "root", "LOGNAME": "root"})
    assert operator.user == getpass.getuser()
    assert operator.sudo_user == "root"
    nobody = Operator(user="4711", groups=frozenset({"4712"}), sudo_user="alice", host="h")
    for users in (["4711"], ["4712"], None):
        nobody.must_be_among(users)
    for users in ([], ["alice"], ["h"]):
        with pytest.raises(OperatorNotAllowed):
            nobody.must_be_among(users)


def test_a_broken_configuration_or_store_ends_in_one_line(run: CommandLine, tmp_path: Path) -> None:
    run.configure({"request_store": {"sqlite": {"path": str(tmp_path)}}})
    broken = run("list")
    assert broken.exit_code == 78
    assert broken.stderr.count("\n") == 1
    run.configure({"frontend": {"port": "many"}, "broker": 5})
    wrong = run("list")
    assert wrong.exit_code == 78
    assert "frontend.port" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


def test_the_directory_of_a_standalone_server_is_enough(
    run: CommandLine, some: dict[str, Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = json.loads(run.file.read_text())
    system = tmp_path / "system.yaml"
    monkeypatch.setenv("POLYTOPE_SYSTEM_CONFIG", str(system))
    # as for the server's own processes, the system's file goes over what it has made
    system.write_text(json.dumps({"request_store": made["request_store"]}))
    made["request_store"] = {"sqlite": {"path": str(tmp_path / "nowhere" / "x")}}
    (tmp_path / "standalone.yaml").write_text(json.dumps(made))
    result = CliRunner().invoke(admin_app, ["list", "--data-dir", str(tmp_path), "--json"])
    assert len(result.stdout.splitlines()) == len(some)
    result = CliRunner().invoke(admin_app, ["list", "--data-dir", str(tmp_path / "typo")])
    assert result.exit_code == 78
    assert "no standalone server has run there" in result.stderr
    assert not (tmp_path / "typo").exists()


def test_without_a_configuration_it_says_how_to_name_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("POLYTOPE_SYSTEM_CONFIG", str(tmp_path / "none"))
    result = CliRunner().invoke(admin_app, ["list"])
    assert result.exit_code == 78
    assert "-f FILE" in result.stderr
    assert "--data-dir DIR" in result.stderr
