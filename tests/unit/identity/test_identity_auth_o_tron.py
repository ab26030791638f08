"""auth-o-tron: whatever is handed on, and what its signed answer says."""

import base64
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from services.auth_o_tron import JOE, SECRET, AuthOTron
from services.web import Reply

from polytope_server.authentication import Authenticator
from polytope_server.authentication.auth_o_tron import AuthOTronAuthenticators
from polytope_server.authentication.identity import Identity
from polytope_server.caching.memory import MemoryCache
from polytope_server.config.caching import MemoryCacheSection
from polytope_server.config.identity import RealmSection
from polytope_server.config.identity_services import AuthOTronSection
from polytope_server.errors import BackendUnavailable, NotAuthenticated
from polytope_server.testing.authentication import AuthenticatorContract, Good, Wrong
from polytope_server.user import User

HERE = "192.0.2.7"
ANNS = base64.b64encode(b"ann:pa:ss").decode()


@pytest.fixture
def server() -> Iterator[AuthOTron]:
    with AuthOTron() as running:
        yield running


def authenticators_of(server: AuthOTron, **options: Any) -> dict[str, Authenticator]:
    section = AuthOTronSection.read({"url": server.url, "secret": SECRET, **options}, where="here")
    return {each.scheme: each for each in AuthOTronAuthenticators(section, realm="auth-o-tron")}


class _Contract(AuthenticatorContract):
    scheme: str

    @pytest.fixture
    def authenticator(self, server: AuthOTron) -> Authenticator:
        return authenticators_of(server)[self.scheme]


class TestBasic(_Contract):
    scheme = "Basic"

    @pytest.fixture
    def good(self) -> Good:
        return {ANNS: User(username="ann", realm="partner")}

    @pytest.fixture
    def wrong(self) -> Wrong:
        return [base64.b64encode(b"ann:wrong").decode(), base64.b64encode(b"joes-key:").decode()]


class TestBearer(_Contract):
    scheme = "Bearer"

    @pytest.fixture
    def good(self) -> Good:
        return {"joes-key": User(username="joe", realm="ecmwf")}

    @pytest.fixture
    def wrong(self) -> Wrong:
        return ["no-such-key", "joes-key\r\nX-Other: 1", ANNS]


class TestEmailKey(_Contract):
    scheme = "EmailKey"

    @pytest.fixture
    def good(self) -> Good:
        return {"joe@example.org:joes-key": User(username="joe", realm="ecmwf")}

    @pytest.fixture
    def wrong(self) -> Wrong:
        return ["joe@example.org:no-such-key", "joes-key:joe@example.org", "joes-key"]

    def test_a_part_of_a_good_credential_is_refused(self, authenticator: Authenticator) -> None:
        """The server is shown the key alone, so the address before it does not matter."""
        for credential in (
            "joe@example.org:joes-",
            "joe@example.org:",
            "joe@example.org",
            ":joes-key",
        ):
            with pytest.raises(NotAuthenticated):
                authenticator.authenticate(credential)


def test_realm_roles_and_attributes_are_what_the_answer_says(server: AuthOTron) -> None:
    user = authenticators_of(server)["Bearer"].authenticate("joes-key")
    assert user.roles == {"default", "operator", "researcher"}
    assert dict(user.attributes) == {"ecmwf-email": "joe@example.org", "level": "3"}
    assert user.valid_until is not None
    assert 3500 < user.valid_until - time.time() <= 3600


def signed(secret: str = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    claims = {name: value for name, value in {**JOE, **changes}.items() if value is not None}
    return jwt.encode(claims, secret, algorithm=algorithm)


def test_a_token_without_an_end_is_taken_and_odd_claims_give_nothing(server: AuthOTron) -> None:
    token = signed(roles=None, attributes=["x"])
    server.forced = (200, {"Authorization": f"bearer {token}"}, b"")
    user = authenticators_of(server)["Bearer"].authenticate("anything")
    assert (user.roles, dict(user.attributes), user.valid_until) == ({"default"}, {}, None)


UNSIGNED = jwt.encode(dict(JOE), None, algorithm="none")
SENSELESS: dict[str, Reply] = {
    "no token": (200, {}, b""),
    "no scheme": (200, {"Authorization": signed()}, b""),
    "another secret": (200, {"Authorization": f"Bearer {signed('x' * 32)}"}, b""),
    "no signature": (200, {"Authorization": f"Bearer {UNSIGNED}"}, b""),
    "another algorithm": (200, {"Authorization": f"Bearer {signed(algorithm='HS512')}"}, b""),
    "old": (200, {"Authorization": f"Bearer {signed(exp=1)}"}, b""),
    "without a name": (200, {"Authorization": f"Bearer {signed(username=None)}"}, b""),
    "without a realm": (200, {"Authorization": f"Bearer {signed(realm='')}"}, b""),
    "500": (500, {}, b""),
    "429": (429, {}, b""),
    "404": (404, {}, b""),
    "302": (302, {"Location": "/login"}, b""),
}


@pytest.mark.parametrize("name", SENSELESS)
def test_answers_that_prove_nothing_refuse_nobody(server: AuthOTron, name: str) -> None:
    server.forced = SENSELESS[name]
    with pytest.raises(BackendUnavailable):
        authenticators_of(server)["Bearer"].authenticate("joes-key")


def test_a_server_that_is_away_or_slow_refuses_nobody(server: AuthOTron) -> None:
    server.delay_s = 30
    with pytest.raises(BackendUnavailable):
        authenticators_of(server, timeout=0.2)["Basic"].authenticate(ANNS)
    server.stop()
    with pytest.raises(BackendUnavailable):
        authenticators_of(server)["Basic"].authenticate(ANNS)


def test_it_is_one_back_end_for_all_schemes_of_a_header(server: AuthOTron) -> None:
    options = {"type": "auth-o-tron", "url": server.url, "secret": SECRET}
    realm = RealmSection(authenticators={"auth-o-tron": options})
    cache = MemoryCache(MemoryCacheSection())
    identity = Identity.build({"auth-o-tron": realm}, cache)
    assert identity.schemes == ["Basic", "Bearer", "EmailKey"]
    header = f"EmailKey ann@example.org:wrong, basic {ANNS}"
    for _ in range(3):
        ann = identity.identify(header, address=HERE)
        assert (ann.username, ann.realm, ann.roles) == ("ann", "partner", {"default"})
    assert server.hits == 2
    joe = identity.identify("EmailKey joe@example.org:joes-key", address=HERE)
    assert (joe.username, joe.realm) == ("joe", "ecmwf")
    with pytest.raises(NotAuthenticated):
        identity.identify("Federation secret:joe:ecmwf", address=HERE)
