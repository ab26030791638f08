"""No secret is in any log, and every line tells whose request it is about."""

import base64
import hashlib
import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from deployment import APIKEY, PEER_SECRET, SIGNING_KEY, USERS, Deployment, until


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployment, set[str], dict[str, str]]:
    """A deployment that was used in all kinds of ways, with the secrets that took, and its log."""
    directory = tmp_path_factory.mktemp("secrets")
    secrets = {*USERS.values(), SIGNING_KEY, APIKEY, PEER_SECRET}
    owners: dict[str, str] = {}
    with Deployment(directory, changes={"logging": {"level": "DEBUG"}}) as server:
        for user, password in USERS.items():
            basic = base64.b64encode(f"{user}:{password}".encode()).decode()
            secrets.add(basic)
            response = requests.get(
                f"{server.api}/user",
                headers={"Authorization": f"EmailKey {user}@x:key-{user}-8812, Basic {basic}"},
                timeout=60,
            )
            assert response.status_code == 200
            secrets.add(f"key-{user}-8812")
        for wrong in ("wrong-guess-1", "wrong-guess-2"):
            secrets.add(wrong)
            requests.get(f"{server.api}/user", auth=("joe", wrong), timeout=60)
        for collection in ("c1", "failing", "crashing"):
            request_id = server.submit("x: 1", collection=collection, user="ann")
            owners[request_id] = "ann"
            response = server.finished(request_id, user="ann")
            if response.status_code == 303:
                link = response.headers["Location"]
                secrets.add(parse_qs(urlsplit(link).query)["signature"][0])
                requests.get(link, timeout=60)
                requests.get(link + "x", timeout=60)
        response = server.call(
            "POST", "/requests/c1", json={"verb": "archive", "request": {"class": "rd"}}
        )
        location = response.headers["Location"]
        owners[location.rpartition("/")[2]] = "joe"
        checksum = {"X-Checksum": hashlib.md5(b"data").hexdigest()}
        server.call("POST", location, data=b"data", headers=checksum)
        until(lambda: server.call("GET", location).status_code == 200)
        server.call("POST", "/requests/c1", data=b"{", headers={"Content-Type": "application/json"})
        hanging = server.submit("x: 1", collection="hanging")
        owners[hanging] = "joe"
        until(lambda: server.poll(hanging).json()["status"] == "processing")
        server.call("DELETE", f"/requests/{hanging}")
        server.result(server.submit("1", collection="bytes"))
    return server, secrets, owners


def test_no_secret_is_in_any_log(used: tuple[Deployment, set[str], dict[str, str]]) -> None:
    server, secrets, _ = used
    logs = server.all_logs()
    assert len(logs) > 10_000
    assert [secret for secret in secrets if secret in logs] == []


def test_every_line_is_one_json_object(
    used: tuple[Deployment, set[str], dict[str, str]],
) -> None:
    server, _, _ = used
    for line in server.all_logs().splitlines():
        record = json.loads(line)
        assert {"asctime", "level", "message", "process"} <= record.keys(), line


def test_every_process_tells_request_and_user(
    used: tuple[Deployment, set[str], dict[str, str]],
) -> None:
    server, _, owners = used
    for request_id, user in owners.items():
        lines = [json.loads(line) for line in server.all_logs().splitlines() if request_id in line]
        about = [line for line in lines if line.get("request_id") == request_id]
        assert {line.get("user") for line in about} == {user}, request_id
        assert {"frontend", "broker", "worker"} <= {line["process"] for line in about}


def test_a_slot_tells_them_too(used: tuple[Deployment, set[str], dict[str, str]]) -> None:
    server, _, owners = used
    lines = [json.loads(line) for line in server.log("worker").splitlines()]
    slot = [line for line in lines if line["process"] == "slot" and "request_id" in line]
    assert slot
    assert all(owners.get(line["request_id"], line["user"]) == line["user"] for line in slot)


def test_nothing_that_is_stored_holds_a_password_or_a_key(
    used: tuple[Deployment, set[str], dict[str, str]],
) -> None:
    server, _, _ = used
    for file in Path(server.directory).glob("*.sqlite*"):
        if file.is_file():
            data = file.read_bytes()
            assert not [p for p in USERS.values() if p.encode() in data], file
            assert APIKEY.encode() not in data, file
