"""API keys as users and operators have them, with two frontends that share one port."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from deployment import REALM, USERS, Deployment, until

from polytope_server.authentication.api_keys import is_key, new_key
from polytope_server.authentication.guessing import FIRST_PAUSE_S, FREE_GUESSES_OF_ADDRESS

BIN = Path(sys.executable).parent
KEYS = "/auth/keys"
WITHIN_S = 2.0
"""What is promised about revoked keys."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    changes = {
        "frontend": {"processes": 2, "max_request": "4K"},
        "api-keys": {"enabled": True, "lifetime": "30d", "max_per_user": 5},
        "reload": {"interval": 0.2},
        "logging": {"level": "DEBUG"},
    }
    with Deployment(tmp_path_factory.mktemp("keys"), changes=changes) as deployment:
        yield deployment


@pytest.fixture(autouse=True)
def _no_keys_are_left(server: Deployment) -> Iterator[None]:
    yield
    for user in ("joe", "ann"):
        for key in listed(server, user):
            server.call("DELETE", f"{KEYS}/{key['id']}", user=user)


def make(server: Deployment, user: str = "joe", **body: Any) -> dict[str, str]:
    response = server.call("POST", KEYS, user=user, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, str] = response.json()
    return found


def listed(server: Deployment, user: str = "joe") -> list[dict[str, str]]:
    found: list[dict[str, str]] = server.call("GET", KEYS, user=user).json()["message"]
    return found


def bearer(
    server: Deployment, key: str, path: str = "/user", method: str = "GET", **options: Any
) -> requests.Response:
    """A call on a connection of its own, which either frontend may take."""
    headers = {"Authorization": f"Bearer {key}", "Connection": "close"}
    return server.call(method, path, user=None, headers=headers, **options)


def expect_refused(server: Deployment, key: str) -> None:
    """By all frontends, in time; of so many calls each gets some."""
    time.sleep(WITHIN_S)
    assert {bearer(server, key).status_code for _ in range(12)} == {401}


