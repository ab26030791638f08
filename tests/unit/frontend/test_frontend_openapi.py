"""The API document beside the code: no route without a description, none described that is not there."""

import json
import re
from pathlib import Path
from typing import Any

import falcon.inspect
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from polytope_server.authentication.identity import Identity
from polytope_server.collection import collections_of
from polytope_server.config.api_keys import ApiKeysSection
from polytope_server.config.loading import load
from polytope_server.config.model import FrontendSection
from polytope_server.frontend.answers import record
from polytope_server.frontend.app import Services, create_app
from polytope_server.frontend.errors import STATUS
from polytope_server.frontend.openapi import document
from polytope_server.frontend.openapi.responses import WHEN
from polytope_server.frontend.openapi.schemas import SCHEMAS
from polytope_server.frontend.policy import Policy
from polytope_server.frontend.resources.documentation import PAGE_FILES
from polytope_server.frontend.urls import PublicUrls
from polytope_server.lifecycle import Stop, open_chosen
from polytope_server.observability.metrics import Metrics
from polytope_server.reloading import Current
from polytope_server.request import DataObject, Request, Status, Verb
from polytope_server.signatures import SignedLinks
from polytope_server.standalone import configuration
from polytope_server.user import User

METHODS = {"get", "head", "post", "put", "delete", "options", "patch", "trace"}


def described(
    *, schemes: tuple[str, ...] = ("Basic",), enabled: bool = True, **settings: Any
) -> dict[str, Any]:
    return document(
        FrontendSection.read(settings, where="frontend"),
        schemes=schemes,
        servers=[{"url": ".", "description": "here"}],
        page_files=PAGE_FILES,
        api_keys=ApiKeysSection(enabled=enabled),
    )


@pytest.mark.parametrize("schemes", [("Basic",), ("Basic", "Bearer", "EmailKey"), ()])
@pytest.mark.parametrize("origin", [None, "*", "https://portal.example.org"])
def test_the_document_is_valid(schemes: tuple[str, ...], origin: str | None) -> None:
    found = described(schemes=schemes, allow_origin=origin)
    OpenAPIV31SpecValidator(json.loads(json.dumps(found))).validate()
    assert list(found["components"]["securitySchemes"]) == list(schemes)
    assert ("Access-Control-Allow-Origin" in json.dumps(found)) == (origin is not None)


def test_every_route_is_described_and_every_description_has_a_route(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(configuration(tmp_path, port=5000, password="secret")))
    config = load([file], strict=True, environ={}).config
    stop = Stop()
    cache = open_chosen("caching", config.caching, stop=stop)
    services = Services(
        store=open_chosen("request_store", config.request_store, stop=stop),
        queue=open_chosen("queue", config.queue, stop=stop),
        staging=open_chosen("staging", config.staging, stop=stop),
        cache=cache,
        policy=Current(
            Policy(
                identity=Identity.build(config.authentication, cache),
                collections=collections_of(config),
            )
        ),
        metrics=Metrics(),
        signer=lambda: SignedLinks(b"k" * 32),
    )
    urls = PublicUrls(public_url=None, proxy_support=False, bind_to="127.0.0.1", port=5000)
    app = create_app(services, config.frontend, urls)
    routes = {
        (re.sub("{.*?}", "{}", route.path), method.method.lower())
        for route in falcon.inspect.inspect_routes(app)
        for method in route.methods
        if not method.internal or method.method == "OPTIONS"
    }
    operations = {
        (re.sub("{.*?}", "{}", path), method)
        for path, item in described()["paths"].items()
        for method in METHODS & item.keys()
    }
    assert operations == routes


def test_every_error_is_explained() -> None:
    assert WHEN.keys() == STATUS.keys()


def test_limits_are_those_of_the_settings() -> None:
    text = json.dumps(described(max_request=4321, max_upload=98765, max_unfinished=17, long_poll=0))
    assert "at most 4321 bytes" in text.lower()
    assert "at most 98765 bytes" in text.lower()
    assert "At most 17 requests" in text
    assert "at the latest" not in text
    assert "but after 5 seconds at the latest" in json.dumps(described())


def test_a_record_has_what_its_schema_says() -> None:
    request = Request(
        id="r1",
        user=User(username="joe", realm="r"),
        verb=Verb.RETRIEVE,
        collection="c1",
        datasource="d1",
        user_request="x",
        coerced_request={},
        status=Status.PROCESSED,
        result=DataObject(name="n", media_type="application/x-grib", size_bytes=1, sha256="0"),
    )
    found = record(request, url="https://example.org/x")
    assert list(found) == list(SCHEMAS["Record"]["properties"])
    assert list(found["user"]) == list(SCHEMAS["User"]["properties"])


def test_every_operation_is_named_once_and_says_what_it_is_about() -> None:
    found = described()
    tags = {tag["name"] for tag in found["tags"]}
    operations = [
        operation
        for item in found["paths"].values()
        for method, operation in item.items()
        if method in METHODS
    ]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    for operation in operations:
        assert set(operation["tags"]) <= tags
        assert operation["summary"]
        assert "security" in operation
