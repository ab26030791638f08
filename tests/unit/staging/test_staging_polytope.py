"""Staging in the object store, which really runs."""

import base64
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from polytope_server.config.staging import ObjectStoreSection
from polytope_server.errors import BackendUnavailable, ConfigurationError, ObjectNotFound
from polytope_server.registry import open_backend
from polytope_server.request import GRIB
from polytope_server.staging import CHUNK_BYTES, Staging
from polytope_server.staging.polytope import ObjectStoreStaging
from polytope_server.staging.wire import PART_BYTES
from polytope_server.testing.staging import (
    MEDIA_TYPE,
    StagingContract,
    StorageFullContract,
    get,
    put,
)

TOKEN = "token-of-the-store-for-tests"


@pytest.fixture
def staging(empty_store: Any) -> Staging:
    made: Staging = open_backend(
        "staging", "polytope", {**empty_store.options, "url": empty_store.url}
    )
    return made


@pytest.fixture
def again(empty_store: Any) -> Staging:
    return client(**empty_store.options)


@pytest.fixture
def full(empty_store: Any, staging: Staging) -> Iterator[Staging]:
    """A limit on the size of the store's files stands in for a full disk."""
    with empty_store.limited(1 << 20):
        yield staging


class TestObjectStoreStaging(StagingContract, StorageFullContract):
    """The contract, kept by `ObjectStoreStaging`."""


def client(**options: Any) -> ObjectStoreStaging:
    return ObjectStoreStaging(
        ObjectStoreSection.read({"token": TOKEN, **options}, where="staging.polytope")
    )


def test_a_section_without_a_token_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"staging\.polytope\.token"):
        ObjectStoreSection.read({}, where="staging.polytope")


def test_a_token_is_in_no_representation() -> None:
    section = ObjectStoreSection.read({"token": TOKEN}, where="staging.polytope")
    assert TOKEN not in repr(section)
    assert TOKEN not in repr(vars(ObjectStoreStaging(section)))


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("store", "http://store:8000"),
        ("https://store.example.org", "https://store.example.org:8000"),
        ("::1", "http://[::1]:8000"),
        ("https://[fe80::1]/", "https://[fe80::1]:8000"),
    ],
)
def test_hosts_are_written_in_several_ways(host: str, base: str) -> None:
    assert client(host=host)._base == base


@pytest.mark.parametrize(
    "host", ["", "a b", "ftp://store", "store/path", "user@store", "store:99", "ab:99"]
)
def test_hosts_that_are_none_are_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"staging\.polytope\.host"):
        client(host=host)


def test_the_wrong_token_is_said_to_be_wrong(empty_store: Any) -> None:
    wrong = client(**{**empty_store.options, "token": "another-token-altogether"})
    for call in (wrong.ping, lambda: put(wrong, "a"), lambda: wrong.stat("a")):
        with pytest.raises(BackendUnavailable, match=r"staging\.polytope\.token"):
            call()
    assert empty_store.files() == []


def test_a_store_that_is_away_is_unavailable() -> None:
    away = client(port=9, timeout=1)
    for call in (away.ping, lambda: away.read("a"), lambda: put(away, "a")):
        with pytest.raises(BackendUnavailable, match="does not answer"):
            call()


def link_to(staging: Staging, name: str, data: bytes) -> str | None:
    return staging.url(
        name,
        download_name="id.grib",
        media_type=GRIB,
        sha256=hashlib.sha256(data).hexdigest(),
        expires_s=60,
    )


def test_links_are_made_only_with_a_public_address(empty_store: Any) -> None:
    private = client(**empty_store.options)
    put(private, "a")
    assert link_to(private, "a", b"data") is None


def test_a_link_needs_no_credentials_and_says_what_clients_need(empty_store: Any) -> None:
    public = client(**empty_store.options, url=empty_store.url + "/")
    data = b"GRIB7777"
    put(public, "id-1.grib", data)
    link = link_to(public, "id-1.grib", data)
    assert link is not None
    assert link.startswith(f"{empty_store.url}/id-1.grib?")
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    for method in ("GET", "HEAD"):
        answer = requests.request(method, link, timeout=10)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == GRIB
        assert answer.headers["Content-Length"] == "8"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="id.grib"'
        assert answer.headers["Repr-Digest"] == f"sha-256=:{digest}:"
        assert answer.headers["ETag"] == f'"{hashlib.sha256(data).hexdigest()}"'
        assert answer.content == (data if method == "GET" else b"")


@pytest.fixture
def own_store(tmp_path: Path, store: Any) -> Iterator[Any]:
    running = type(store)(tmp_path, graceful_timeout=5)
    running.start()
    yield running
    running.stop()


def test_an_upload_survives_a_crash_of_the_store(own_store: Any) -> None:
    staging = client(**own_store.options)
    data = hashlib.shake_256(b"seed").digest(PART_BYTES)
    with staging.create("a", media_type=MEDIA_TYPE) as upload:
        for _ in range(3):
            upload.write(data)
        own_store.kill()
        restart = threading.Timer(0.3, own_store.start)
        restart.start()
        upload.write(data)
        restart.join()
        upload.commit()
    assert get(staging, "a") == data * 4


def test_a_store_that_is_started_too_late_fails_the_upload(own_store: Any) -> None:
    staging = client(**own_store.options, timeout=1)
    with staging.create("a", media_type=MEDIA_TYPE) as upload:
        upload.write(b"x" * PART_BYTES)
        own_store.kill()
        with pytest.raises(BackendUnavailable):
            upload.write(b"x" * PART_BYTES)
    own_store.start()
    assert staging.list("") == []
    assert staging.remove_stale_uploads(age_s=0) == 1
    assert own_store.files() == []


def test_a_store_that_crashes_while_it_is_read_is_noticed(own_store: Any) -> None:
    staging = client(**own_store.options)
    put(staging, "a", b"x" * (64 * CHUNK_BYTES))
    chunks = staging.read("a")
    next(chunks)
    own_store.kill()
    with pytest.raises(BackendUnavailable, match="broke"):
        for _ in chunks:
            pass


def test_upload_with_pauses_is_not_cut(empty_store: Any, staging: Staging) -> None:
    with staging.create("a", media_type=MEDIA_TYPE) as upload:
        for _ in range(3):
            upload.write(b"x" * PART_BYTES)
            time.sleep(0.2)
        upload.commit()
    assert staging.stat("a").size_bytes == 3 * PART_BYTES


def test_another_server_on_that_port_is_no_store(empty_store: Any) -> None:
    import http.server

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"hi")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever).start()
        other = client(port=server.server_address[1], timeout=5)
        with pytest.raises(BackendUnavailable, match="no object store"):
            other.ping()
        server.shutdown()


def test_the_stores_own_pages_are_no_objects(staging: Staging) -> None:
    for call in (staging.stat, staging.delete, staging.read):
        with pytest.raises(ValueError, match="healthz"):
            call("healthz")
    with pytest.raises(ObjectNotFound):
        staging.stat("uploads")
