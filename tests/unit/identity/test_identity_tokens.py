"""Signed tokens: the right ones are taken, and no forgery that is known."""

import base64
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from services.web import Reply, WebServer

from polytope_server.authentication.key_set import FRESH_S, REFETCH_S, STALE_S, KeySet
from polytope_server.authentication.outgoing import Service
from polytope_server.authentication.tokens import Verifier, WrongAudience
from polytope_server.errors import BackendUnavailable, NotAuthenticated

ISSUER = "https://login.example.org/realms/data"
RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = rsa.generate_private_key(65537, 2048)
SHORT_KEY = rsa.generate_private_key(65537, 1024)
EC_KEY = ec.generate_private_key(ec.SECP384R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    kinds: dict[type, Any] = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
    }
    (algorithm,) = (made for kind, made in kinds.items() if isinstance(key, kind))
    public: dict[str, Any] = json.loads(algorithm.to_jwk(key.public_key()))
    public.pop("key_ops", None)
    return public | {"use": "sig"} | more


class Jwks(WebServer):
    """Publishes `keys`."""

    def __init__(self, *keys: Any) -> None:
        super().__init__()
        self.keys: list[Any] = list(keys)

    def reply(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        return 200, {}, json.dumps({"keys": self.keys}).encode()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def issuer() -> Iterator[Jwks]:
    keys = (
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"},
        jwk(RSA_KEY, kid="encrypts", use="enc"),
        jwk(SHORT_KEY, kid="short"),
        {"kty": "PQC", "kid": "future", "x": "?"},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        {"kty": "EC", "crv": "P-256", "kid": "off-curve", "x": "AAAA", "y": "AAAA"},
        {"kty": ["RSA"], "kid": "list"},
        {"kty": "RSA", "kid": {"a": 1}},
        json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(OTHER_KEY)) | {"kid": "private"},
        "text",
        jwk(RSA_KEY, kid="k1", alg="RS256"),
        jwk(RSA_KEY, kid="free"),
        jwk(EC_KEY, kid="ec"),
        jwk(ED_KEY, kid="ed"),
    )
    with Jwks(*keys) as server:
        yield server


def verifier(
    server: Jwks, *, clock: Callable[[], float] = time.monotonic, **options: Any
) -> Verifier:
    service = Service("issuer", timeout_s=5, clock=clock)
    defaults: dict[str, Any] = {
        "algorithms": ("RS256", "RS384", "RS512"),
        "audience": ("polytope",),
        "issuer": ISSUER,
        "client_id": "polytope",
        "leeway_s": 10.0,
    }
    return Verifier(KeySet(service, server.url, clock=clock), **{**defaults, **options})


def token(
    changes: Mapping[str, Any] | None = None,
    *,
    key: Any = RSA_KEY,
    algorithm: str = "RS256",
    header: Mapping[str, Any] | None = None,
) -> str:
    """A good one with changes; None takes a claim away."""
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": "polytope",
        "sub": "alice",
        "iat": now,
        "exp": now + 300,
        "typ": "Bearer",
        "realm_access": {"roles": ["staff"]},
        "resource_access": {"polytope": {"roles": ["operator"]}, "else": {"roles": ["root"]}},
        **(changes or {}),
    }
    kept = {name: value for name, value in claims.items() if value is not None}
    head = {name: value for name, value in {"kid": "k1", **(header or {})}.items() if value}
    # not by PyJWT's own encoder of claims, which refuses what forgers write
    return jwt.PyJWS().encode(json.dumps(kept).encode(), key, algorithm=algorithm, headers=head)


def b64(data: Any) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed_with_secret(secret: bytes, header: Mapping[str, Any]) -> str:
    """What PyJWT itself would refuse to make."""
    payload = token().split(".")[1]
    text = f"{b64(dict(header))}.{payload}"
    return f"{text}.{b64(hmac.digest(secret, text.encode(), hashlib.sha256))}"


def test_a_good_token_says_who_and_with_which_roles_until_when(issuer: Jwks) -> None:
    claims = verifier(issuer).verified(token({"exp": 1 << 33}))
    assert (claims.subject, claims.expires_at) == ("alice", float(1 << 33))
    assert claims.roles == {"staff", "operator"}


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [
        (RSA_KEY, "RS512", "free"),
        (RSA_KEY, "PS256", "free"),
        (EC_KEY, "ES384", "ec"),
        (ED_KEY, "EdDSA", "ed"),
    ],
)
def test_other_algorithms_are_taken_when_they_are_configured_and_not_before(
    issuer: Jwks, key: Any, algorithm: str, kid: str
) -> None:
    made = token(key=key, algorithm=algorithm, header={"kid": kid})
    assert verifier(issuer, algorithms=(algorithm,)).verified(made).subject == "alice"
    if algorithm != "RS512":
        with pytest.raises(NotAuthenticated):
            verifier(issuer).verified(made)


