"""Which URLs clients are given, behind a proxy that says where they are, or does not."""

import logging
from collections.abc import Mapping

import pytest
from falcon.asgi import Request
from falcon.testing import create_asgi_req

from polytope_server.errors import ConfigurationError
from polytope_server.frontend.urls import PublicUrls


def came(**headers: str) -> Request:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return create_asgi_req(headers={"Host": "evil.example", **sent})


def urls(*, bind_to: str, public_url: str | None = None, proxy_support: bool = True) -> PublicUrls:
    return PublicUrls(
        public_url=public_url, proxy_support=proxy_support, bind_to=bind_to, port=5000
    )


@pytest.mark.parametrize("bind_to", ["0.0.0.0", "::", "192.0.2.7", "127.0.0.1"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X_Forwarded_Proto": "https"},
        {"X_Forwarded_Host": ""},
        {"X_Forwarded_Host": "a/b"},
        {"X_Forwarded_Host": "user@evil.example"},
        {"X_Forwarded_Host": "a.example", "X_Forwarded_Proto": "javascript"},
    ],
)
def test_a_proxy_that_does_not_say_the_host_makes_urls_relative_and_the_log_says_so_once(
    bind_to: str, headers: Mapping[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    made = urls(bind_to=bind_to)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert made.request(came(**headers), "7") == "/api/v1/requests/7"
            assert made.upload(came(**headers), "7") == "/api/v1/uploads/7"
            assert made.download(came(**headers), "7", "a=b") == "/api/v1/downloads/7?a=b"
    (record,) = caplog.records
    assert "frontend.public_url" in record.getMessage()


def test_a_proxy_that_says_it_is_believed_for_one_hop() -> None:
    made = urls(bind_to="0.0.0.0")
    request = came(X_Forwarded_Host="evil.example, a.example:8443", X_Forwarded_Proto="http,https")
    assert made.request(request, "7") == "https://a.example:8443/api/v1/requests/7"


def test_what_is_configured_counts_over_what_a_proxy_says() -> None:
    made = urls(bind_to="0.0.0.0", public_url="https://a.example/x/")
    request = came(X_Forwarded_Host="evil.example")
    assert made.request(request, "7") == "https://a.example/x/api/v1/requests/7"


def test_without_any_of_these_only_a_loopback_address_will_do() -> None:
    made = urls(bind_to="127.0.0.1", proxy_support=False)
    assert made.request(came(), "7") == "http://127.0.0.1:5000/api/v1/requests/7"
    with pytest.raises(ConfigurationError, match=r"frontend\.public_url"):
        urls(bind_to="0.0.0.0", proxy_support=False)
