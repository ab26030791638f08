"""The ``plain`` authenticator and authorizer: the contracts, passwords, costs and options."""

import base64
import statistics
import time

import pytest
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st

from polytope_server.authentication import Authenticator
from polytope_server.authentication.plain import PlainAuthenticator
from polytope_server.authorization import Authorizer, Grant
from polytope_server.authorization.plain import PlainAuthorizer
from polytope_server.config.identity import (
    PlainAuthenticatorSection,
    PlainAuthorizerSection,
    RealmSection,
)
from polytope_server.errors import ConfigurationError, NotAuthenticated
from polytope_server.testing.authentication import AuthenticatorContract, Good, Wrong
from polytope_server.testing.authorization import AuthorizerContract, Known
from polytope_server.user import User

CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
HASH = CHEAP.hash("hashed:pass,word")


def basic(uid: str, password: str, encoding: str = "utf-8") -> str:
    return base64.b64encode(f"{uid}:{password}".encode(encoding)).decode()


def authenticator_of(*users: dict[str, object], realm: str = "example") -> PlainAuthenticator:
    section = PlainAuthenticatorSection.read({"type": "plain", "users": users}, where="here")
    return PlainAuthenticator(section, realm=realm)


def authorizer_of(**options: object) -> PlainAuthorizer:
    read = {key.replace("_", "-"): value for key, value in options.items()}
    return PlainAuthorizer(PlainAuthorizerSection.read(read, where="here"))


USERS: tuple[dict[str, object], ...] = (
    {"uid": "joe", "password": "se:cr:et", "attributes": {"site": "reading", "level": 3}},
    {"uid": "ann", "password": HASH},
    {"uid": "Zoë", "password": "pässwörd €"},
)


class TestPlainAuthenticator(AuthenticatorContract):
    @pytest.fixture(params=["a plain realm", 'with "quotes\\', "mit Ümläut\r\nX: y"])
    def authenticator(self, request: pytest.FixtureRequest) -> Authenticator:
        self.realm = request.param
        return authenticator_of(*USERS, realm=request.param)

    @pytest.fixture
    def good(self, authenticator: Authenticator) -> Good:
        return {
            basic("joe", "se:cr:et"): User(username="joe", realm=self.realm),
            basic("ann", "hashed:pass,word"): User(username="ann", realm=self.realm),
            basic("Zoë", "pässwörd €"): User(username="Zoë", realm=self.realm),
        }

    @pytest.fixture
    def wrong(self) -> Wrong:
        return [
            basic("joe", "wrong"),
            basic("joe", "se"),
            basic("joe", ""),
            basic("joe", "se:cr:et "),
            basic("JOE", "se:cr:et"),
            basic("ann", HASH),
            basic("ann", "se:cr:et"),
            basic("nobody", "se:cr:et"),
            basic("", ""),
        ]


class TestPlainAuthorizer(AuthorizerContract):
    @pytest.fixture
    def authorizer(self) -> Authorizer:
        return authorizer_of(
            roles={
                "operator": ["joe"],
                "researcher": ["joe", "ann"],
                "single": "ann",
                "none": None,
            },
            user_attributes={
                "j*": {"site": "reading", "level": 3},
                "joe": {"level": "4"},
                "x": None,
            },
            role_attributes={"researcher": {"queue": "fast", "site": "?"}, "ann": {"never": "1"}},
        )

    @pytest.fixture
    def known(self) -> Known:
        return {
            User(username="joe", realm="example"): Grant(
                roles={"operator", "researcher"},
                attributes={"site": "reading", "level": "4", "queue": "fast"},
            ),
            User(username="ann", realm="example"): Grant(
                roles={"researcher", "single"}, attributes={"site": "?", "queue": "fast"}
            ),
        }


def test_a_latin_1_client_can_log_in_with_an_accent() -> None:
    credential = basic("joe", "pässwörd", "latin-1")
    plain = authenticator_of({"uid": "joe", "password": "pässwörd"})
    assert plain.authenticate(credential).username == "joe"


def test_attributes_come_with_the_user_as_text() -> None:
    user = authenticator_of(*USERS).authenticate(basic("joe", "se:cr:et"))
    assert dict(user.attributes) == {"site": "reading", "level": "3"}


def test_a_login_name_is_told_before_the_password_is_looked_at() -> None:
    plain = authenticator_of(*USERS)
    assert plain.login_name(basic("nobody:", "x")) == "nobody"
    assert plain.login_name("no base64") == ""


def test_a_hashed_password_is_accepted_again_and_a_wrong_one_is_not() -> None:
    plain = authenticator_of(*USERS)
    for _ in range(3):
        assert plain.authenticate(basic("ann", "hashed:pass,word")).username == "ann"
        with pytest.raises(NotAuthenticated):
            plain.authenticate(basic("ann", "hashed:pass,word2"))


