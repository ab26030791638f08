"""The API document against the started server: what it says can be had, and nothing else comes.

schemathesis makes about a thousand calls out of the document, good and bad ones. ``SEED=2`` makes
others, ``EXAMPLES=500`` makes more.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
import schemathesis
from deployment import USERS, Deployment, until
from documented import faults
from openapi_spec_validator import OpenAPIV31SpecValidator

ORIGIN = "https://portal.example.org"
SEED = os.environ.get("SEED", "1")
EXAMPLES = os.environ.get("EXAMPLES", "30")
HERE = Path(__file__).parent
DATA = b"GRIB"
CHECKSUM = {"X-Checksum": hashlib.md5(DATA).hexdigest()}
UNREADABLE = {"Authorization": "Basic !!!"}
OURS = {"500", "503"}
"""Statuses of what goes wrong behind the API."""


@dataclass(frozen=True)
class Situation:
    """A server where there is a request of each kind."""

    server: Deployment
    document: Mapping[str, Any]
    processed: str
    failed: str
    processing: str
    uploading: str
    archived: str
    link: str
    """To the result of `processed`."""
    dead_link: str

    @property
    def ids(self) -> list[str]:
        return [self.processed, self.failed, self.processing, self.uploading, self.archived]


def archive(server: Deployment) -> str:
    """A request that awaits its data."""
    return server.submit({"class": "rd"}, verb="archive")


@pytest.fixture(scope="module")
def situation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Situation]:
    changes = {
        "frontend": {
            "long_poll": 0,
            "allow_origin": ORIGIN,
            "max_request": "64K",
            "max_upload": "1M",
            "max_unfinished": 5000,
        },
        "worker": {"timeout": 600},
        "api-keys": {"enabled": True, "max_per_user": 1000},
        # DELETE takes "all" for all requests, and leaves the collection: to schemathesis, not deleted
        "collections": {"all": None},
    }
    with Deployment(tmp_path_factory.mktemp("documented"), changes=changes) as server:
        processing = server.submit("x: 1", collection="hanging")
        processed, revoked = server.submit("hello"), server.submit("hello")
        failed = server.submit("x: 1", collection="failing")
        archived = archive(server)
        server.call("POST", f"/uploads/{archived}", data=DATA, headers=CHECKSUM)
        dead_link = server.finished(revoked).headers["Location"]
        server.call("DELETE", f"/requests/{revoked}")
        server.finished(failed)
        server.finished(archived)
        until(lambda: server.poll(processing).json()["status"] == "processing")
        yield Situation(
            server=server,
            document=requests.get(f"{server.url}/openapi.json", timeout=60).json(),
            processed=processed,
            failed=failed,
            processing=processing,
            uploading=archive(server),
            archived=archived,
            link=server.finished(processed).headers["Location"],
            dead_link=dead_link,
        )


def test_the_document_is_openapi_3_1(situation: Situation) -> None:
    OpenAPIV31SpecValidator(situation.document).validate()
    assert situation.document["openapi"].startswith("3.1")
    url = f"{situation.server.api}/openapi"
    same = requests.get(url, timeout=60).json()
    assert same["paths"] == situation.document["paths"]
    for document, found_at in ((situation.document, "/openapi.json"), (same, "/api/v1/openapi")):
        for server in document["servers"]:
            base = requests.compat.urljoin(situation.server.url + found_at, server["url"])
            assert base.rstrip("/") == situation.server.url


def test_every_documented_answer_can_be_had_and_is_as_documented(situation: Situation) -> None:
    """And each status that the document has, but those of faults of ours, is here."""
    server = situation.server
    api = schemathesis.openapi.from_dict(dict(situation.document))
    seen: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    def call(method: str, path: str, url: str, *statuses: int, **options: Any) -> None:
        """Call, expect one of these, and compare with what is documented for *path*."""
        for each in ("GET", "HEAD") if method == "GET" else (method,):
            response = server.call(each, url, **options)
            assert response.status_code in statuses, (each, url, response.text)
            headers = {name.lower(): value for name, value in response.headers.items()}
            found = faults(situation.document, path, each, response.status_code, headers)
            assert not found, (each, url, found)
            if each != "HEAD":
                api[path][each].validate_response(response)
            seen[path, each].add(str(response.status_code))

    def root(path: str) -> str:
        return server.url + path

    for path in ("/", "/openapi.json", "/healthz", "/readyz", "/api/v1/test", "/api/v1/openapi"):
        call("GET", path, root(path), 200, user=None)
    call("GET", "/ui/{file}", root("/ui/swagger-ui.css"), 200, user=None)
    call("GET", "/ui/{file}", root("/ui/index.html"), 404, user=None)
    for path in ("/api/v1/user", "/api/v1/collections", "/api/v1/requests"):
        call("GET", path, root(path), 200)
        call("GET", path, root(path), 401, user=None)

    keys, a_key = "/api/v1/auth/keys", "/api/v1/auth/keys/{key_id}"
    call("POST", keys, "/auth/keys", 200, json={"name": "laptop", "expires_in": "1h"})
    call("POST", keys, "/auth/keys", 200)
    call("POST", keys, "/auth/keys", 400, json={"expires_in": 0})
    call("POST", keys, "/auth/keys", 401, json={}, user=None)
    made = server.call("POST", "/auth/keys").json()
    bearer = {"Authorization": f"Bearer {made['key']}"}
    call("POST", keys, "/auth/keys", 403, json={}, user=None, headers=bearer)
    call("POST", keys, "/auth/keys", 413, json={"name": "x" * 5000})
    call("POST", keys, "/auth/keys", 415, data="x")
    call("GET", keys, "/auth/keys", 200, user=None, headers=bearer)
    call("GET", keys, "/auth/keys", 401, user=None)
    call("GET", a_key, f"/auth/keys/{made['id']}", 200)
    call("GET", a_key, "/auth/keys/nobodys", 404)
    call("GET", a_key, f"/auth/keys/{made['id']}", 401, user=None)
    call("DELETE", a_key, f"/auth/keys/{made['id']}", 200)
    call("DELETE", a_key, f"/auth/keys/{made['id']}", 404)
    call("DELETE", a_key, f"/auth/keys/{made['id']}", 401, user=None)

    poll = "/api/v1/requests/{name}"
    for request_id, status in (
        ("c1", 200),
        (situation.archived, 200),
        (situation.processing, 202),
        (situation.uploading, 202),
        (situation.processed, 303),
        (situation.failed, 400),
        ("nobody", 404),
    ):
        call("GET", poll, f"/requests/{request_id}", status)
    call("GET", poll, "/requests/c1", 401, user=None)

    hello = {"verb": "retrieve", "request": "hello"}
    call("POST", poll, "/requests/c1", 202, json=hello)
    call("POST", poll, "/requests/c1", 202, json={"verb": "archive", "request": {"class": "rd"}})
    call("POST", poll, "/requests/c1", 400, json={"verb": "retrieve"})
    call("POST", poll, "/requests/c1", 401, json=hello, user=None)
    call("POST", poll, "/requests/secret", 403, json=hello)
    call("POST", poll, "/requests/nowhere", 404, json=hello)
    call("POST", poll, "/requests/c1", 413, json=hello | {"request": "x" * 70_000})
    call("POST", poll, "/requests/c1", 415, data="hello")
    call("POST", poll, "/requests/bytes", 501, json={"verb": "archive", "request": {"class": "rd"}})
    spare = server.submit("hello")
    call("DELETE", poll, f"/requests/{spare}", 200)
    call("DELETE", poll, f"/requests/{spare}", 404)
    call("DELETE", poll, "/requests/c1", 400)
    call("DELETE", poll, f"/requests/{spare}", 401, user=None)

    upload = "/api/v1/uploads/{request_id}"
    for request_id, status in (
        (situation.archived, 200),
        (situation.uploading, 202),
        (situation.processed, 303),
        (situation.failed, 400),
        ("nobody", 404),
    ):
        call("GET", upload, f"/uploads/{request_id}", status)
    call("GET", upload, "/uploads/nobody", 401, user=None)
    url = f"/uploads/{archive(server)}"
    other = {"X-Checksum": hashlib.md5(b"other").hexdigest()}
    call("POST", upload, url, 400, data=DATA)
    call("POST", upload, url, 401, data=DATA, user=None)
    call("POST", upload, "/uploads/nobody", 404, data=DATA, headers=CHECKSUM)
    call("POST", upload, url, 413, data=b"x" * 1_100_000, headers=CHECKSUM)
    call("POST", upload, url, 202, data=DATA, headers=CHECKSUM)
    call("POST", upload, url, 202, data=DATA, headers=CHECKSUM)
    call("POST", upload, url, 409, data=b"other", headers=other)

    for folder in ("", "any/"):
        download = f"/api/v1/downloads/{'{folder}/' if folder else ''}{{request_id}}"

        def data(text: str, folder: str = folder) -> str:
            return text.replace("/downloads/", f"/downloads/{folder}")

        link = data(situation.link)
        call("GET", download, link, 200, user=None)
        call("GET", download, data(f"/downloads/{situation.processed}"), 200)
        call("GET", download, link, 206, user=None, headers={"Range": "bytes=1-2"})
        call("GET", download, link, 416, user=None, headers={"Range": "bytes=99-"})
        call("GET", download, data(situation.dead_link), 410, user=None)
        call("GET", download, data(f"/downloads/{situation.processing}"), 202)
        call("GET", download, data(f"/downloads/{situation.failed}"), 400)
        call("GET", download, data("/downloads/nobody"), 404)
        call("GET", download, data("/downloads/nobody"), 401, user=None, headers=UNREADABLE)

    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "DELETE"}
    for path in situation.document["paths"]:
        call("OPTIONS", path, root(re.sub("{.*?}", "x", path)), 200, user=None)
        call("OPTIONS", path, root(re.sub("{.*?}", "x", path)), 200, user=None, headers=preflight)

    documented = {
        (path, method.upper()): set(operation["responses"]) - OURS
        for path, item in situation.document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }
    assert seen == documented


def test_without_api_keys_the_document_says_so(server: Deployment) -> None:
    document = requests.get(f"{server.url}/openapi.json", timeout=60).json()
    assert list(document["components"]["securitySchemes"]) == ["Basic", "Federation"]
    for method, path in (
        ("post", ""),
        ("get", ""),
        ("get", "/{key_id}"),
        ("delete", "/{key_id}"),
    ):
        responses = document["paths"][f"/api/v1/auth/keys{path}"][method]["responses"]
        assert set(responses) - OURS == {"401", "501"}
        response = server.call(method, f"/auth/keys{path}")
        assert response.status_code == 501
        assert "gives out no API keys" in response.json()["message"]


def test_pages_of_another_origin_may_call(situation: Situation) -> None:
    def call(method: str, path: str, origin: str, **headers: str) -> requests.Response:
        headers = {"Origin": origin, **{name.replace("_", "-"): v for name, v in headers.items()}}
        return situation.server.call(method, path, headers=headers)

    asked = {
        "Access_Control_Request_Method": "DELETE",
        "Access_Control_Request_Headers": "authorization",
    }
    preflight = call("OPTIONS", "/requests/c1", ORIGIN, **asked)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "DELETE" in preflight.headers["Access-Control-Allow-Methods"]
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"]
    answer = call("GET", f"/requests/{situation.processed}", ORIGIN)
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "Location" in answer.headers["Access-Control-Expose-Headers"]
    refused = call("GET", "/nowhere", ORIGIN)
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN, "scripts may read errors too"
    for other in (
        call("OPTIONS", "/requests/c1", "https://evil.example", **asked),
        call("GET", "/test", "https://evil.example"),
    ):
        assert not [name for name in other.headers if name.lower().startswith("access-control")]


def test_the_page_needs_nothing_from_elsewhere(situation: Situation) -> None:
    url = situation.server.url
    page = requests.get(f"{url}/", timeout=60)
    assert page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    needed = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert len(needed) >= 5
    for name in needed:
        assert "//" not in name
        assert not name.startswith("/"), "it works below a path, too"
        assert requests.get(f"{url}/{name}", timeout=60).status_code == 200
    assert "<script>" not in page.text


def test_what_is_away_is_told_as_documented(tmp_path: Path) -> None:
    changes = {"frontend": {"min_free": "1000T"}}
    with Deployment(tmp_path, changes=changes, names=["frontend"]) as server:
        document = requests.get(f"{server.url}/openapi.json", timeout=60).json()
        api = schemathesis.openapi.from_dict(document)
        ready = f"{server.url}/readyz"
        refused = server.call("POST", "/requests/c1", json={"verb": "retrieve", "request": "hello"})
        shutil.rmtree(tmp_path / "staging")
        until(lambda: server.call("GET", ready).status_code == 503)
        for path, response in (
            ("/api/v1/requests/{name}", refused),
            ("/readyz", server.call("GET", ready)),
        ):
            method = str(response.request.method)
            assert response.status_code == 503
            headers = {name.lower(): value for name, value in response.headers.items()}
            assert not faults(document, path, method, 503, headers)
            api[path][method].validate_response(response)


def test_schemathesis_finds_nothing_undocumented_and_no_5xx(
    situation: Situation, tmp_path: Path
) -> None:
    server = situation.server
    query = dict(parse_qsl(urlsplit(situation.link).query))
    spare = [server.submit(str(n)) for n in range(20)]
    keys = [server.call("POST", "/auth/keys").json()["id"] for _ in range(20)]
    collections = ["c1", "bytes", "secret"]
    ranges = ["bytes=0-1", "bytes=-2", "bytes=99-", "bytes=2-1", "lines=1-2"]

    def some(name: str, probability: float) -> dict[str, Any]:
        return {"dictionary": name, "probability": probability}

    fine_with_501 = {"expected-statuses": ["2xx", "4xx", 501]}
    settings = {
        "hooks": str(HERE / "schemathesis_hooks.py"),
        "request-timeout": 30,
        "max-redirects": 0,
        "generation": {"with-security-parameters": False},
        "auth": {"openapi": {"Basic": {"username": "joe", "password": USERS["joe"]}}},
        "dictionaries": {
            "names": {"values": situation.ids + collections},
            "ids": {"values": situation.ids},
            "collections": {"values": collections},
            "spare": {"values": spare},
            "keys": {"values": keys},
            "checksums": {"values": list(CHECKSUM.values())},
            "ranges": {"values": ranges},
            **{name: {"values": [value]} for name, value in query.items()},
        },
        "parameters": {
            "path.name": some("names", 0.7),
            "path.request_id": some("ids", 0.7),
            "header.X-Checksum": some("checksums", 0.5),
            "header.Range": some("ranges", 0.5),
            **{f"query.{name}": some(name, 0.5) for name in query},
        },
        "operations": [
            {"include-method": "OPTIONS", "phases": {"stateful": {"enabled": False}}},
            {"include-method": "DELETE", "parameters": {"path.name": some("spare", 0.5)}},
            {
                "include-operation-id": "submit",
                "parameters": {"path.name": some("collections", 0.7)},
                "checks": {"not_a_server_error": fine_with_501},
            },
            {
                "include-path": "/api/v1/auth/keys/{key_id}",
                "parameters": {"path.key_id": some("keys", 0.5)},
            },
        ],
    }
    file = tmp_path / "schemathesis.toml"
    file.write_text(_toml(settings))
    har = tmp_path / "calls.har"
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(file), "run"]
    command += [f"{server.url}/openapi.json", "--url", server.url, "--checks", "all"]
    # what is in a request is judged by the collection, and data by their checksum: no schema says that
    command += ["--exclude-checks", "positive_data_acceptance"]
    command += ["--seed", SEED, "--max-examples", EXAMPLES, "--no-color"]
    command += ["--generation-database", "none", "--report", "har", "--report-har-path", str(har)]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=1500, check=False
    )
    sys.stdout.write(f"SEED={SEED}\n{run.stdout}{run.stderr}")
    assert run.returncode == 0
    statuses: defaultdict[int, int] = defaultdict(int)
    for entry in json.loads(har.read_text())["log"]["entries"]:
        statuses[entry["response"]["status"]] += 1
    sys.stdout.write(f"answers by status: {dict(sorted(statuses.items()))}\n")
    assert {200, 202, 206, 303, 400, 401, 403, 404, 405} <= statuses.keys()
    assert sum(statuses.values()) > 700


def _toml(tree: Mapping[str, Any]) -> str:
    """TOML of plain values: each key of the top on a line of its own, with inline tables."""
    return "".join(f"{key} = {_inline(value)}\n" for key, value in tree.items())


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    return json.dumps(value)
