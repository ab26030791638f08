"""``jwt``, ``openid_offline_access`` and ``keycloak`` against a real OpenID provider."""

import base64
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from services.fixtures import started
from services.oidc import INTROSPECTING_CLIENT, PRIVATE_CLIENT, PUBLIC_CLIENT, USERS, OidcProvider
from services.web import Reply, WebServer

from polytope_server.authentication import Authenticator
from polytope_server.authentication.identity import Identity, Realm
from polytope_server.authentication.jwt import JwtAuthenticator
from polytope_server.authentication.key_set import REFETCH_S
from polytope_server.authentication.keycloak import KeycloakAuthenticator
from polytope_server.authentication.openid_offline_access import OpenidOfflineAccessAuthenticator
from polytope_server.caching.memory import MemoryCache
from polytope_server.config.caching import MemoryCacheSection
from polytope_server.config.identity_services import (
    JwtSection,
    KeycloakSection,
    OpenidOfflineAccessSection,
)
from polytope_server.errors import BackendUnavailable, NotAuthenticated
from polytope_server.testing.authentication import AuthenticatorContract, Good, Wrong
from polytope_server.user import User

HERE = "192.0.2.7"


def basic(uid: str, password: str) -> str:
    return base64.b64encode(f"{uid}:{password}".encode()).decode()


def by_jwt(oidc: OidcProvider, **options: Any) -> JwtAuthenticator:
    section = {
        "cert_url": oidc.cert_url,
        "client_id": PUBLIC_CLIENT,
        "issuer": oidc.issuer,
        "audience": PUBLIC_CLIENT,
        **options,
    }
    return JwtAuthenticator(JwtSection.read(section, where="here"), realm="sso")


def by_openid(oidc: OidcProvider, **options: Any) -> OpenidOfflineAccessAuthenticator:
    section = {
        "cert_url": oidc.cert_url,
        "iam_url": oidc.url,
        "iam_realm": "test",
        "public_client_id": PUBLIC_CLIENT,
        "private_client_id": INTROSPECTING_CLIENT[0],
        "private_client_secret": INTROSPECTING_CLIENT[1],
        "jwt_aud": PUBLIC_CLIENT,
        "jwt_iss": oidc.issuer,
        **options,
    }
    read = OpenidOfflineAccessSection.read(section, where="here")
    return OpenidOfflineAccessAuthenticator(read, realm="sso")


def by_keycloak(oidc: OidcProvider, **options: Any) -> KeycloakAuthenticator:
    section = {
        "url": oidc.url,
        "keycloak_realm": "test",
        "client_id": PRIVATE_CLIENT[0],
        "client_secret": PRIVATE_CLIENT[1],
        "attributes": {"ecmwf-email": "email", "checked": "email_verified", "none": "no_such"},
        **options,
    }
    return KeycloakAuthenticator(KeycloakSection.read(section, where="here"), realm="sso")


@pytest.fixture(scope="module")
def tokens(oidc: OidcProvider) -> Mapping[str, Mapping[str, Any]]:
    return {user: oidc.tokens(user) for user in USERS}


class TestJwtAuthenticator(AuthenticatorContract):
    @pytest.fixture
    def authenticator(self, oidc: OidcProvider) -> Authenticator:
        return by_jwt(oidc)

    @pytest.fixture
    def good(self, tokens: Mapping[str, Mapping[str, Any]]) -> Good:
        return {tokens[user]["access_token"]: User(username=user, realm="sso") for user in tokens}

    @pytest.fixture
    def wrong(self, tokens: Mapping[str, Mapping[str, Any]]) -> Wrong:
        head, payload, signature = tokens["alice"]["access_token"].split(".")
        none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
        return [
            tokens["alice"]["refresh_token"],
            f"{head}.{tokens['bob']['access_token'].split('.')[1]}.{signature}",
            f"{none}.{payload}.",
        ]


class TestOpenidOfflineAccessAuthenticator(AuthenticatorContract):
    @pytest.fixture
    def authenticator(self, oidc: OidcProvider) -> Authenticator:
        return by_openid(oidc)

    @pytest.fixture
    def good(self, tokens: Mapping[str, Mapping[str, Any]]) -> Good:
        return {tokens[user]["refresh_token"]: User(username=user, realm="sso") for user in tokens}

    @pytest.fixture
    def wrong(self, tokens: Mapping[str, Mapping[str, Any]]) -> Wrong:
        return [tokens["alice"]["access_token"], "05O3ukxsNFbwryPXHIfa6foAMEMcTFv7k23WNJweqi9"]