PUBLIC_PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
PUBLIC_DER = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)
OF_OTHERS = jwk(OTHER_KEY, kid="k1")
HEAD = {"typ": "JWT", "kid": "k1"}
GOOD_HEAD, GOOD_PAYLOAD, GOOD_SIGNATURE = token().split(".")
DEEP = b'{"a":' * 2000
FORGED: Mapping[str, str] = {
    "no signature": f"{b64({**HEAD, 'alg': 'none'})}.{GOOD_PAYLOAD}.",
    "none, written otherwise": f"{b64({**HEAD, 'alg': 'NoNe'})}.{GOOD_PAYLOAD}.{GOOD_SIGNATURE}",
    "none, with a signature": f"{b64({**HEAD, 'alg': 'none'})}.{GOOD_PAYLOAD}.{GOOD_SIGNATURE}",
    "no algorithm": f"{b64(HEAD)}.{GOOD_PAYLOAD}.{GOOD_SIGNATURE}",
    "a list of algorithms": f"{b64({**HEAD, 'alg': ['RS256']})}.{GOOD_PAYLOAD}.{GOOD_SIGNATURE}",
    "the signature cut off": f"{GOOD_HEAD}.{GOOD_PAYLOAD}.",
    "other claims": f"{GOOD_HEAD}.{b64({'sub': 'root', 'exp': 1 << 40})}.{GOOD_SIGNATURE}",
    "HS256 with the PEM": signed_with_secret(PUBLIC_PEM, {**HEAD, "alg": "HS256"}),
    "HS256 with the PEM without its end": signed_with_secret(
        PUBLIC_PEM.strip(), {**HEAD, "alg": "HS256"}
    ),
    "HS256 with the DER": signed_with_secret(PUBLIC_DER, {**HEAD, "alg": "HS256"}),
    "HS256 with the JWK": signed_with_secret(
        json.dumps(jwk(RSA_KEY, kid="k1", alg="RS256")).encode(), {**HEAD, "alg": "HS256"}
    ),
    "HS256 with a published secret": signed_with_secret(
        b"secret-secret-secret-secret-secret", {"kid": "shared", "alg": "HS256"}
    ),
    "HS256 with nothing": signed_with_secret(b"", {**HEAD, "alg": "HS256"}),
    "somebody else's key": token(key=OTHER_KEY),
    "a key in the token": token(key=OTHER_KEY, header={"jwk": OF_OTHERS}),
    "a published private key": token(key=OTHER_KEY, header={"kid": "private"}),
    "a key that encrypts": token(header={"kid": "encrypts"}),
    "a short key": token(key=SHORT_KEY, header={"kid": "short"}),
    "an unknown key": token(header={"kid": "invented"}),
    "a key that is a path": token(header={"kid": "../../../../dev/null"}),
    "no name of a key, of many": token(header={"kid": None}),
    "another algorithm of the family": token(algorithm="RS512"),
    "an EC key as an RSA key": f"{b64({**HEAD, 'kid': 'ec', 'alg': 'RS256'})}.{GOOD_PAYLOAD}.AAAA",
    "something critical": token(header={"crit": ["exp"], "exp": 1}),
    "a payload elsewhere": token(header={"b64": False, "crit": ["b64"]}),
    "a wrong issuer": token({"iss": "https://evil.example.org"}),
    "no issuer": token({"iss": None}),
    "a list of issuers": token({"iss": [ISSUER]}),
    "a wrong audience": token({"aud": "account"}),
    "other audiences": token({"aud": ["account", "polytope2"]}),
    "no audience": token({"aud": None}),
    "an odd audience": token({"aud": {"polytope": 1}}),
    "expired": token({"exp": int(time.time()) - 60}),
    "no expiry": token({"exp": None}),
    "an odd expiry": token({"exp": "tomorrow"}),
    "an expiry without end": token({"exp": float("inf")}),
    "not yet": token({"nbf": int(time.time()) + 3600}),
    "issued in the future": token({"iat": int(time.time()) + 3600}),
    "nobody": token({"sub": None}),
    "a nameless one": token({"sub": ""}),
    "a number": token({"sub": 7}),
    "an identity token": token({"typ": "ID"}),
    "an identity token of others": token({"at_hash": "AAAA", "nonce": "n"}),
    "an identity token with a code": token({"c_hash": "AAAA"}),
    "a logout token of others": token(header={"typ": "logout+jwt"}),
    "an event": token(header={"typ": "application/SecEvent+JWT"}),
    "a refresh token": token({"typ": "Refresh"}),
    "five parts": f"{GOOD_HEAD}.a.b.c.{GOOD_SIGNATURE}",
    "nested": f"{b64(b'[' * 5000)}.{GOOD_PAYLOAD}.{GOOD_SIGNATURE}",
    "nested claims": f"{GOOD_HEAD}.{b64(DEEP)}.{GOOD_SIGNATURE}",
    "huge": token({"padding": "x" * 40_000}),
    "a list": f"{b64([])}.{b64([])}.AAAA",
    "text": "not a token",
    "nothing": "",
    "blanks": f" {token()}",
    "a line break": f"{token()}\n",
}


