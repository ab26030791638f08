"""What the store on MongoDB says of servers that it cannot use, and how it waits for those that are away."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from impostor import saying
from pymongo import MongoClient
from services.base import free_port
from services.fixtures import started
from services.mongodb import PASSWORD, USER, MongoDb

from polytope_server.config.mongodb import MongoStoreSection
from polytope_server.errors import BackendUnavailable, ConfigurationError, InvalidRequest
from polytope_server.registry import open_backend
from polytope_server.request import Status
from polytope_server.request_store.mongodb import MongoRequestStore
from polytope_server.request_store.mongodb.schema import REQUESTS, VERSION
from polytope_server.testing.request_store import (
    enqueue,
    finish,
    new_request,
    start,
)

WAIT_S = 1.0


def opened(**options: Any) -> MongoRequestStore:
    return MongoRequestStore(MongoStoreSection(**{"timeout": WAIT_S} | options))


def answers_again(store: MongoRequestStore, *, deadline_s: float = 30) -> None:
    end = time.monotonic() + deadline_s
    while True:
        try:
            store.ping()
        except BackendUnavailable:
            assert time.monotonic() < end
            time.sleep(0.1)
        else:
            return


def refusal(**options: Any) -> str:
    """What is said when it is opened; the options must not be among it."""
    with pytest.raises(ConfigurationError) as caught:
        opened(**options)
    said = str(caught.value)
    assert said.startswith("request_store.mongodb: ")
    assert "hunter2" not in said
    return said


# --- addresses


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("mongodb://joe:hunter2@db/a b", "database name"),
        ("mongodb://joe:hunter2@db:99999/", "Port must be"),
        ("mongodb://joe:hun/ter2@db/", "cannot be used"),
        ("mongodb://joe:hunter2@db/?tls=hunter2", "tls must be"),
        ("mongodb://joe:hunter2@db/?replicaset=a&tlss=true", "Unknown option"),
        ("mongodb://joe:hunter2@db/?tls=true&tlsCAFile=/no/such/file", "not readable"),
    ],
)
def test_an_address_that_cannot_be_used_is_told_without_the_password(uri: str, said: str) -> None:
    assert said in refusal(uri=uri)


@pytest.mark.parametrize("uri", ["db:27017", "http://db", "mongodb://", "mongodb://joe:hunter2@"])
def test_what_is_no_address_is_refused_with_one_that_would_be(uri: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"request_store.mongodb.uri: .*mongodb://db1"
    ) as e:
        open_backend("request_store", "mongodb", {"uri": uri})
    assert "hunter2" not in str(e.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("database", "a.b"),
        ("database", "x" * 64),
        ("collection", "system.x"),
        ("collection", "a$b"),
        ("collection", "a."),
        ("timeout", "2m"),
        ("max_pool_size", 0),
        ("log_level", "LOUD"),
    ],
)
def test_options_are_checked_before_anything_is_asked(key: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"request_store.mongodb.{key}: "):
        open_backend("request_store", "mongodb", {key: value})


def test_the_password_is_nowhere_to_be_seen() -> None:
    section = MongoStoreSection(uri="mongodb://joe:hunter2@db/", username="joe", password="hunter2")
    assert "hunter2" not in repr(section)
    assert "hunter2" not in str(section)


# --- servers that cannot hold the requests


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            {"version": "7.0.42", "versionArray": [7, 0, 42, 0], "ferretdbVersion": "v1.24.2"},
            "FerretDB v1.24.2, which cannot hold the requests",
        ),
        (
            {"versionArray": [7, 0, 42, 0], "ferretdb": {"version": "v1.9.0"}},
            "FerretDB v1.9.0, which cannot hold the requests",
        ),
        ({"version": "5.0.9", "versionArray": [5, 0, 9, 0]}, "MongoDB 5.0.9, which is too old"),
        ({"version": "5.0.9"}, "MongoDB 5.0.9, which is too old"),
    ],
)
def test_a_server_that_is_not_safe_is_refused_in_plain_words(
    build: dict[str, Any], said: str
) -> None:
    with saying(build) as port:
        text = refusal(uri=f"mongodb://127.0.0.1:{port}")
    assert said in text
    assert text.endswith("Use MongoDB 6.0 or later")


def test_another_version_of_ferretdb_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    build = {"versionArray": [7, 0, 77, 0], "ferretdb": {"version": "v2.1.0"}}
    with saying(build) as port, caplog.at_level(logging.WARNING):
        store = opened(uri=f"mongodb://127.0.0.1:{port}")
        store.close()
    assert any("FerretDB has not been tried" in record.message for record in caplog.records)


def test_what_would_be_refused_at_start_is_told_to_those_who_wait_if_it_shows_later() -> None:
    port = free_port()
    store = opened(uri=f"mongodb://127.0.0.1:{port}")
    with pytest.raises(BackendUnavailable, match="does not answer"):
        store.ping()
    with saying({"version": "5.0.9", "versionArray": [5, 0, 9]}, port=port):
        with pytest.raises(BackendUnavailable, match=r"MongoDB 5\.0\.9, which is too old"):
            store.ping()
        with pytest.raises(BackendUnavailable, match=r"MongoDB 5\.0\.9, which is too old"):
            store.get("x")
    store.close()


# --- users


@pytest.fixture(scope="module")
def locked() -> Iterator[MongoDb]:
    """A server that wants a password."""
    with started(MongoDb, auth=True) as server:
        yield server


def test_a_user_with_a_password_may(locked: MongoDb) -> None:
    store = opened(
        uri=locked.uri, username=USER, password=PASSWORD, database=locked.database(), timeout=10
    )
    assert finish(store, start(store, store.add(new_request()))).status is Status.PROCESSED
    store.close()


def test_keys_go_before_the_user_in_the_address(locked: MongoDb) -> None:
    uri = locked.uri.replace("://", "://joe:hunter2@")
    store = opened(uri=uri, username=USER, password=PASSWORD, database=locked.database())
    store.ping()
    store.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"username": USER, "password": "hunter2"},
            "does not accept the user name and the password",
        ),
        (
            {"username": USER, "password": PASSWORD, "auth_source": "elsewhere"},
            "names the database that knows the user (elsewhere)",
        ),
        ({"username": USER}, "does not let this user work in the database 'request_store'"),
        ({}, "give it the role readWrite there"),
    ],
)
def test_whom_the_server_does_not_let_in_is_told_why(
    locked: MongoDb, options: dict[str, Any], said: str
) -> None:
    assert said in refusal(uri=locked.uri, **options)


def test_a_password_that_turns_out_to_be_wrong_later_is_told_as_such_until_it_is_right(
    locked: MongoDb,
) -> None:
    locked.pause()
    try:
        store = opened(uri=locked.uri, username="late", password="hunter2", timeout=1)
    finally:
        locked.resume()
    with pytest.raises(BackendUnavailable, match="does not accept the user name"):
        store.ping()
    with locked.client() as client:
        client.admin.command("createUser", "late", pwd="hunter2", roles=["root"])
        answers_again(store)
        client.admin.command("dropUser", "late")
    store.close()


# --- TLS


@pytest.fixture(scope="module")
def encrypted() -> Iterator[MongoDb]:
    """A server that wants TLS, and is alone."""
    with started(MongoDb, tls=True, alone=True) as server:
        yield server


def test_a_certificate_is_trusted_if_its_authority_is_named(encrypted: MongoDb) -> None:
    store = opened(
        uri=encrypted.uri,
        tls_ca_file=encrypted.certificates.authority,
        database=encrypted.database(),
        timeout=10,
    )
    assert finish(store, start(store, store.add(new_request()))).status is Status.PROCESSED
    assert store._db.requests.read_concern.level == "local", "it has no majority"
    store.close()


def test_a_certificate_that_is_not_trusted_is_told_as_such(encrypted: MongoDb) -> None:
    said = refusal(uri=f"{encrypted.uri}&tls=true")
    assert "its certificate is not trusted; name the authority in `tls_ca_file`" in said


def test_a_certificate_for_another_name_is_not_trusted(encrypted: MongoDb) -> None:
    said = refusal(
        uri=f"mongodb://{socket.gethostname()}:{encrypted.port()}/?directConnection=true",
        tls_ca_file=encrypted.certificates.authority,
    )
    assert "certificate is for the name in `uri`" in said


def test_a_store_that_is_not_wanted_any_more_leaves_no_thread_behind(mongodb: MongoDb) -> None:
    before = set(threading.enumerate())
    store = opened(uri=mongodb.uri, database=mongodb.database(), timeout=10)
    store.ping()
    its_own = set(threading.enumerate()) - before
    assert its_own
    del store
    for thread in its_own:
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_a_request_that_is_too_long_to_be_kept_is_told_to_its_user(mongodb: MongoDb) -> None:
    store = opened(uri=mongodb.uri, database=mongodb.database(), timeout=10)
    with pytest.raises(InvalidRequest, match="too long"):
        store.add(replace(new_request(), user_request="x" * (17 << 20)))
    assert store.count(new_request().user.id) == 0
    store.close()


# --- what is there already


def test_another_replica_set_is_told(mongodb: MongoDb) -> None:
    said = refusal(uri=f"mongodb://127.0.0.1:{mongodb.port()}/?replicaSet=another")
    assert "names another replica set" in said


def test_a_replica_set_is_found_by_its_name(mongodb: MongoDb) -> None:
    store = opened(
        uri=f"mongodb://127.0.0.1:{mongodb.port()}/?replicaSet=secantus",
        database=mongodb.database(),
        timeout=10,
    )
    store.add(new_request())
    assert store._db.requests.read_concern.level == "majority"
    store.close()


OLD_RECORDS = [
    {"id": "a", "timestamp": 1.0, "status": "waiting", "collection": "c1", "user": {"id": "x"}},
    {"id": "b", "status": "queued", "collection": "c1", "verb": "retrieve"},
    {"_id": "known-id", "status": "processed", "url": "x"},
]


def test_records_of_another_schema_are_left_alone_and_told_once(
    mongodb: MongoDb, caplog: pytest.LogCaptureFixture
) -> None:
    database = mongodb.database()
    with mongodb.client() as client:
        old = client[database]["requests"]
        old.insert_many([dict(record) for record in OLD_RECORDS])
        before = list(old.find(sort=[("_id", 1)]))
        with caplog.at_level(logging.WARNING):
            store = opened(uri=mongodb.uri, database=database, timeout=10)
        (told,) = [r for r in caplog.records if "another schema" in r.message]
        assert vars(told)["records"] == len(OLD_RECORDS)
        assert vars(told)["collection"] == f"{database}.requests"
        ours = enqueue(store, store.add(new_request()))
        assert store.get_many(["known-id", ours.id]) == {ours.id: ours}
        assert store.next_waiting("c1", leaving_out=(), limit=9) == []
        assert store.waiting_collections() == []
        assert (store.queued_count(), len(store.active_counts())) == (1, 1)
        assert list(store.queued_since(time.time() + 60, limit=9)) == [(ours.id, 1)]
        assert list(store.remove_if_finished(["known-id"], not_after=time.time())) == []
        assert store.finished_before(time.time() + 60) == []
        assert [r for r in old.find(sort=[("_id", 1)]) if "schema" not in r] == before
        store.close()
        client.drop_database(database)


def test_the_next_version_is_read_and_a_later_one_refused(mongodb: MongoDb) -> None:
    database = mongodb.database()
    options = {"uri": mongodb.uri, "database": database, "timeout": 10}
    opened(**options).close()
    with mongodb.client() as client:
        meta = client[database]["requests.meta"]
        assert meta.find_one() == {"_id": "schema", "version": VERSION}
        meta.update_one({}, {"$set": {"version": VERSION + 1}})
        opened(**options).close()
        assert meta.find_one() == {"_id": "schema", "version": VERSION + 1}
        meta.update_one({}, {"$set": {"version": VERSION + 2}})
        assert f"has schema version {VERSION + 2}" in refusal(**options)
        client.drop_database(database)


def test_an_index_of_somebody_elses_that_is_in_the_way_is_named(mongodb: MongoDb) -> None:
    database = mongodb.database()
    with mongodb.client() as client:
        client[database]["requests"].create_index([("chair", 1)], name="one_seat")
        assert "the index one_seat of" in refusal(uri=mongodb.uri, database=database, timeout=10)
        client.drop_database(database)


def test_indexes_are_made_when_the_server_first_answers() -> None:
    with started(MongoDb) as server:
        server.kill()
        begin = time.monotonic()
        store = opened(uri=server.uri)
        with pytest.raises(BackendUnavailable):
            store.add(new_request())
        assert time.monotonic() - begin < 4 * WAIT_S + 1
        server.start()
        answers_again(store)
        added = store.add(new_request())
        assert store.get(added.id) == added
        with MongoClient[dict[str, Any]](server.uri) as client:
            names = client["request_store"]["requests"].index_information()
        assert {index.document["name"] for index in REQUESTS} <= set(names)
        store.close()


def test_two_deployments_share_a_database_by_their_collections(mongodb: MongoDb) -> None:
    database = mongodb.database()
    one, other = (
        opened(uri=mongodb.uri, database=database, collection=name, timeout=10)
        for name in ("one", "other")
    )
    added = one.add(new_request(), idempotency_key="k")
    assert other.get_many([added.id]) == {}
    assert other.add(new_request(), idempotency_key="k").id != added.id
    assert one.shared_secret("s", "a") != other.shared_secret("s", "b")
    assert one.take_post("broker", "a", duration_s=60)
    assert other.take_post("broker", "b", duration_s=60)
    with mongodb.client() as client:
        assert {name.split(".")[0] for name in client[database].list_collection_names()} == {
            "one",
            "other",
        }
        client.drop_database(database)
    one.close()
    other.close()
