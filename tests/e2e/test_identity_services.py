"""All schemes on one server, by real calls: who gets in, who does not, and what a service away means."""

import base64
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from deployment import APIKEY, REALM, SIGNING_KEY, Deployment, until
from polytope import api as polytope_api
from services.auth_o_tron import SECRET, AuthOTron
from services.ecmwf import USERS, EcmwfApi
from services.fixtures import started
from services.oidc import INTROSPECTING_CLIENT, PRIVATE_CLIENT, PUBLIC_CLIENT, OidcProvider

KEY, STRANGE_KEY = USERS
SHARED = "secret-of-the-partner-8f31"
OTHER_KEY = "key-of-the-other-api-77aa"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclass
class Place:
    """A server, and those whom it asks."""

    server: Deployment
    oidc: OidcProvider
    ecmwf: EcmwfApi
    other_api: EcmwfApi
    auth_o_tron: AuthOTron

    def call(self, authorization: str | None, path: str = "/user", **options: Any) -> Any:
        headers = {"Authorization": authorization} if authorization else {}
        method = "POST" if "json" in options else "GET"
        return requests.request(
            method,
            f"{self.server.api}{path}",
            headers=headers,
            timeout=60,
            allow_redirects=False,
            **options,
        )

    def who(self, authorization: str) -> tuple[str, str]:
        """Name and realm, as a request of theirs has them."""
        body = {"verb": "retrieve", "request": "10"}
        response = self.call(authorization, "/requests/bytes", json=body)
        assert response.status_code == 202, response.text
        (first, *_) = self.call(authorization, "/requests/bytes").json()["message"]
        return first["user"]["username"], first["user"]["realm"]


