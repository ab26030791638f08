"""polytope-client, as users have it."""

import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from callers import Caller, Place
from deployed import Deployed
from polytope import api


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's settings and keys are read or written."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name in list(os.environ):
        if name.startswith("POLYTOPE_"):
            monkeypatch.delenv(name)
    return tmp_path


def client_of(caller: Caller, deployment: Deployed, home: Path) -> Any:
    assert caller.user is not None
    return api.Client(
        config_path=str(home),
        address=deployment.url,
        insecure=urlsplit(deployment.url).scheme == "http",
        quiet=True,
        **caller.user.client,
    )


def test_retrieve(dummy: Place, deployment: Deployed, home: Path) -> None:
    client = client_of(dummy.caller, deployment, home)
    client.retrieve(dummy.name, "100000", output_file="out.grib")
    assert (home / "out.grib").read_bytes() == b"x" * 100_000
    client.revoke(client.list_requests()[-1])


def test_retrieve_later_describe_and_revoke(echo: Place, deployment: Deployed, home: Path) -> None:
    client = client_of(echo.caller, deployment, home)
    (result,) = [client.retrieve(echo.name, "x: later", asynchronous=True)]
    result = result[0] if isinstance(result, list) else result
    described = result.describe()
    assert described["collection"] == echo.name
    result.download(output_file="later.bin")
    assert (home / "later.bin").read_bytes() == b"x: later"
    assert described["id"] in client.list_requests()
    client.revoke(described["id"])
    assert described["id"] not in client.list_requests()


def test_collections_and_user(echo: Place, deployment: Deployed, home: Path) -> None:
    client = client_of(echo.caller, deployment, home)
    client.ping()
    client.describe_user()
    assert echo.name in client.list_collections()


def test_archive_from_a_file(echo: Place, deployment: Deployed, home: Path) -> None:
    client = client_of(echo.caller, deployment, home)
    before = set(client.list_requests())
    (home / "new.grib").write_bytes(b"GRIB" + bytes(1000))
    (home / "metadata.yaml").write_text(yaml.safe_dump({"class": "rd", "expver": "0001"}))
    client.archive(echo.name, "metadata.yaml", "new.grib", inline_metadata=False)
    made = [i for i in client.list_requests() if i not in before]
    assert made
    for request_id in made:
        client.revoke(request_id)


def test_a_wrong_password_is_told(stranger: Caller, deployment: Deployed, home: Path) -> None:
    client = client_of(stranger, deployment, home)
    with pytest.raises(Exception, match=r"(?i)authenti|credential|401|accepted"):
        client.list_collections()
