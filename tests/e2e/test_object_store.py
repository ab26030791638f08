"""A deployment whose staging is the object store: a process of its own, which may be killed as well."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from deployment import PROCESSES, Deployment, free_port, until

TOKEN = "object-store-token-of-tests-3c1"


def deployment(directory: Path, *, public: bool) -> Deployment:
    port = free_port()
    section = {
        "host": "127.0.0.1",
        "port": port,
        "bind_to": "127.0.0.1",
        "root_dir": str(directory / "objects"),
        "token": TOKEN,
    }
    if public:
        section["url"] = f"http://127.0.0.1:{port}"
    return Deployment(
        directory,
        replaced={"staging": {"polytope": section}},
        names=("object-store", *PROCESSES),
    )


@pytest.fixture(params=[True, False], ids=["own address", "behind the frontend"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    with deployment(tmp_path / "d", public=request.param) as server:
        yield server


def test_results_are_delivered_whole(stored: Deployment) -> None:
    request_id = stored.submit("9000000", collection="bytes")
    link = stored.finished(request_id).headers["Location"]
    response = requests.get(link, timeout=60)
    assert response.content == b"x" * 9_000_000
    assert response.headers["Content-Type"] == "application/x-grib"
    assert response.headers["Content-Length"] == "9000000"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{request_id}.grib"'
    digest = hashlib.sha256(response.content)
    assert response.headers["ETag"] == f'"{digest.hexdigest()}"'
    wanted = f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert response.headers["Repr-Digest"] == wanted
    headers = {"Range": "bytes=8999990-", "If-Range": response.headers["ETag"]}
    part = requests.get(link, headers=headers, timeout=60)
    assert (part.status_code, part.content) == (206, b"x" * 10)
    assert requests.head(link, timeout=60).headers["Content-Length"] == "9000000"
    stored.call("DELETE", f"/requests/{request_id}")
    until(lambda: requests.get(link, timeout=60).status_code in (404, 410))


def test_archives_go_through_it(stored: Deployment) -> None:
    response = stored.call(
        "POST", "/requests/c1", json={"verb": "archive", "request": {"class": "rd"}}
    )
    location, data = response.headers["Location"], b"d" * 6_000_000
    headers = {"X-Checksum": hashlib.md5(data).hexdigest()}
    assert stored.call("POST", location, data=data, headers=headers).status_code == 202
    until(lambda: stored.call("GET", location).status_code == 200)


def test_a_store_that_is_away_makes_requests_wait_not_fail(tmp_path: Path) -> None:
    with deployment(tmp_path / "d", public=True) as server:
        server.kill_group(server.processes["object-store"])
        ids = [server.submit("1000", collection="bytes") for _ in range(20)]
        until(lambda: "staging cannot take the result now" in server.log("worker"))
        assert requests.get(f"{server.url}/readyz", timeout=60).status_code == 503
        assert {server.poll(request_id).status_code for request_id in ids[:3]} == {202}
        server.start("object-store")
        for request_id in ids:
            assert server.result(request_id, deadline_s=120) == b"x" * 1000


def test_the_store_serves_nobody_without_token_or_link(stored: Deployment) -> None:
    request_id = stored.submit("10", collection="bytes")
    stored.result(request_id)
    options = stored.tree["staging"]["polytope"]
    store = f"http://127.0.0.1:{options['port']}"
    for method, path in (
        ("GET", "/"),
        ("GET", f"/{request_id}-1.grib"),
        ("DELETE", "/x"),
        ("PUT", "/x"),
    ):
        assert requests.request(method, store + path, timeout=60).status_code in (401, 403), path
    assert TOKEN not in stored.all_logs()