@given(uid=st.text(max_size=20), password=st.text(max_size=40))
def test_nobody_but_the_users_can_log_in(uid: str, password: str) -> None:
    plain = authenticator_of({"uid": "joe", "password": "se:cr:et"})
    raw = f"{uid}:{password}".encode("utf-8", "surrogatepass")
    credential = base64.b64encode(raw).decode()
    if raw == b"joe:se:cr:et":
        assert plain.authenticate(credential).username == "joe"
        return
    with pytest.raises(NotAuthenticated):
        plain.authenticate(credential)


@pytest.mark.parametrize("uid", ["nobody", "clear"])
def test_an_unknown_user_costs_as_much_as_a_wrong_password(uid: str) -> None:
    costly = PasswordHasher(time_cost=2, memory_cost=16 * 1024, parallelism=1)
    plain = authenticator_of(
        {"uid": "hashed", "password": costly.hash("right")}, {"uid": "clear", "password": "right"}
    )

    def seconds(name: str) -> float:
        begin = time.thread_time()
        with pytest.raises(NotAuthenticated):
            plain.authenticate(basic(name, "wrong"))
        return time.thread_time() - begin

    pairs = [(seconds("hashed"), seconds(uid)) for _ in range(7)]
    known, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    assert 0.4 < other / known < 2.5


def test_a_proven_password_does_not_cost_the_hash_again() -> None:
    costly = PasswordHasher(time_cost=2, memory_cost=32 * 1024, parallelism=1)
    plain = authenticator_of({"uid": "ann", "password": costly.hash("right")})

    def seconds() -> float:
        begin = time.thread_time()
        plain.authenticate(basic("ann", "right"))
        return time.thread_time() - begin

    first = seconds()
    assert statistics.median(seconds() for _ in range(5)) < first / 10


def test_roles_that_a_user_has_already_bring_their_attributes() -> None:
    plain = authorizer_of(role_attributes={"given-elsewhere": {"queue": "fast"}})
    user = User(username="joe", realm="r", roles=frozenset({"default", "given-elsewhere"}))
    assert dict(plain.grant(user).attributes) == {"queue": "fast"}


@pytest.mark.parametrize(
    ("users", "place"),
    [
        ([{"uid": "joe"}], "here.users[0].password: this key is missing"),
        ([{"password": "x"}], "here.users[0].uid: this key is missing"),
        ([{"uid": "joe", "password": 1234567}], "here.users[0].password: must be text"),
        ([{"uid": "joe", "password": False}], "here.users[0].password: must be text"),
        ([{"uid": "joe", "password": ""}], "here.users[0].password: must be a password"),
        ([{"uid": "joe", "password": "$argon2id$zz"}], "here.users[0].password: must be a whole"),
        ([{"uid": 7, "password": "x"}], "here.users[0].uid: must be text"),
        ([{"uid": "", "password": "x"}], "here.users[0].uid"),
        ([{"uid": "a:b", "password": "x"}], "here.users[0].uid"),
        ([{"uid": "a", "password": "x", "attributes": {"b": []}}], "here.users[0].attributes.b"),
        ([{"uid": "joe", "password": "xyzzy"}] * 2, "here.users: must be a list that has each uid"),
        ("joe", "here.users: "),
    ],
)
def test_wrong_options_are_named_and_no_password_is_shown(users: object, place: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        PlainAuthenticatorSection.read({"users": users}, where="here")
    text = str(caught.value)
    assert text.startswith(place)
    assert not any(secret in text for secret in ("1234567", "$zz", "xyzzy"))


def test_a_hash_that_asks_for_too_much_is_refused_at_the_start() -> None:
    greedy = "$argon2id$v=19$m=4294967295,t=1,p=1$c29tZXNhbHQ$" + "A" * 43
    with pytest.raises(ConfigurationError, match="password of 'joe'"):
        authenticator_of({"uid": "joe", "password": greedy})


def test_no_password_is_in_a_repr() -> None:
    user: dict[str, object] = {
        "uid": "joe",
        "password": "xyzzy1",
        "attributes": {"ecmwf-apikey": "xyzzy2"},
    }
    options = {"type": "plain", "users": [user]}
    section = PlainAuthenticatorSection.read(options, where="here")
    realm = RealmSection.read({"authenticators": {"local": options}}, where="here")
    plain = authenticator_of(user)
    logged_in = plain.authenticate(basic("joe", "xyzzy1"))
    shown = repr((section, realm, plain, logged_in)) + str(section) + str(realm)
    assert "xyzzy" not in shown
