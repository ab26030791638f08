"""Peers that speak for users of the realms that they were allowed, and for nobody else."""

from typing import Any

import pytest

from polytope_server.authentication import Authenticator
from polytope_server.authentication.federation import FederationAuthenticator
from polytope_server.config.identity_services import FederationSection
from polytope_server.errors import ConfigurationError, NotAuthenticated
from polytope_server.testing.authentication import AuthenticatorContract, Good, Wrong
from polytope_server.user import User

SECRET = "a-long-and-random-secret-91fd"


def authenticator_of(*realms: str, secret: str = SECRET) -> FederationAuthenticator:
    section = FederationSection.read(
        {"secret": secret, "allowed-realms": list(realms)}, where="here"
    )
    return FederationAuthenticator(section, realm="federation")


class TestFederationAuthenticator(AuthenticatorContract):
    @pytest.fixture
    def authenticator(self) -> Authenticator:
        return authenticator_of("partner", "with:colons")

    @pytest.fixture
    def good(self) -> Good:
        return {
            f"{SECRET}:bob:partner": User(username="bob", realm="partner"),
            f"{SECRET}:Zoë Müller:partner": User(username="Zoë Müller", realm="partner"),
            f"{SECRET}:bob:with:colons": User(username="bob", realm="with:colons"),
        }

    @pytest.fixture
    def wrong(self) -> Wrong:
        return [
            f"{SECRET}:bob:local",
            f"{SECRET}:bob:Partner",
            f"{SECRET}:bob:",
            f"{SECRET}::partner",
            f"{SECRET}:partner",
            f"{SECRET}x:bob:partner",
            f"{SECRET.upper()}:bob:partner",
            ":bob:partner",
            f"{SECRET}:bob:partner\x00",
            f"{SECRET}:bob:partner,local",
        ]


def test_a_peer_that_speaks_for_others_is_told_of_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(NotAuthenticated):
        authenticator_of("partner").authenticate(f"{SECRET}:root:local")
    (record,) = caplog.records
    assert (vars(record)["realm"], vars(record)["allowed"]) == ("local", ["partner"])
    assert SECRET not in str(vars(record))
    caplog.clear()
    with pytest.raises(NotAuthenticated):  # anybody can write this
        authenticator_of("partner").authenticate("guess:root:local")
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"secret": SECRET}, "allowed-realms: this key is missing"),
        ({"secret": SECRET, "allowed-realms": []}, "allowed-realms: must be the names"),
        ({"secret": SECRET, "allowed-realms": None}, "allowed-realms: must be the names"),
        ({"secret": SECRET, "allowed-realms": "any"}, "allowed-realms: must be the names"),
        ({"secret": SECRET, "allowed_realms": ["a", "*"]}, "must be the names"),
        ({"secret": SECRET, "allowed_realms": "a", "allowed-realms": "b"}, "either"),
        ({"secret": "", "allowed-realms": "a"}, "secret: must be at least 1 long"),
        ({"allowed-realms": "a"}, "secret: this key is missing"),
        ({"secret": "a:b-hunter2", "allowed-realms": "a"}, "secret: must be text of visible"),
        ({"secret": "a, b-hunter2", "allowed-realms": "a"}, "secret: must be text of visible"),
    ],
)
def test_peers_that_could_be_anybody_are_refused_at_start(
    options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FederationSection.read(options, where="federation.peer")
    assert told in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", ["allowed-realms", "allowed_realms"])
def test_both_spellings_are_read(key: str) -> None:
    section = FederationSection.read({"secret": SECRET, key: "partner"}, where="here")
    assert section.allowed_realms == ("partner",)
    assert list(section.unknown_keys()) == []