def test_polytope_login_and_a_retrieval_with_the_key_alone(
    server: Deployment, tmp_path: Path
) -> None:
    def polytope(*arguments: str) -> "subprocess.CompletedProcess[str]":
        environ = {k: v for k, v in os.environ.items() if not k.startswith("POLYTOPE_")}
        common = ["--config-path", str(tmp_path), "--address", server.url, "--insecure"]
        return subprocess.run(
            [str(BIN / "polytope"), *arguments, *common],
            env=environ | {"HOME": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    wrong = polytope("login", "joe", "--login-password", "wrong")
    assert wrong.returncode != 0
    assert "not accepted" in wrong.stdout + wrong.stderr
    login = polytope("login", "joe", "--login-password", USERS["joe"])
    assert login.returncode == 0, login.stderr
    (kept,) = listed(server)
    stored = "".join(
        path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".log"
    )
    assert "polytope_" in stored, "the client has kept the key"
    assert USERS["joe"] not in stored
    (tmp_path / "request.yaml").write_text("x: hello\n")
    got = polytope("retrieve", "c1", "request.yaml", "out.bin")
    assert got.returncode == 0, got.stderr
    (result,) = tmp_path.glob("out*")
    assert b"hello" in result.read_bytes()
    records = server.call("GET", "/requests/c1").json()["message"]
    assert records[-1]["user"]["username"] == "joe"
    assert server.call("DELETE", f"{KEYS}/{kept['id']}").status_code == 200
    expect_refused(server, stored_key(stored))
    refused = polytope("list", "collections")
    assert refused.returncode != 0


def stored_key(text: str) -> str:
    begin = text.index("polytope_")
    key = text[begin : begin + 58]
    assert is_key(key)
    return key


def test_a_key_does_what_its_user_may_and_no_more(server: Deployment) -> None:
    keys = {user: make(server, user)["key"] for user in ("joe", "ann")}
    hello = {"verb": "retrieve", "request": "hello"}
    for user, status in (("joe", 403), ("ann", 202)):
        response = bearer(server, keys[user], "/requests/secret", "POST", json=hello)
        assert response.status_code == status, response.text
    names = {
        user: bearer(server, key, "/collections").json()["message"] for user, key in keys.items()
    }
    assert set(names["ann"]) - set(names["joe"]) == {"secret"}
    mine = bearer(server, keys["ann"], "/requests/secret").json()["message"]
    assert {record["user"]["realm"] for record in mine} == {REALM}
    assert server.poll(mine[-1]["id"], user="joe").status_code == 404
    assert server.finished(mine[-1]["id"], user="ann").status_code == 303


def test_a_key_is_told_once_and_listed_without_it(server: Deployment) -> None:
    made = make(server, name="laptop, grün", expires_in="1h")
    assert is_key(made["key"])
    (shown,) = listed(server)
    assert shown == {
        "id": made["id"],
        "name": "laptop, grün",
        "ends_with": made["key"][-4:],
        "created": shown["created"],
        "expires": made["expires"],
    }
    assert made["key"] not in json.dumps(bearer(server, made["key"], KEYS).json())
    assert bearer(server, made["key"], KEYS).json()["message"] == [shown]
    assert server.call("GET", f"{KEYS}/{made['id']}").json() == shown
    assert server.call("GET", f"{KEYS}/{made['id']}", user="ann").status_code == 404
    assert listed(server, "ann") == []


def test_a_key_makes_no_other_but_may_revoke_itself(server: Deployment) -> None:
    made = make(server)
    refused = bearer(server, made["key"], KEYS, "POST", json={})
    assert refused.status_code == 403
    assert "cannot be used to make another" in refused.json()["message"]
    assert len(listed(server)) == 1
    gone = bearer(server, made["key"], f"{KEYS}/{made['id']}", "DELETE")
    assert gone.status_code == 200
    expect_refused(server, made["key"])


def test_nobody_else_can_revoke_a_key(server: Deployment) -> None:
    made = make(server)
    for response in (
        server.call("DELETE", f"{KEYS}/{made['id']}", user="ann"),
        server.call("DELETE", f"{KEYS}/no-such-id"),
    ):
        assert response.status_code == 404
        assert response.json() == {"message": "There is no such API key of yours."}
    assert bearer(server, made["key"]).status_code == 200


def test_a_revoked_key_is_refused_by_all_frontends_within_two_seconds(server: Deployment) -> None:
    made = make(server)
    for _ in range(12):
        assert bearer(server, made["key"]).status_code == 200
    assert server.call("DELETE", f"{KEYS}/{made['id']}").status_code == 200
    expect_refused(server, made["key"])
    refused = bearer(server, made["key"])
    assert "Bearer" in refused.headers["WWW-Authenticate"]
    assert "expire" not in refused.json()["message"], "a client would crash on that"


def test_a_key_expires(server: Deployment) -> None:
    made = make(server, expires_in=1)
    assert bearer(server, made["key"]).status_code == 200
    time.sleep(1)
    expect_refused(server, made["key"])
    assert listed(server) == []


def test_a_user_has_no_more_keys_than_allowed(server: Deployment) -> None:
    ids = [make(server)["id"] for _ in range(5)]
    refused = server.call("POST", KEYS, json={})
    assert refused.status_code == 400
    assert refused.json()["message"].startswith("You have 5 API keys and may have 5")
    assert server.call("DELETE", f"{KEYS}/{ids[0]}").status_code == 200
    make(server)
    make(server, "ann")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[]", "must be a JSON object"),
        (b"{", "not valid JSON"),
        (b'{"name": 1}', "'name' of a key is a text"),
        (b'{"name": "a\\nb"}', "printable"),
        (b'{"name": "' + b"x" * 101 + b'"}', "at most 100"),
        (b'{"expires_in": "soon"}', "'expires_in' must be a duration"),
        (b'{"expires_in": "31d"}', "at most 30d"),
        (b'{"expires_in": 0}', "at least 1s"),
        (b'{"expires_in": 1e999}', "'expires_in' must be"),
        (b'{"expires_in": true}', "'expires_in' must be"),
        (b'{"expires_in": null}', "'expires_in' must be"),
    ],
)
def test_a_wish_that_cannot_be_granted_is_refused(
    server: Deployment, body: bytes, said: str
) -> None:
    headers = {"Content-Type": "application/json"}
    response = server.call("POST", KEYS, data=body, headers=headers)
    assert response.status_code == 400
    assert said in response.json()["message"]
    assert listed(server) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://elsewhere.example.org"},
        {"Origin": "null", "Content-Type": "application/x-www-form-urlencoded"},
        {"Origin": "null", "Content-Type": "text/plain"},
    ],
)
def test_a_page_of_another_site_cannot_have_a_browser_make_keys(
    server: Deployment, headers: dict[str, str]
) -> None:
    """Browsers send the password that they know, and ask us first only where a form could not ask."""
    assert server.call("POST", KEYS, headers=headers).status_code == 415
    assert listed(server) == []
    headers["Content-Type"] = "application/json"
    assert server.call("POST", KEYS, data="{}", headers=headers).status_code == 200


