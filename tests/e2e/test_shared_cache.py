"""Two frontends with one Redis and a directory: each knows who has logged in to the other."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from deployment import USERS, Deployment, until
from services.fixtures import started
from services.redis import Redis
from services.slapd import READER, READER_PASSWORD, SUFFIX, Slapd

REALM = "example"


class Stack(NamedTuple):
    one: Deployment
    other: Deployment
    redis: Redis
    slapd: Slapd


def sections(directory: Path, redis: Redis, slapd: Slapd) -> dict[str, Any]:
    users = [{"uid": uid, "password": password} for uid, password in USERS.items()]
    return {
        "request_store": {"sqlite": {"path": str(directory / "requests.sqlite")}},
        "queue": {"sqlite": {"path": str(directory / "queue.sqlite")}},
        "staging": {"local": {"root_dir": str(directory / "staging")}},
        "caching": {"redis": {"host": "127.0.0.1", "port": redis.port()}},
        "authentication": {
            REALM: {
                "authenticators": {"local": {"type": "plain", "users": users}},
                "authorizers": {
                    "directory": {
                        "type": "ldap",
                        "url": slapd.url,
                        "search_base": SUFFIX,
                        "bind_dn": READER,
                        "ldap_password": READER_PASSWORD,
                        "timeout": 1,
                    }
                },
            }
        },
        "collections": {"c1": {"roles": {REALM: ["data-access"]}, "datasources": ["echo"]}},
    }


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with started(Redis) as redis, started(Slapd) as slapd:
        dns = {name: slapd.add_person(name) for name in ("joe", "ann", "eve")}
        slapd.add_group("data-access", [dns["joe"], dns["eve"]])
        replaced = sections(tmp_path, redis, slapd)
        # without a key of its own: then it is the one that the store keeps for all
        changes = {"frontend": {"signing_key": None}}
        with (
            Deployment(
                tmp_path / "one", names=["frontend"], changes=changes, replaced=replaced
            ) as one,
            Deployment(
                tmp_path / "other", names=["frontend"], changes=changes, replaced=replaced
            ) as other,
        ):
            yield Stack(one, other, redis, slapd)


def status(deployment: Deployment, user: str) -> int:
    return deployment.call("GET", "/requests", user=user).status_code


def submitted(deployment: Deployment, user: str) -> int:
    body = {"verb": "retrieve", "request": {"a": "b"}}
    return deployment.call("POST", "/requests/c1", user=user, json=body).status_code


def test_a_login_to_one_frontend_is_known_to_the_other_and_neither_server_is_a_condition(
    stack: Stack,
) -> None:
    one, other, redis, slapd = stack
    assert submitted(one, "joe") == 202
    assert submitted(one, "ann") == 403

    slapd.kill()
    assert submitted(other, "joe") == 202  # whose roles only the other could know
    assert submitted(other, "ann") == 403
    assert submitted(other, "eve") == 503  # which is not: no such role
    slapd.start()
    until(lambda: submitted(other, "eve") == 202)

    redis.kill()
    for deployment in (one, other):
        begin = time.monotonic()
        for user in ("joe", "eve"):
            assert submitted(deployment, user) == 202
        assert time.monotonic() - begin < 5
        answer = requests.get(f"{deployment.url}/readyz", timeout=20)
        assert (answer.status_code, answer.json()["caching"]) == (200, "away")
    redis.start()
    for deployment in (one, other):
        until(
            lambda d=deployment: (
                requests.get(f"{d.url}/readyz", timeout=20).json()["caching"] == "ok"
            )
        )

    redis.pause()
    begin = time.monotonic()
    assert [status(one, user) for user in ("joe", "ann", "eve", "joe")] == [200] * 4
    assert time.monotonic() - begin < 5
    redis.resume()
    logs = one.all_logs() + other.all_logs()
    assert not any(secret in logs for secret in (*USERS.values(), READER_PASSWORD))
    assert one.log("frontend").count("A server is away") <= 4
