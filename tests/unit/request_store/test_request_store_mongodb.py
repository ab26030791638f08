"""The request store on MongoDB: the contract, on the real server."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from services.mongodb import MongoDb

from polytope_server.config.mongodb import MongoStoreSection
from polytope_server.request_store import RequestStore
from polytope_server.request_store.mongodb import MongoRequestStore
from polytope_server.testing.request_store import RequestStoreContract

Open = Callable[..., MongoRequestStore]


@pytest.fixture
def open_store(mongodb: MongoDb) -> Iterator[Open]:
    """Makes stores on the shared server, in the same new database unless another is given."""
    database = mongodb.database()
    with ExitStack() as stack:

        def make(**options: Any) -> MongoRequestStore:
            options = {"uri": mongodb.uri, "database": database} | options
            store = MongoRequestStore(MongoStoreSection(**options))
            stack.callback(store.close)
            return store

        yield make
        with mongodb.client() as client:
            client.drop_database(database)


class TestMongoDb(RequestStoreContract):
    @pytest.fixture
    def store(self, open_store: Open) -> RequestStore:
        return open_store()

    @pytest.fixture
    def again(self, open_store: Open) -> RequestStore:
        return open_store()