def changes(place_of: Mapping[str, Any]) -> dict[str, Any]:
    oidc, ecmwf, other = place_of["oidc"], place_of["ecmwf"], place_of["other"]
    sso = {
        "tokens": {
            "type": "jwt",
            "cert_url": oidc.cert_url,
            "client_id": PUBLIC_CLIENT,
            "audience": [PUBLIC_CLIENT],
            "issuer": oidc.issuer,
        },
        "offline": {
            "type": "openid_offline_access",
            "cert_url": oidc.cert_url,
            "iam_url": oidc.url,
            "iam_realm": "test",
            "public_client_id": PUBLIC_CLIENT,
            "private_client_id": INTROSPECTING_CLIENT[0],
            "private_client_secret": INTROSPECTING_CLIENT[1],
            "jwt_aud": PUBLIC_CLIENT,
            "jwt_iss": oidc.issuer,
            "timeout": 1,
        },
        "passwords": {
            "type": "keycloak",
            "url": oidc.url,
            "keycloak_realm": "test",
            "client_id": PRIVATE_CLIENT[0],
            "client_secret": PRIVATE_CLIENT[1],
            "timeout": 1,
            "attributes": {"ecmwf-email": "email"},
        },
    }
    return {
        "logging": {"level": "DEBUG"},
        "reload": {"interval": 0.2},
        "authentication": {
            "sso": {"authenticators": sso},
            "ecmwf": {
                "authenticators": {
                    "keys": {"type": "ecmwfapi", "url": f"{ecmwf.url}/v1", "timeout": 1}
                },
                "authorizers": {"local": {"type": "plain", "roles": {"staff": ["ann"]}}},
            },
            "partner": {"authorizers": {"local": {"type": "plain", "roles": {"staff": ["carl"]}}}},
        },
        "api-keys": {"authenticator": {"type": "ecmwfapi", "url": f"{other.url}/v1"}},
        "federation": {"partner": {"secret": SHARED, "allowed-realms": ["partner"]}},
        "collections": {
            "secret": {
                "roles": {
                    "sso": ["data-access"],
                    "ecmwf": ["staff"],
                    "partner": ["staff"],
                    "polytope": ["staff"],
                }
            },
            "bytes": {"roles": ["default"]},
        },
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with (
        started(OidcProvider) as oidc,
        EcmwfApi() as ecmwf,
        EcmwfApi({OTHER_KEY: ("other", "other@example.org")}) as other,
        AuthOTron() as auth_o_tron,
        Deployment(
            tmp_path_factory.mktemp("identity"),
            changes=changes({"oidc": oidc, "ecmwf": ecmwf, "other": other}),
            names=("frontend", "broker", "worker"),
        ) as server,
    ):
        yield Place(server, oidc, ecmwf, other, auth_o_tron)


def test_every_scheme_lets_its_users_in_and_nobody_else(place: Place) -> None:
    tokens = place.oidc.tokens("alice")
    good = {
        basic("joe", "pa:ss-joe-9c1"): ("joe", REALM),
        basic("Alice", "alicepw"): ("alice", "sso"),
        basic("bob", "bob:pw"): ("bob", "sso"),
        f"Bearer {tokens['access_token']}": ("alice", "sso"),
        f"bearer {tokens['refresh_token']}": ("alice", "sso"),
        f"EmailKey joe@example.org:{KEY}": ("joe", "ecmwf"),
        f"EmailKey other@example.org:{OTHER_KEY}": ("other", "polytope"),
        f"Federation {SHARED}:bob:partner": ("bob", "partner"),
        f"EmailKey joe@example.org:wrong, {basic('bob', 'bob:pw')}": ("bob", "sso"),
    }
    assert {header: place.who(header) for header in good} == good
    head, payload, _ = tokens["access_token"].split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    for header in (
        None,
        basic("alice", "wrong"),
        basic("nobody", "alicepw"),
        f"Bearer {none}.{payload}.",
        f"Bearer {head}.{payload}.AAAA",
        "Bearer invented",
        "EmailKey joe@example.org:wrong",
        f"EmailKey ann@example.org:{KEY}",
        f"Federation {SHARED}:joe:{REALM}",
        f"Federation {SHARED}:joe:ecmwf",
        "Federation wrong:bob:partner",
        f"EmailKey {SHARED}:bob:partner",
    ):
        response = place.call(header)
        assert response.status_code == 401, header
        assert response.json()["message"]
        challenges = response.headers["WWW-Authenticate"]
        for scheme in ("Basic", "Bearer", "EmailKey", "Federation"):
            assert f'{scheme} realm="' in challenges


def test_roles_open_collections_and_without_them_it_is_403(place: Place) -> None:
    tokens = {user: place.oidc.tokens(user)["access_token"] for user in ("alice", "bob")}
    expected = {
        f"Bearer {tokens['alice']}": 202,
        f"Bearer {tokens['bob']}": 403,
        f"EmailKey joe@example.org:{KEY}": 403,
        f"Federation {SHARED}:carl:partner": 202,
        f"Federation {SHARED}:bob:partner": 403,
        f"EmailKey other@example.org:{OTHER_KEY}": 403,
    }
    body = {"verb": "retrieve", "request": "x"}
    found = {
        header: place.call(header, "/requests/secret", json=body).status_code for header in expected
    }
    assert found == expected


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return tmp_path


@pytest.mark.parametrize("kind", ["EmailKey", "Bearer"])
def test_polytope_client_works_with_its_keys(place: Place, home: Path, kind: str) -> None:
    keys = {"user_key": place.oidc.tokens("bob")["refresh_token"]}
    if kind == "EmailKey":
        keys = {"user_key": KEY, "user_email": "joe@example.org"}
    client = polytope_api.Client(
        config_path=str(home), address=place.server.url, insecure=True, quiet=True, **keys
    )
    assert "bytes" in client.list_collections()
    client.retrieve("bytes", "1000", output_file="out.bin")
    assert (home / "out.bin").stat().st_size == 1000


def test_a_service_that_is_away_is_503_for_its_own_users_and_nothing_for_others(
    place: Place,
) -> None:
    local, peer = basic("ann", "ann-secret-77f"), f"Federation {SHARED}:carl:partner"
    refresh_token = place.oidc.tokens("bob")["refresh_token"]
    unproven = {
        "slow": f"EmailKey ann@example.org:{STRANGE_KEY.encode().decode('latin-1')}",
        "gone": f"Bearer {refresh_token}",
        "hung": basic("bob", "bob:pw-is-not-checked"),
    }
    place.ecmwf.delay_s = 30
    place.oidc.pause()
    try:
        for header in unproven.values():
            response = place.call(header)
            assert response.status_code == 503, response.text
            assert "Retry-After" in response.headers
            assert "temporarily" in response.json()["message"]
        for header in (local, peer):
            assert place.call(header).status_code == 200
    finally:
        place.ecmwf.delay_s = 0
        place.oidc.resume()
    until(lambda: place.call(unproven["hung"]).status_code == 401, what="passwords are checked")
    until(lambda: place.who(unproven["gone"]) == ("bob", "sso"), what="tokens are taken")


def test_auth_o_tron_takes_over_while_the_server_runs_and_is_alone(place: Place) -> None:
    tree = json.loads(place.server.file.read_text())
    anns = basic("ann", "pa:ss")
    before = basic("joe", "pa:ss-joe-9c1")
    assert place.call(before).status_code == 200
    changed = json.loads(json.dumps(tree))
    changed["authentication"]["auth-o-tron"] = {
        "url": place.auth_o_tron.url,
        "secret": SECRET,
        "timeout": 1,
    }
    place.server.file.write_text(json.dumps(changed))
    try:
        until(lambda: place.call(before).status_code == 401, what="realms are not read any more")
        assert place.who(anns) == ("ann", "partner")
        assert place.who("EmailKey joe@example.org:joes-key") == ("joe", "ecmwf")
        assert place.who("Bearer joes-key") == ("joe", "ecmwf")
        for header in (f"Federation {SHARED}:bob:partner", f"EmailKey joe@example.org:{KEY}"):
            assert place.call(header).status_code == 401
        place.auth_o_tron.forced = (200, {}, b"")
        assert place.call("Bearer another").status_code == 503
    finally:
        place.auth_o_tron.forced = None
        place.server.file.write_text(json.dumps(tree))
    until(lambda: place.call(before).status_code == 200, what="realms are back")


def test_no_secret_is_in_a_log_or_on_disk(place: Place) -> None:
    tokens = place.oidc.tokens("alice")
    for header in (f"EmailKey joe@example.org:{KEY}", f"Bearer {tokens['refresh_token']}"):
        assert place.call(header).status_code == 200
    logs = place.server.all_logs()
    assert "who-am-i" in logs  # as the HTTP library writes it at this level
    secrets = [
        *(KEY, STRANGE_KEY, OTHER_KEY, SHARED, SECRET, APIKEY, SIGNING_KEY),
        *("alicepw", "bob:pw", PRIVATE_CLIENT[1], INTROSPECTING_CLIENT[1]),
        *tokens.values(),
    ]
    files = [file for file in place.server.directory.glob("*.sqlite*") if file.is_file()]
    assert files
    stored = b"".join(file.read_bytes() for file in files)
    for secret in secrets:
        if isinstance(secret, str) and secret not in ("Bearer", tokens["scope"]):
            assert secret not in logs
            assert secret.encode() not in stored