class TestKeycloakAuthenticator(AuthenticatorContract):
    @pytest.fixture
    def authenticator(self, oidc: OidcProvider) -> Authenticator:
        return by_keycloak(oidc)

    @pytest.fixture
    def good(self) -> Good:
        return {
            basic("alice", "alicepw"): User(username="alice", realm="sso"),
            basic("ALICE", "alicepw"): User(username="alice", realm="sso"),
            basic("bob", "bob:pw"): User(username="bob", realm="sso"),
        }

    @pytest.fixture
    def wrong(self) -> Wrong:
        return [
            basic("alice", "wrong"),
            basic("alice", "bob:pw"),
            basic("nobody", "alicepw"),
            basic("alice", ""),
            basic("", "alicepw"),
            basic("alice&grant_type=client_credentials", "alicepw"),
        ]


def test_roles_are_those_of_the_client_and_of_the_realm(oidc: OidcProvider) -> None:
    tokens = oidc.tokens("alice")
    for user in (
        by_jwt(oidc).authenticate(tokens["access_token"]),
        by_openid(oidc).authenticate(tokens["refresh_token"]),
        by_openid(oidc, jwt_aud=None).authenticate(tokens["refresh_token"]),
    ):
        assert user.roles == {"default", "data-access", "realm-data-access"}
        assert user.valid_until is not None
        assert 0 < user.valid_until - time.time() <= 300
    others = by_jwt(oidc, client_id="other").authenticate(tokens["access_token"])
    assert others.roles == {"default", "of-another-client", "realm-data-access"}


def test_fields_of_userinfo_become_attributes(oidc: OidcProvider) -> None:
    user = by_keycloak(oidc).authenticate(basic("alice", "alicepw"))
    assert dict(user.attributes) == {"ecmwf-email": "alice@example.org", "checked": "true"}
    assert user.roles == {"default"}


@pytest.mark.parametrize(
    "wrong",
    [{"audience": "another"}, {"issuer": "https://another.example.org"}, {"algorithms": ["ES256"]}],
)
def test_tokens_for_others_and_of_others_are_refused(
    oidc: OidcProvider, wrong: Mapping[str, Any]
) -> None:
    with pytest.raises(NotAuthenticated):
        by_jwt(oidc, **wrong).authenticate(oidc.tokens("alice")["access_token"])


def test_a_refresh_token_for_another_audience_is_the_users_and_a_wrong_issuer_is_ours(
    oidc: OidcProvider,
) -> None:
    token = oidc.tokens("alice")["refresh_token"]
    with pytest.raises(NotAuthenticated):
        by_openid(oidc, jwt_aud="another").authenticate(token)
    with pytest.raises(BackendUnavailable, match="jwt_iss"):
        by_openid(oidc, jwt_iss="https://another.example.org").authenticate(token)


def test_the_check_can_be_switched_off(oidc: OidcProvider) -> None:
    options = {"private_client_id": "", "private_client_secret": None, "disable_check": True}
    authenticator = by_openid(oidc, **options)
    assert authenticator.authenticate(oidc.tokens("bob")["refresh_token"]).username == "bob"
    with pytest.raises(NotAuthenticated):
        authenticator.authenticate("invented")


def test_secrets_of_ours_that_are_wrong_are_not_the_users_fault(oidc: OidcProvider) -> None:
    token = oidc.tokens("alice")["refresh_token"]
    for authenticator, credential in (
        (by_keycloak(oidc, client_secret="wrong"), basic("alice", "alicepw")),
        (by_keycloak(oidc, client_secret=None), basic("alice", "alicepw")),
        (by_keycloak(oidc, client_id="no-such-client"), basic("alice", "alicepw")),
        (by_openid(oidc, private_client_secret="wrong"), token),
        (by_openid(oidc, private_client_id="no-such-client"), token),
        (by_openid(oidc, public_client_id="no-such-client"), token),
    ):
        with pytest.raises(BackendUnavailable, match="refuses us, not the user"):
            authenticator.authenticate(credential)


