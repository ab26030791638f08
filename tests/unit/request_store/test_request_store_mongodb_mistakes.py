"""What operators do to the database of the store while it is in use."""

import secrets
from collections.abc import Callable, Iterator

import pytest
from services.fixtures import started
from services.mongodb import MongoDb
from services.proxy import ChaosProxy

from polytope_server.config.mongodb import MongoStoreSection
from polytope_server.errors import BackendUnavailable
from polytope_server.request_store.mongodb import MongoRequestStore
from polytope_server.request_store.mongodb.schema import REQUESTS
from polytope_server.testing.request_store import new_request

DATABASE = "polytope"


@pytest.fixture
def store(mongodb: MongoDb) -> Iterator[MongoRequestStore]:
    database = mongodb.database()
    made = MongoRequestStore(MongoStoreSection(uri=mongodb.uri, database=database))
    yield made
    made.close()
    with mongodb.client() as client:
        client.drop_database(database)


@pytest.mark.parametrize(
    "drop",
    [
        lambda store: store._connection.client.drop_database(store._db.requests.database.name),
        lambda store: store._db.requests.drop(),
        lambda store: store._db.requests.drop_index("one_seat"),
    ],
    ids=["database", "collection", "index"],
)
def test_what_was_dropped_is_made_again(
    store: MongoRequestStore,
    drop: Callable[[MongoRequestStore], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.add(new_request())
    store.ping()
    assert not caplog.records
    drop(store)
    store.ping()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert {index.document["name"] for index in REQUESTS} < set(
        store._db.requests.index_information()
    )
    store.ping()
    assert len(caplog.records) == 1


def test_who_may_not_write_any_more_is_not_ready() -> None:
    password = secrets.token_urlsafe()
    with (
        started(MongoDb, auth=True) as server,
        server.client() as client,
        ChaosProxy(server.port()) as proxy,
    ):

        def allow(command: str, role: str) -> None:
            roles = [{"role": role, "db": DATABASE}]
            client.admin.command(command, "us", pwd=password, roles=roles)
            proxy.reset_all()  # this server remembers for each connection what it may

        allow("createUser", "readWrite")
        section = {"uri": server.uri_at(proxy.port), "database": DATABASE}
        login = {"username": "us", "password": password}
        store = MongoRequestStore(MongoStoreSection(**section, **login))
        store.ping()
        allow("updateUser", "read")
        with pytest.raises(BackendUnavailable, match="readWrite"):
            store.ping()
        allow("updateUser", "readWrite")
        store.ping()
        store.close()
