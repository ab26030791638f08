"""What the driver writes about the store where it is asked to write everything."""

import json
import logging

import pytest
from services.mongodb import MongoDb

from polytope_server.config.mongodb import MongoStoreSection
from polytope_server.observability.logging import fields
from polytope_server.request_store.mongodb import MongoRequestStore

SECRET = "what-a-deployment-signs-with-5d1"


def test_the_secret_of_a_deployment_is_not_in_it(
    mongodb: MongoDb, caplog: pytest.LogCaptureFixture
) -> None:
    database = mongodb.database()
    section = MongoStoreSection(uri=mongodb.uri, database=database, log_level="DEBUG")
    with caplog.at_level(logging.DEBUG):
        store = MongoRequestStore(section)
        try:
            for proposal in (SECRET, "another"):  # made, and read
                assert store.shared_secret("signing", proposal) == SECRET
        finally:
            store.close()
            logging.getLogger("pymongo").setLevel(logging.WARNING)
            with mongodb.client() as client:
                client.drop_database(database)
    said = [json.dumps(fields(record, process="x")) for record in caplog.records]
    assert sum("requests.secrets" in line for line in said) >= 2
    assert SECRET not in "".join(said)