def test_addresses_that_are_wrong_are_not_the_users_fault(oidc: OidcProvider) -> None:
    tokens = oidc.tokens("alice")
    for authenticator, credential in (
        (by_keycloak(oidc, keycloak_realm="other"), basic("alice", "alicepw")),
        (by_openid(oidc, iam_realm="other"), tokens["refresh_token"]),
        (by_jwt(oidc, cert_url=f"{oidc.url}/nothing"), tokens["access_token"]),
    ):
        with pytest.raises(BackendUnavailable):
            authenticator.authenticate(credential)


def test_a_provider_that_hangs_refuses_nobody_and_one_that_is_back_knows_its_users() -> None:
    with started(OidcProvider) as oidc:
        tokens = oidc.tokens("alice")
        asked: list[tuple[Authenticator, str]] = [
            (by_jwt(oidc, timeout=0.3), tokens["access_token"]),
            (by_openid(oidc, timeout=0.3), tokens["refresh_token"]),
            (by_keycloak(oidc, timeout=0.3), basic("alice", "alicepw")),
        ]
        oidc.pause()
        for authenticator, credential in asked:
            began = time.monotonic()
            with pytest.raises(BackendUnavailable):
                authenticator.authenticate(credential)
            assert time.monotonic() - began < 3
        oidc.resume()
        time.sleep(max(REFETCH_S, 1) + 0.1)
        for authenticator, credential in asked:
            assert authenticator.authenticate(credential).username == "alice"


def test_new_keys_of_a_provider_are_found_and_old_tokens_are_void() -> None:
    with started(OidcProvider) as oidc:
        authenticator, by_key = by_jwt(oidc), by_openid(oidc)
        old = oidc.tokens("alice")
        assert authenticator.authenticate(old["access_token"]).username == "alice"
        assert by_key.authenticate(old["refresh_token"]).username == "alice"
        oidc.kill()
        with pytest.raises(BackendUnavailable):
            by_key.authenticate(old["refresh_token"])
        assert authenticator.authenticate(old["access_token"]).username == "alice"
        oidc.start()
        time.sleep(REFETCH_S + 0.1)
        new = oidc.tokens("alice")
        assert authenticator.authenticate(new["access_token"]).username == "alice"
        assert by_key.authenticate(new["refresh_token"]).username == "alice"
        with pytest.raises(NotAuthenticated):
            authenticator.authenticate(old["access_token"])
        with pytest.raises(NotAuthenticated):
            by_key.authenticate(old["refresh_token"])


def test_nobody_is_known_for_longer_than_the_token_is_good() -> None:
    with started(OidcProvider, access_ttl_s=2) as oidc:
        realm = Realm(authenticators=[by_jwt(oidc, leeway=0)])
        identity = Identity({"sso": realm}, MemoryCache(MemoryCacheSection()))
        header = f"Bearer {oidc.tokens('alice')['access_token']}"
        assert identity.identify(header, address=HERE).username == "alice"
        assert identity.recall(header) is not None
        end = time.monotonic() + 10
        while identity.recall(header) is not None:
            assert time.monotonic() < end
            time.sleep(0.05)
        with pytest.raises(NotAuthenticated):
            identity.identify(header, address=HERE)


# --- what a provider may answer besides


