"""What the configuration of a deployment says to those who want to use it."""

import json
from pathlib import Path
from typing import Any

import pytest
from deployed import Deployed, deployed

from polytope_server.errors import ConfigurationError

HASH = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaGhhc2g"


def read(tmp_path: Path, *changes: dict[str, Any], **environ: str) -> Deployed:
    tree = {
        "authentication": {
            "here": {
                "authenticators": {
                    "local": {
                        "type": "plain",
                        "users": [
                            {"uid": "ann", "password": HASH},
                            {"uid": "joe", "password": "joes-password"},
                        ],
                    }
                }
            }
        },
        "datasources": {"echo": {"type": "echo"}},
        "collections": {
            "few": {
                "roles": {"here": ["default"]},
                "limits": {"total": 1},
                "datasources": ["echo"],
            },
            "some": {
                "roles": {"here": ["default"]},
                "datasources": [{"name": "echo", "match": {"class": "od"}}],
            },
            "open": {"roles": {"here": ["default"]}, "datasources": ["echo"]},
        },
    }
    files = []
    for number, each in enumerate((tree, *changes)):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(json.dumps(each))
    return deployed(files, environ={"POLYTOPE_SYSTEM_CONFIG": "", **environ})


@pytest.mark.parametrize(
    ("frontend", "url"),
    [
        ({}, "http://localhost:5000"),
        ({"bind_to": "0.0.0.0", "port": 80}, "http://127.0.0.1:80"),
        ({"bind_to": "::", "port": 80}, "http://[::1]:80"),
        ({"bind_to": "10.0.0.7"}, "http://10.0.0.7:5000"),
        ({"public_url": "https://p.example.org/x/"}, "https://p.example.org/x"),
    ],
)
def test_the_address(tmp_path: Path, frontend: dict[str, Any], url: str) -> None:
    assert read(tmp_path, {"frontend": frontend}).url == url
    elsewhere = read(tmp_path, {"frontend": frontend}, POLYTOPE_ADDRESS="http://q:1")
    assert elsewhere.url == "http://q:1"


def test_users_are_those_with_a_clear_password(tmp_path: Path) -> None:
    found = read(tmp_path)
    (joe,) = found.users
    assert joe.name == "joe"
    assert joe.authorization == "Basic am9lOmpvZXMtcGFzc3dvcmQ="
    assert "joes-password" not in repr(found)
    assert "am9l" not in repr(found)


def test_users_of_the_environment_come_first(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        POLYTOPE_USER_KEY="k",
        POLYTOPE_OTHER_USERNAME="eve",
        POLYTOPE_OTHER_PASSWORD="p",
    )
    assert [user.authorization for user in found.users[:2]] == ["Bearer k", "Basic ZXZlOnA="]
    assert len(found.users) == 3
    with_email = read(tmp_path, POLYTOPE_USER_KEY="k", POLYTOPE_USER_EMAIL="e@x.org")
    assert with_email.users[0].authorization == "EmailKey e@x.org:k"


def test_without_users_it_says_how_to_name_one(tmp_path: Path) -> None:
    (tmp_path / "only.yaml").write_text(json.dumps({}))
    with pytest.raises(ConfigurationError, match="POLYTOPE_USERNAME"):
        deployed([tmp_path / "only.yaml"], environ={"POLYTOPE_SYSTEM_CONFIG": ""})


def test_collections_that_take_any_request_the_open_ones_first(tmp_path: Path) -> None:
    assert [each.name for each in read(tmp_path).of_type("echo")] == ["open", "few"]
