"""Keys of the ECMWF web API: the contract, what each answer means, and what is never told."""

import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from services.ecmwf import USERS, EcmwfApi
from services.web import Reply

from polytope_server.authentication import Authenticator
from polytope_server.authentication.ecmwfapi import EcmwfApiAuthenticator
from polytope_server.authentication.identity import Identity, Realm
from polytope_server.caching.memory import MemoryCache
from polytope_server.config.caching import MemoryCacheSection
from polytope_server.config.identity_services import EcmwfApiSection
from polytope_server.errors import BackendUnavailable, NotAuthenticated
from polytope_server.testing.authentication import AuthenticatorContract, Good, Wrong
from polytope_server.user import User

KEYS = list(USERS)
HERE = "192.0.2.7"


@pytest.fixture
def api() -> Iterator[EcmwfApi]:
    with EcmwfApi() as server:
        yield server


def authenticator_of(api: EcmwfApi, **options: Any) -> EcmwfApiAuthenticator:
    section = EcmwfApiSection.read({"url": f"{api.url}/v1", **options}, where="here")
    return EcmwfApiAuthenticator(section, realm="ecmwf")


class TestEcmwfApiAuthenticator(AuthenticatorContract):
    @pytest.fixture
    def authenticator(self, api: EcmwfApi) -> Authenticator:
        return authenticator_of(api)

    @pytest.fixture
    def good(self) -> Good:
        return {
            f"joe@example.org:{KEYS[0]}": User(username="joe", realm="ecmwf"),
            f"JOE@Example.org : {KEYS[0]}": User(username="joe", realm="ecmwf"),
            f"ann@example.org:{KEYS[1]}": User(username="ann", realm="ecmwf"),
        }

    @pytest.fixture
    def wrong(self) -> Wrong:
        return [
            f"ann@example.org:{KEYS[0]}",
            f"joe@example.org:{KEYS[0]}0",
            "joe@example.org:wrong",
            f"{KEYS[0]}:joe@example.org",
        ]


def test_the_user_has_address_and_key_for_datasources(api: EcmwfApi) -> None:
    user = authenticator_of(api).authenticate(f"ANN@example.org:{KEYS[1]}")
    assert dict(user.attributes) == {"ecmwf-email": "Ann@example.org", "ecmwf-apikey": KEYS[1]}
    assert KEYS[1] not in repr(user)


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_of_the_service_is_one_of_ours(api: EcmwfApi, status: int) -> None:
    api.forced = (status, {}, b"<html>")
    with pytest.raises(NotAuthenticated):
        authenticator_of(api).authenticate(f"joe@example.org:{KEYS[0]}")


@pytest.mark.parametrize(
    "answer",
    [
        (500, {}, b""),
        (502, {}, b"<html>"),
        (503, {"Retry-After": "10"}, b""),
        (429, {}, b""),
        (404, {}, b"{}"),
        (302, {"Location": "/login"}, b""),
        (200, {}, b""),
        (200, {}, b"<html>Please log in</html>"),
        (200, {}, b"[]"),
        (200, {}, b"{}"),
        (200, {}, json.dumps({"uid": "joe"}).encode()),
        (200, {}, json.dumps({"uid": 7, "email": "joe@example.org"}).encode()),
        (200, {}, json.dumps({"uid": "", "email": "joe@example.org"}).encode()),
    ],
    ids=lambda answer: f"{answer[0]}-{answer[2][:20].decode()}",
)
def test_all_else_says_nothing_about_the_user(api: EcmwfApi, answer: Reply) -> None:
    api.forced = answer
    with pytest.raises(BackendUnavailable):
        authenticator_of(api).authenticate(f"joe@example.org:{KEYS[0]}")


def test_a_service_that_is_away_or_slow_refuses_nobody(api: EcmwfApi) -> None:
    slow = authenticator_of(api, timeout=0.2)
    api.delay_s = 30
    with pytest.raises(BackendUnavailable):
        slow.authenticate(f"joe@example.org:{KEYS[0]}")
    api.delay_s = 0
    api.stop()
    away = authenticator_of(api)
    with pytest.raises(BackendUnavailable):
        away.authenticate(f"joe@example.org:{KEYS[0]}")
    api.start()
    time.sleep(1.1)  # as long as it is left alone
    for each in (slow, away):
        assert each.authenticate(f"joe@example.org:{KEYS[0]}").username == "joe"


@pytest.mark.parametrize(
    "credential", ["joe@example.org", "joe@example.org:", ":key", "a:\x00", "a:\u2028"]
)
def test_what_is_no_address_and_key_is_shown_to_nobody(api: EcmwfApi, credential: str) -> None:
    with pytest.raises(NotAuthenticated):
        authenticator_of(api).authenticate(credential)
    assert api.hits == 0


def test_the_proxy_of_the_configuration_is_used(api: EcmwfApi) -> None:
    section = EcmwfApiSection(url="http://api.example.invalid/v1", proxy=api.url)
    api.forced = (403, {}, b"")
    with pytest.raises(NotAuthenticated):
        EcmwfApiAuthenticator(section, realm="ecmwf").authenticate(f"joe@example.org:{KEYS[0]}")
    assert api.hits == 1


def test_users_are_remembered_by_the_process_and_their_keys_are_in_no_cache_and_no_log(
    api: EcmwfApi, caplog: pytest.LogCaptureFixture
) -> None:
    class Recording(MemoryCache):
        seen = ""

        def put(self, key: str, value: Any, *, lifetime_s: float) -> None:
            self.seen += json.dumps([key, value])
            super().put(key, value, lifetime_s=lifetime_s)

    now = [0.0]
    cache = Recording(MemoryCacheSection())
    realm = Realm(authenticators=[authenticator_of(api, timeout=0.3)])
    identity = Identity({"ecmwf": realm}, cache, clock=lambda: now[0])
    header = f"EmailKey joe@example.org:{KEYS[0]}"
    # the log of urllib3 has whole URLs; a filter of ours hides what is behind "token="
    with caplog.at_level(logging.DEBUG, logger="polytope_server"):
        for _ in range(20):
            user = identity.recall(header) or identity.identify(header, address=HERE)
            assert user.attributes["ecmwf-apikey"] == KEYS[0]
        assert api.hits == 1
        now[0] += 61
        api.delay_s = 30
        with pytest.raises(BackendUnavailable):
            identity.identify(header, address=HERE)
    assert KEYS[0] not in cache.seen
    logged = "".join(f"{vars(r)} {r.exc_text}" for r in caplog.records if "urllib3" not in r.name)
    assert "away" in logged
    assert KEYS[0] not in logged