class Provider(WebServer):
    """Answers each endpoint with what stands in `answers`, by the end of its path."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Reply] = {}

    def reply(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        return self.answers.get(target.rpartition("/")[2], (404, {}, b""))


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as server:
        yield server


def keycloak_at(provider: Provider) -> KeycloakAuthenticator:
    section = KeycloakSection(url=provider.url, keycloak_realm="r", client_id="c", timeout=5)
    return KeycloakAuthenticator(section, realm="sso")


def openid_at(provider: Provider) -> OpenidOfflineAccessAuthenticator:
    section = {
        "cert_url": f"{provider.url}/certs",
        "iam_url": provider.url,
        "iam_realm": "r",
        "public_client_id": "public",
        "private_client_id": "private",
        "private_client_secret": "secret",
    }
    read = OpenidOfflineAccessSection.read(section, where="here")
    return OpenidOfflineAccessAuthenticator(read, realm="sso")


TOKEN: Reply = (200, {}, b'{"access_token": "x"}')


@pytest.mark.parametrize(
    "answer",
    [
        (401, {}, b'{"error": "invalid_grant", "error_description": "Invalid user credentials"}'),
        (400, {}, b'{"error": "invalid_grant", "error_description": "Account disabled"}'),
        (403, {}, b'{"error": "access_denied"}'),
    ],
    ids=lambda answer: str(answer[0]),
)
def test_keycloaks_ways_to_say_wrong_password(provider: Provider, answer: Reply) -> None:
    provider.answers = {"token": answer}
    with pytest.raises(NotAuthenticated):
        keycloak_at(provider).authenticate(basic("alice", "x"))


@pytest.mark.parametrize(
    "answer",
    [
        (500, {}, b'{"error": "invalid_grant"}'),
        (503, {}, b"<html>"),
        (429, {}, b'{"error": "slow_down"}'),
        (401, {}, b'{"error": "unauthorized_client"}'),
        (400, {}, b'{"error": "temporarily_unavailable"}'),
        (403, {}, b"<html>The firewall does not like you</html>"),
        (200, {}, b"{}"),
        (200, {}, b'{"access_token": 7}'),
        (307, {"Location": "https://elsewhere.example.org"}, b""),
    ],
    ids=lambda answer: f"{answer[0]}-{answer[2][:20].decode()}",
)
def test_all_else_of_a_token_endpoint_says_nothing_about_the_user(
    provider: Provider, answer: Reply
) -> None:
    provider.answers = {"token": answer, "introspect": (200, {}, b'{"active": true}')}
    for authenticator, credential in (
        (keycloak_at(provider), basic("alice", "x")),
        (openid_at(provider), "token"),
    ):
        with pytest.raises(BackendUnavailable):
            authenticator.authenticate(credential)


@pytest.mark.parametrize(
    "answer", [(401, {}, b""), (500, {}, b""), (200, {}, b"x"), (200, {}, b"[]")]
)
def test_userinfo_that_fails_says_nothing_about_the_user(provider: Provider, answer: Reply) -> None:
    provider.answers = {"token": TOKEN, "userinfo": answer}
    with pytest.raises(BackendUnavailable):
        keycloak_at(provider).authenticate(basic("alice", "x"))


@pytest.mark.parametrize(
    "said",
    [
        '{"active": false}',
        '{"active": true, "token_type": "Bearer"}',
        '{"active": true, "typ": "Refresh"}',
        '{"active": true, "typ": 7}',
    ],
)
def test_only_tokens_for_offline_access_are_taken(provider: Provider, said: str) -> None:
    provider.answers = {"introspect": (200, {}, said.encode()), "token": TOKEN}
    with pytest.raises(NotAuthenticated):
        openid_at(provider).authenticate("token")
    assert provider.hits == 1


@pytest.mark.parametrize("said", ["{}", '{"active": "yes"}', "[]", ""])
def test_an_introspection_that_says_nothing_is_nothing_about_the_user(
    provider: Provider, said: str
) -> None:
    provider.answers = {"introspect": (200, {}, said.encode()), "token": TOKEN}
    with pytest.raises(BackendUnavailable):
        openid_at(provider).authenticate("token")


def test_tokens_that_say_themselves_that_they_are_something_else_are_shown_to_nobody(
    oidc: OidcProvider, provider: Provider
) -> None:
    access_token = oidc.tokens("alice")["access_token"]
    for token in (access_token, "", "a\x00b", "ü", "x" * 20_000):
        with pytest.raises(NotAuthenticated):
            openid_at(provider).authenticate(token)
    assert provider.hits == 0


def test_realms_with_the_same_scheme_are_asked_in_turn_and_one_that_is_away_does_not_refuse(
    oidc: OidcProvider, provider: Provider
) -> None:
    provider.stop()
    away = by_jwt(oidc, cert_url=f"{provider.url}/certs", issuer="https://away.example.org")
    away_of_anybody = by_jwt(oidc, cert_url=f"{provider.url}/certs", issuer=None)
    cache = MemoryCache(MemoryCacheSection())
    header = f"Bearer {oidc.tokens('alice')['access_token']}"

    def identity(*authenticators: Authenticator) -> Identity:
        return Identity({"r": Realm(authenticators=authenticators)}, cache)

    assert identity(away, by_jwt(oidc)).identify(header, address=HERE).username == "alice"
    assert (
        identity(away_of_anybody, by_jwt(oidc)).identify(header, address=HERE).username == "alice"
    )
    with pytest.raises(BackendUnavailable):  # it might be one of theirs
        identity(away_of_anybody, by_jwt(oidc, audience="x")).identify(header, address=HERE)
    with pytest.raises(NotAuthenticated):  # it says itself that it is not
        identity(away, by_jwt(oidc, audience="x")).identify(header, address=HERE)