def test_a_body_need_not_be_there_but_be_json(server: Deployment) -> None:
    assert server.call("POST", KEYS).status_code == 200
    assert server.call("POST", KEYS, data="name=x").status_code == 415
    assert server.call("POST", KEYS, json={"name": "x" * 5000}).status_code == 413
    for user, headers in (
        (None, {}),
        (None, {"Authorization": "Basic am9lOndyb25n"}),
        (None, {"Authorization": f"Bearer {new_key()}"}),
    ):
        response = server.call("POST", KEYS, user=user, json={}, headers=headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"]


def test_operators_list_and_revoke(server: Deployment) -> None:
    def admin(*arguments: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "polytope_server", "admin", *arguments]
        done = subprocess.run(
            [*command, "--json", "-f", str(server.file)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    made, other = make(server, name="laptop"), make(server, "ann")
    assert {key["id"] for key in admin("keys", "list")} == {made["id"], other["id"]}
    (found,) = admin("keys", "list", "--user", "joe")
    assert (found["id"], found["name"], found["user"]["username"]) == (made["id"], "laptop", "joe")
    assert "digest" not in found
    (outcome,) = admin("keys", "revoke", made["id"], "--reason", "published")
    assert outcome["done"]
    expect_refused(server, made["key"])
    assert bearer(server, other["key"]).status_code == 200
    (entry,) = admin("audit", "--target", made["id"])
    assert (entry["command"], entry["reason"]) == ("revoke key", "published")


def test_no_key_is_in_any_log_or_file(server: Deployment) -> None:
    made = make(server, name="secret?")
    bearer(server, made["key"])
    bearer(server, made["key"][:-1] + "?")
    assert made["key"][:-7] not in server.all_logs()
    for file in server.directory.rglob("*"):
        if file.is_file():
            assert made["key"][:-7].encode() not in file.read_bytes(), file


def test_a_user_who_is_taken_out_of_the_configuration_has_no_key_and_guessing_is_slow(
    tmp_path: Path,
) -> None:
    changes = {"api-keys": {"enabled": True}, "reload": {"interval": 0.2}}
    with Deployment(tmp_path, changes=changes, names=["frontend"]) as server:
        keys = {user: make(server, user)["key"] for user in ("joe", "ann")}
        assert [bearer(server, key).status_code for key in keys.values()] == [200, 200]
        tree = json.loads(server.file.read_text())
        local = tree["authentication"][REALM]["authenticators"]["local"]
        local["users"] = [user for user in local["users"] if user["uid"] != "joe"]
        write(server, tree)
        until(lambda: bearer(server, keys["joe"]).status_code == 401)
        assert bearer(server, keys["ann"]).status_code == 200
        begin = time.monotonic()
        guesses = FREE_GUESSES_OF_ADDRESS + 2  # the next one would wait for 4 times as long
        assert {bearer(server, new_key()).status_code for _ in range(guesses)} == {401}
        assert time.monotonic() - begin >= FIRST_PAUSE_S, "who guesses is slowed"
        begin = time.monotonic()
        assert bearer(server, keys["ann"]).status_code == 200
        assert time.monotonic() - begin < 3 * FIRST_PAUSE_S, "who has a key is not"
        # and with the section switched off, nobody has one
        tree["api-keys"]["enabled"] = False
        write(server, tree)
        until(lambda: bearer(server, keys["ann"]).status_code == 401)
        response = server.call("POST", KEYS, user="ann", json={})
        assert response.status_code == 501
        assert response.json()["message"].startswith("This server gives out no API keys")
        assert server.call("GET", KEYS, user="ann").status_code == 501


def write(server: Deployment, tree: dict[str, Any]) -> None:
    partial = server.file.with_suffix(".new")
    partial.write_text(json.dumps(tree))
    partial.replace(server.file)
