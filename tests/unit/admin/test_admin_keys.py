"""Operators list and revoke users' API keys."""

import json

import pytest
from admin_command_line import CommandLine

from polytope_server.admin.commands import EXIT_REFUSED
from polytope_server.admin.deployment import Deployment
from polytope_server.request_store import ApiKey, RequestStore
from polytope_server.testing.request_store import ANN, JOE, new_key
from polytope_server.user import User

OTHER = User(username="joe", realm="other")


@pytest.fixture
def store(deployment: Deployment) -> RequestStore:
    return deployment.store


@pytest.fixture
def keys(store: RequestStore) -> list[ApiKey]:
    """Two of joe's, one of ann's, and one of another realm's joe."""
    return [
        store.add_key(new_key(user=user, name=name), lifetime_s=3600, max_keys=9)
        for user, name in ((JOE, "laptop"), (JOE, "two\nlines"), (ANN, ""), (OTHER, "x"))
    ]


def test_keys_are_listed_by_user(run: CommandLine, keys: list[ApiKey]) -> None:
    lines = run("keys", "list").stdout.splitlines()
    assert lines[0].split()[:3] == ["id", "user", "name"]
    assert [line.split()[1] for line in lines[1:]] == ["joe@other", "ann@r", "joe@r", "joe@r"]
    assert len(lines) == 5, "no name forges a line"
    assert not any(key.digest in "\n".join(lines) for key in keys)


def test_keys_are_chosen_by_user_and_realm(run: CommandLine, keys: list[ApiKey]) -> None:
    def ids(*options: str) -> set[str]:
        return {key["id"] for key in run.json("keys", "list", *options)}

    joes, others = {keys[0].id, keys[1].id}, {keys[3].id}
    assert ids("--user", "joe") == joes | others
    assert ids("--user", "joe", "--realm", "r") == joes
    assert ids("--realm", "other") == others
    assert ids("--user", "nobody") == set()
    (shown,) = run.json("keys", "list", "--realm", "other")
    assert "digest" not in shown
    assert shown["user"] == {"username": "joe", "realm": "other", "attributes": {}}


def test_more_keys_than_a_page_are_all_listed(run: CommandLine, store: RequestStore) -> None:
    for _ in range(501):
        store.add_key(new_key(), lifetime_s=3600, max_keys=1000)
    assert len(run.json("keys", "list")) == 501


def test_a_revoked_key_leaves_a_record(
    run: CommandLine, store: RequestStore, keys: list[ApiKey]
) -> None:
    result = run("keys", "revoke", keys[0].id, "--reason", "published")
    assert result.exit_code == 0
    assert result.stdout == f"{keys[0].id}: revoked; it was joe@r's\n"
    assert store.key(keys[0].digest) is None
    assert store.key(keys[1].digest) is not None
    (entry,) = store.noted(target=keys[0].id)
    assert (entry.command, entry.reason, entry.outcome) == ("revoke key", "published", "done")


def test_what_is_no_key_is_refused_and_noted(run: CommandLine, store: RequestStore) -> None:
    result = run("keys", "revoke", "nothing")
    assert result.exit_code == EXIT_REFUSED
    assert "nothing: is no API key, or has expired" in result.stderr
    (entry,) = store.noted(target="nothing")
    assert entry.outcome.startswith("refused")


def test_all_keys_of_a_user_go_after_a_question(
    run: CommandLine, store: RequestStore, keys: list[ApiKey]
) -> None:
    options = ("keys", "revoke", "--user", "joe", "--realm", "r")
    assert run(*options, answer="n\n").exit_code != 0
    assert len(store.keys_of(JOE.id)) == 2
    asked = run(*options, answer="y\n")
    assert "Found 2 keys" in asked.stderr
    assert asked.exit_code == 0
    assert store.keys_of(JOE.id) == []
    assert {key.id for key in store.all_keys()} == {keys[2].id, keys[3].id}
    told = run.json("keys", "revoke", "--user", "ann", "--yes")
    assert [(each["target"], each["done"]) for each in told] == [(keys[2].id, True)]
    assert run(*options, "--yes").exit_code == 0, "there are none any more"


def test_ids_or_options_one_of_the_two(run: CommandLine, keys: list[ApiKey]) -> None:
    for arguments in ((), (keys[0].id, "--user", "joe")):
        assert run("keys", "revoke", *arguments).exit_code == 2


def test_the_list_is_json_in_lines(run: CommandLine, keys: list[ApiKey]) -> None:
    for line in run("keys", "list", "--json").stdout.splitlines():
        assert json.loads(line)["expires_at"] > json.loads(line)["created_at"]