@pytest.mark.parametrize("name", FORGED)
def test_forgeries_are_refused(issuer: Jwks, name: str) -> None:
    with pytest.raises(NotAuthenticated) as caught:
        verifier(issuer).verified(FORGED[name])
    assert str(caught.value) == "The token is not accepted."


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no signature", "its algorithm is not allowed"),
        ("HS256 with the PEM", "its algorithm is not allowed"),
        ("a wrong issuer", "it is of another issuer"),
        ("an unknown key", "its issuer has no such key"),
        ("another algorithm of the family", "InvalidAlgorithmError"),
        ("somebody else's key", "InvalidSignatureError"),
        ("expired", "ExpiredSignatureError"),
        ("no expiry", "MissingRequiredClaimError"),
        ("not yet", "ImmatureSignatureError"),
        ("a nameless one", "it names nobody"),
        ("an identity token", "it is no access token"),
        ("a wrong audience", "it is for another audience"),
    ],
)
def test_the_log_says_why_and_nothing_of_the_token(
    issuer: Jwks, name: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO, logger="polytope_server"),
        pytest.raises(NotAuthenticated),
    ):
        verifier(issuer).verified(FORGED[name])
    (record,) = (each for each in caplog.records if each.message == "a token was refused")
    assert vars(record)["reason"] == reason
    assert GOOD_PAYLOAD not in str(vars(record))


@pytest.mark.parametrize("header", ["jku", "x5u"])
def test_no_address_in_a_token_is_asked(issuer: Jwks, header: str) -> None:
    with Jwks(OF_OTHERS) as evil:
        made = token(key=OTHER_KEY, header={header: evil.url, "jwk": OF_OTHERS})
        with pytest.raises(NotAuthenticated):
            verifier(issuer).verified(made)
        assert evil.hits == 0


def test_clocks_may_be_apart_a_little(issuer: Jwks) -> None:
    late = token({"exp": int(time.time()) - 5})
    early = token({"nbf": int(time.time()) + 5})
    for made in (late, early):
        assert verifier(issuer).verified(made).subject == "alice"
        with pytest.raises(NotAuthenticated):
            verifier(issuer, leeway_s=0.0).verified(made)


def test_without_an_audience_a_token_is_for_the_client_or_for_nobody_in_particular(
    issuer: Jwks,
) -> None:
    ours = verifier(issuer, audience=())
    for audience in (None, "polytope", ["account", "polytope"]):
        assert ours.verified(token({"aud": audience})).subject == "alice"
    for audience in ("account", ["account"], [], ""):
        with pytest.raises(WrongAudience):
            ours.verified(token({"aud": audience}))


def test_without_an_issuer_any_is_taken_whose_signature_is_good(issuer: Jwks) -> None:
    anybodys = verifier(issuer, issuer=None)
    assert anybodys.verified(token({"iss": "https://other.example.org"})).subject == "alice"
    with pytest.raises(NotAuthenticated):
        anybodys.verified(token(key=OTHER_KEY))


@pytest.mark.parametrize(
    "odd", [{"realm_access": ["a"], "resource_access": 7}, {"realm_access": {"roles": "root"}}]
)
def test_what_has_not_the_shape_of_roles_gives_none(issuer: Jwks, odd: Mapping[str, Any]) -> None:
    claims = verifier(issuer).verified(token({"resource_access": None, **odd}))
    assert claims.roles == frozenset()


