"""Checks 42 and 43: polytope-client, its command line, and earthkit-data, as users have them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment import REALM, USERS, Deployment, until
from polytope import api

from polytope_server.demo.run import examples
from polytope_server.demo.sample import DATES, Encoder, Field, make_fdb
from polytope_server.demo.walk import decoded

FIELD = Field(param="2t", date=DATES[0])


@pytest.fixture(scope="module")
def weather(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    directory = tmp_path_factory.mktemp("weather")
    changes = {
        "datasources": {"fdb": {"type": "fdb", "fdb_config": make_fdb(directory / "fdb")}},
        "collections": {"weather": {"roles": {REALM: ["default"]}, "datasources": ["fdb"]}},
    }
    with Deployment(directory / "d", changes=changes) as deployment:
        yield deployment


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's settings and keys are read or written."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("POLYTOPE_") or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def client(weather: Deployment, home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return api.Client(
        config_path=str(home),
        address=weather.url,
        username="joe",
        password=USERS["joe"],
        insecure=True,
        quiet=True,
    )


def fields(file: Path) -> list[Field]:
    found = list(decoded(file))
    assert all(one.is_right() for one in found)
    return [one.field for one in found]


@pytest.mark.conformance(42)
def test_42_retrieve_at_once(client: Any, home: Path) -> None:
    client.retrieve("weather", FIELD.keys(), output_file="out.grib")
    assert fields(home / "out.grib") == [FIELD]


@pytest.mark.conformance(42)
def test_42_retrieve_later(client: Any, home: Path) -> None:
    (result,) = [client.retrieve("weather", FIELD.keys(), asynchronous=True)]
    result = result[0] if isinstance(result, list) else result
    assert result.describe()["verb"] == "retrieve"
    result.download(output_file="later.grib")
    assert fields(home / "later.grib") == [FIELD]


@pytest.mark.conformance(42)
def test_42_pointer(client: Any) -> None:
    pointer = client.retrieve("weather", FIELD.keys(), pointer=True)
    pointer = pointer[0] if isinstance(pointer, list) else pointer
    assert pointer["contentType"] == "application/x-grib"
    assert int(pointer["contentLength"]) > 1000
    assert pointer["location"].startswith("http")


@pytest.mark.conformance(42)
def test_42_two_requests(client: Any, home: Path) -> None:
    two = [FIELD.keys(), FIELD.keys() | {"step": "6"}]
    client.retrieve("weather", two, output_file="two.grib")
    assert {field.step for field in fields(home / "two.grib")} == {0, 6}


@pytest.mark.conformance(42)
def test_42_request_from_a_file(client: Any, home: Path) -> None:
    request = home / "request.yaml"
    request.write_text(yaml.safe_dump(FIELD.keys()))
    client.retrieve("weather", str(request), inline_request=False, output_file="file.grib")
    assert fields(home / "file.grib") == [FIELD]


@pytest.mark.conformance(42)
def test_42_lists_and_descriptions(client: Any) -> None:
    assert "weather" in client.list_collections()
    client.ping()
    client.describe_user()
    client.retrieve("c1", "hello", asynchronous=True)
    listed = client.list_requests()
    assert listed
    assert client.describe_request(listed[0])["id"] == listed[0]


@pytest.mark.conformance(42)
def test_42_revoke(client: Any, weather: Deployment) -> None:
    request_id = weather.submit("x: 1", collection="hanging")
    client.revoke(request_id)
    assert weather.poll(request_id).status_code == 404
    ids = [weather.submit("x: 1", collection="hanging") for _ in range(2)]
    client.revoke("all")
    assert [weather.poll(i).status_code for i in ids] == [404, 404]


@pytest.mark.conformance(42)
def test_42_archive_from_a_file(client: Any, home: Path) -> None:
    field = Field(param="t", date=DATES[0], step=36, level=500)
    with Encoder() as encoder:
        (home / "new.grib").write_bytes(encoder.message(field))
    (home / "metadata.yaml").write_text(yaml.safe_dump(field.keys()))
    client.archive("weather", "metadata.yaml", "new.grib", inline_metadata=False)
    client.retrieve("weather", field.keys(), output_file="back.grib")
    assert (home / "back.grib").read_bytes() == (home / "new.grib").read_bytes()


@pytest.mark.conformance(42)
def test_42_a_refusal_is_told(client: Any) -> None:
    with pytest.raises(Exception, match="No datasource takes this request"):
        client.retrieve("weather", FIELD.keys() | {"feature": {"type": "timeseries"}})
    with pytest.raises(Exception, match="not in the archive"):
        client.retrieve("weather", FIELD.keys() | {"step": "7"}, output_file="none.grib")


def run_cli(weather: Deployment, home: Path, *arguments: str, password: str) -> Any:
    command = [
        str(Path(sys.executable).with_name("polytope")),
        *arguments,
        "--config-path", str(home),
        "--address", weather.url,
        "--username", "joe",
        "--password", password,
        "--insecure",
    ]  # fmt: skip
    return subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=120)


@pytest.mark.conformance(42)
def test_42_the_command_line(weather: Deployment, home: Path) -> None:
    good = run_cli(weather, home, "list", "collections", password=USERS["joe"])
    assert good.returncode == 0, good.stderr
    assert "weather" in good.stdout + good.stderr
    request = home / "request.yaml"
    request.write_text(yaml.safe_dump(FIELD.keys()))
    got = run_cli(
        weather, home, "retrieve", "weather", str(request), "cli.grib", password=USERS["joe"]
    )
    assert got.returncode == 0, got.stderr
    assert fields(home / "cli.grib") == [FIELD]
    bad = run_cli(weather, home, "list", "collections", password="wrong")
    assert bad.returncode == 1
    assert "not accepted" in bad.stderr


def test_the_commands_that_the_demo_prints_work_as_they_are(
    weather: Deployment, home: Path
) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    lines = examples(weather.url, username="joe", password=USERS["joe"], collection="c1")
    printed = []
    for line in lines:
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            env={**os.environ, "PATH": path},
            cwd=home,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (line, done.stderr)
        printed.append(done.stdout + done.stderr)
    assert "weather" in printed[0]
    assert "weather" in printed[2]
    assert "hello" in printed[3]


@pytest.mark.conformance(43)
@pytest.mark.parametrize("stream", [True, False])
def test_43_earthkit(
    weather: Deployment, home: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    from earthkit.data import from_source  # makes itself a home of its own

    monkeypatch.setenv("POLYTOPE_CONFIG_PATH", str(home))
    data = from_source(
        "polytope",
        "weather",
        FIELD.keys() | {"step": "0/6"},
        address=weather.url,
        username="joe",
        password=USERS["joe"],
        insecure=True,
        stream=stream,
    )
    steps, means = [], []
    for field in data.to_fieldlist():
        steps.append(int(field.get("metadata.step")))
        means.append(float(field.values.mean()))
    assert sorted(steps) == [0, 6]
    assert all(200 < mean < 320 for mean in means)


def test_what_was_archived_by_one_is_seen_by_all(weather: Deployment, client: Any) -> None:
    request_id = weather.submit(FIELD.keys() | {"step": "12"}, collection="weather", user="ann")
    until(lambda: weather.poll(request_id, user="ann").status_code == 303)