@given(
    st.text(max_size=60) | st.from_regex(r"[\w-]{1,40}\.[\w-]{1,60}\.[\w-]{0,40}", fullmatch=True)
)
def test_no_text_is_a_token(text: str) -> None:
    class NoKeys:
        def find(self, key_id: str | None) -> None:
            return None

    with pytest.raises(NotAuthenticated):
        Verifier(
            NoKeys(),  # type: ignore[arg-type]
            algorithms=("RS256",),
            audience=(),
            issuer=None,
            client_id="c",
            leeway_s=0,
        ).verified(text)


# --- keys that come, go, and cannot be had


def test_keys_are_fetched_once_and_by_nobody_who_has_no_use_for_them() -> None:
    with Jwks(jwk(RSA_KEY, kid="k1")) as server:
        ours = verifier(server)
        for name in ("no signature", "HS256 with the PEM", "a wrong issuer", "text", "huge"):
            with pytest.raises(NotAuthenticated):
                ours.verified(FORGED[name])
        assert server.hits == 0
        threads = [threading.Thread(target=ours.verified, args=(token(),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert server.hits == 1


def test_a_new_key_is_found_at_once_and_an_old_one_is_gone_after_a_while() -> None:
    clock = Clock()
    with Jwks(jwk(RSA_KEY, kid="old")) as server:
        ours = verifier(server, clock=clock)
        ours.verified(token(header={"kid": "old"}))
        server.keys = [jwk(OTHER_KEY, kid="new")]
        clock.now += REFETCH_S + 1
        assert ours.verified(token(key=OTHER_KEY, header={"kid": "new"})).subject == "alice"
        with pytest.raises(NotAuthenticated):
            ours.verified(token(header={"kid": "old"}))
        server.keys = [jwk(RSA_KEY, kid="new")]  # as nobody should do it
        clock.now += FRESH_S + 1
        assert ours.verified(token(header={"kid": "new"})).subject == "alice"
        with pytest.raises(NotAuthenticated):
            ours.verified(token(key=OTHER_KEY, header={"kid": "new"}))


def test_invented_names_of_keys_cost_the_issuer_nothing() -> None:
    clock = Clock()
    with Jwks(jwk(RSA_KEY, kid="k1")) as server:
        ours = verifier(server, clock=clock)
        ours.verified(token())
        for number in range(50):
            with pytest.raises(NotAuthenticated):
                ours.verified(token(header={"kid": f"invented{number}"}))
        assert server.hits == 1
        clock.now += REFETCH_S + 1
        for number in range(50):
            with pytest.raises(NotAuthenticated):
                ours.verified(token(header={"kid": f"invented{number}"}))
        assert server.hits == 2
        assert ours.verified(token()).subject == "alice"


def test_tokens_without_the_name_of_a_key_are_of_the_only_one() -> None:
    with Jwks(jwk(RSA_KEY)) as server:
        assert verifier(server).verified(token(header={"kid": None})).subject == "alice"


@pytest.mark.parametrize(
    "answer",
    [
        (500, {}, b""),
        (404, {}, b"{}"),
        (429, {}, b""),
        (200, {}, b"<html>"),
        (200, {}, b'{"keys": []}'),
    ],
    ids=lambda answer: str(answer[0]),
)
def test_an_issuer_that_gives_no_keys_is_away_and_nobody_is_refused_for_it(answer: Reply) -> None:
    clock = Clock()
    with Jwks(jwk(RSA_KEY, kid="k1")) as server:
        server.forced = answer
        ours = verifier(server, clock=clock)
        for _ in range(3):
            with pytest.raises(BackendUnavailable):
                ours.verified(token())
        assert server.hits == 1  # not once more for each user
        server.forced = None
        clock.now += REFETCH_S + 1
        assert ours.verified(token()).subject == "alice"


def test_known_keys_are_used_for_an_hour_while_the_issuer_is_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    with Jwks(jwk(RSA_KEY, kid="k1")) as server:
        ours = verifier(server, clock=clock)
        ours.verified(token())
        server.stop()
        clock.now += FRESH_S + 1
        with caplog.at_level(logging.WARNING):
            for _ in range(20):
                assert ours.verified(token()).subject == "alice"
        assert len([r for r in caplog.records if "cannot be fetched" in r.message]) == 1
        clock.now += REFETCH_S + 1
        with pytest.raises(BackendUnavailable):
            ours.verified(token(header={"kid": "new"}))
        clock.now += STALE_S
        with pytest.raises(BackendUnavailable):
            ours.verified(token())
        server.start()
        clock.now += REFETCH_S + 1
        assert ours.verified(token()).subject == "alice"
