"""From the header to the user, over realms, schemes, caches and back-ends that are away."""

import base64
import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from polytope_server.authentication import Authenticator
from polytope_server.authentication.guessing import FREE_GUESSES
from polytope_server.authentication.identity import LIFETIME_S, Identity, Realm
from polytope_server.authorization import Authorizer, Grant
from polytope_server.caching.memory import MemoryCache
from polytope_server.config.caching import MemoryCacheSection
from polytope_server.config.identity import RealmSection
from polytope_server.errors import (
    BackendUnavailable,
    ConfigurationError,
    NotAuthenticated,
    NotAuthorized,
)
from polytope_server.user import User

HERE = "192.0.2.7"


def basic(uid: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{uid}:{password}".encode()).decode()


class Tokens:
    """An authenticator of a scheme of its own; its answers are given, its calls are kept."""

    cacheable = True

    def __init__(
        self, answers: Mapping[str, User | Exception], *, scheme: str = "Token", name: str = ""
    ) -> None:
        self.scheme, self.answers, self.name = scheme, answers, name
        self.calls: list[str] = []

    def challenge(self) -> str:
        return f'{self.scheme} realm="tokens"'

    def login_name(self, credential: str) -> str:
        return self.name

    def authenticate(self, credential: str) -> User:
        self.calls.append(credential)
        match self.answers.get(credential):
            case User() as user:
                return user
            case Exception() as exc:
                raise exc
        raise NotAuthenticated("The token has expired, xyzzy.")


class Grants:
    def __init__(self, answer: Callable[[User], Grant], *, remembered_s: float = 0.0) -> None:
        self.answer, self.remembered_s = answer, remembered_s
        self.calls = 0

    def grant(self, user: User) -> Grant:
        self.calls += 1
        return self.answer(user)


class Recording(MemoryCache):
    """A cache that anybody can look into and write to."""

    def __init__(self) -> None:
        super().__init__(MemoryCacheSection())
        self.seen: dict[str, Any] = {}

    def put(self, key: str, value: Any, *, lifetime_s: float) -> None:
        self.seen[key] = value
        super().put(key, value, lifetime_s=lifetime_s)


def identity_of(
    *authenticators: Authenticator,
    authorizers: tuple[Authorizer, ...] = (),
    cache: MemoryCache | None = None,
    lifetime_s: float = 60.0,
) -> Identity:
    realm = Realm(authenticators=authenticators, authorizers=authorizers)
    return Identity({"example": realm}, cache or Recording(), lifetime_s=lifetime_s)


JOE = User(username="joe", realm="example")
ANN = User(username="ann", realm="example")

REALMS = {
    "example": RealmSection(
        authenticators={
            "local": {
                "type": "plain",
                "users": [
                    {"uid": "joe", "password": "s3cret", "attributes": {"ecmwf-email": "j@e.org"}},
                    {"uid": "key", "password": "s3cret", "attributes": {"ecmwf-apikey": "xyzzy"}},
                ],
            }
        },
        authorizers={
            "local": {
                "type": "plain",
                "roles": {"operator": ["joe"]},
                "user-attributes": {"j*": {"site": "reading"}},
                "role-attributes": {"operator": {"queue": "fast"}},
            }
        },
    ),
    "other": RealmSection(
        authenticators={
            "p": {"type": "plain", "users": [{"uid": "joe", "password": "other"}]},
        },
        authorizers={"p": {"type": "plain", "roles": {"guest": ["joe"]}}},
    ),
}


def test_a_user_has_the_roles_and_attributes_of_the_realm_and_no_other() -> None:
    identity = Identity.build(REALMS, Recording())
    for _ in range(2):  # asked, and remembered
        joe = identity.identify(basic("joe", "s3cret"), address=HERE)
        assert (joe.username, joe.realm) == ("joe", "example")
        assert joe.roles == {"default", "operator"}
        assert dict(joe.attributes) == {
            "ecmwf-email": "j@e.org",
            "site": "reading",
            "queue": "fast",
        }
        other = identity.identify(basic("joe", "other"), address=HERE)
        assert (other.realm, set(other.roles), dict(other.attributes)) == (
            "other",
            {"default", "guest"},
            {},
        )


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
def test_schemes_are_compared_without_case(scheme: str) -> None:
    identity = Identity.build(REALMS, Recording())
    header = basic("joe", "s3cret").replace("Basic", scheme)
    assert identity.identify(header, address=HERE).username == "joe"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        " ",
        ",",
        "Basic",
        "Basic !",
        "Nonsense x",
        "Basic am9l",
        basic("joe", "wrong"),
        basic("nobody", "s3cret"),
        "Basic " + "A" * 100_000,
        "x" * 100_000,
        ",".join(["Basic a"] * 50_000),
        "Basic \udcff",
        "\x00",
    ],
    ids=range(15),
)
def test_what_is_no_good_is_refused_in_words_that_clients_can_take(header: str | None) -> None:
    identity = Identity.build(REALMS, Recording())
    for _ in range(2):
        with pytest.raises(NotAuthenticated) as caught:
            identity.identify(header, address=HERE)
        assert "expired" not in str(caught.value)
        assert str(caught.value)


def test_a_back_ends_own_words_are_not_passed_on() -> None:
    identity = identity_of(Tokens({}))
    with pytest.raises(NotAuthenticated) as caught:
        identity.identify("Token t", address=HERE)
    assert "expired" not in str(caught.value)
    assert "xyzzy" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "half \ud800", "a\x00b", "a\r\nX: b", "a\nb", "x" * 1025])
def test_a_name_that_nothing_could_be_kept_under_is_refused_in_plain_words(name: str) -> None:
    """As an identity service may give one, for whatever reason."""
    in_it = User(username=name, realm="example")
    of_it = User(username="joe", realm=name)
    identity = identity_of(Tokens({"user": in_it, "realm": of_it}))
    for credential in ("user", "realm"):
        for _ in range(2):
            with pytest.raises(NotAuthorized, match="name of this account"):
                identity.identify(f"Token {credential}", address=HERE)


def test_roles_that_nothing_could_be_kept_under_are_none() -> None:
    roles = frozenset({"half \ud800", "a\x00b", "x" * 1025, "x" * 1024, "r\u00f6le", "CN=a,b"})
    user = User(username="joe", realm="example", roles=roles)
    identity = identity_of(Tokens({"a": user}))
    found = identity.identify("Token a", address=HERE)
    assert found.roles == {"x" * 1024, "r\u00f6le", "CN=a,b", "default"}


def test_the_first_success_in_the_order_of_the_header_wins_and_ends_the_search() -> None:
    first = Tokens({"a": JOE}, scheme="First")
    second = Tokens({"b": ANN}, scheme="Second")
    assert identity_of(first, second).identify("Second b, First a", address=HERE) == ANN
    assert first.calls == []
    assert second.calls == ["b"]


def test_a_wrong_credential_beside_a_right_one_does_no_harm() -> None:
    first = Tokens({"a": JOE}, scheme="First")
    second = Tokens({}, scheme="Second")
    assert identity_of(first, second).identify("Second b, Third c, First a", address=HERE) == JOE


def test_one_that_is_away_does_no_harm_where_another_knows_the_user() -> None:
    away = Tokens({"a": BackendUnavailable("host1 is away")}, scheme="First")
    there = Tokens({"b": JOE}, scheme="Second")
    assert identity_of(away, there).identify("First a, Second b", address=HERE) == JOE


def test_if_one_that_is_away_might_have_known_the_user_that_is_said_and_not_remembered() -> None:
    answers: dict[str, User | Exception] = {"a": BackendUnavailable("host1 is away")}
    identity = identity_of(Tokens(answers, scheme="First"), Tokens({}, scheme="Second"))
    with pytest.raises(BackendUnavailable) as caught:
        identity.identify("First a, Second b", address=HERE)
    assert "host1" not in str(caught.value)
    answers["a"] = JOE
    assert identity.identify("First a, Second b", address=HERE) == JOE


def test_an_authorizer_that_is_away_does_not_make_a_user_without_roles() -> None:
    def away(user: User) -> Grant:
        raise BackendUnavailable("LDAP is away")

    identity = identity_of(Tokens({"a": JOE}), authorizers=(Grants(away),))
    with pytest.raises(BackendUnavailable):
        identity.identify("Token a", address=HERE)


def test_every_user_has_the_default_role_whatever_an_authenticator_says() -> None:
    bare = User(username="joe", realm="example", roles=frozenset({"x"}))
    assert identity_of(Tokens({"a": bare})).identify("Token a", address=HERE).roles == {
        "x",
        "default",
    }


def test_a_user_of_a_realm_that_is_not_configured_gets_nothing_more() -> None:
    stranger = User(username="joe", realm="elsewhere")
    grants = Grants(lambda user: Grant(roles={"operator"}))
    identity = identity_of(Tokens({"a": stranger}), authorizers=(grants,))
    assert identity.identify("Token a", address=HERE).roles == {"default"}


def test_an_authorizer_sees_what_those_before_it_have_granted() -> None:
    first = Grants(lambda user: Grant(roles={"one"}, attributes={"a": "1", "b": "1"}))
    second = Grants(lambda user: Grant(roles={*user.roles, "two"}, attributes={"b": "2"}))
    identity = identity_of(Tokens({"a": JOE}), authorizers=(first, second))
    joe = identity.identify("Token a", address=HERE)
    assert joe.roles == {"default", "one", "two"}
    assert dict(joe.attributes) == {"a": "1", "b": "2"}


def test_answers_good_and_bad_are_remembered() -> None:
    tokens = Tokens({"a": JOE})
    grants = Grants(lambda user: Grant(roles={"one"}))
    identity = identity_of(tokens, authorizers=(grants,))
    for _ in range(3):
        assert identity.identify("Token a", address=HERE).roles == {"default", "one"}
        with pytest.raises(NotAuthenticated):
            identity.identify("Token b", address=HERE)
    assert tokens.calls == ["a", "b"]
    assert grants.calls == 1


def test_answers_are_not_remembered_beyond_their_lifetime() -> None:
    answers: dict[str, User | Exception] = {"a": JOE}
    identity = identity_of(Tokens(answers), lifetime_s=0.0)
    assert identity.identify("Token a", address=HERE) == JOE
    answers["a"] = NotAuthenticated("revoked")
    with pytest.raises(NotAuthenticated):
        identity.identify("Token a", address=HERE)


def test_what_may_not_be_remembered_is_not() -> None:
    tokens = Tokens({"a": JOE})
    tokens.cacheable = False
    identity = identity_of(tokens)
    for _ in range(2):
        identity.identify("Token a", address=HERE)
    assert tokens.calls == ["a", "a"]


def test_the_cache_holds_neither_credentials_nor_secret_attributes() -> None:
    cache = Recording()
    identity = Identity.build(REALMS, cache)
    for uid, password in (("joe", "s3cret"), ("key", "s3cret"), ("joe", "wr0ng")):
        for _ in range(2):
            try:
                user = identity.identify(basic(uid, password), address=HERE)
            except NotAuthenticated:
                assert password == "wr0ng"
                continue
            assert uid != "key" or user.attributes["ecmwf-apikey"] == "xyzzy"
    held = json.dumps(cache.seen)
    assert len(cache.seen) == 2
    hidden = ("s3cret", "wr0ng", "xyzzy", *(basic(u, p)[6:] for u, p in (("joe", "s3cret"),)))
    assert not any(secret in held for secret in hidden)


@pytest.mark.parametrize("attributes", [{}, {"ecmwf-apikey": "xyzzy"}], ids=["cache", "process"])
def test_nobody_is_remembered_for_longer_than_their_credential_is_good(
    attributes: Mapping[str, str],
) -> None:
    monotonic, wall = [0.0], [1e9]
    user = User(username="joe", realm="example", attributes=attributes, valid_until=wall[0] + 5)
    tokens = Tokens({"a": user})
    realm = Realm(authenticators=[tokens])
    identity = Identity(
        {"example": realm}, Recording(), clock=lambda: monotonic[0], now=lambda: wall[0]
    )

    def later(seconds: float) -> None:
        monotonic[0] += seconds
        wall[0] += seconds

    assert identity.identify("Token a", address=HERE).valid_until == user.valid_until
    later(4.9)
    assert identity.recall("Token a") == user
    assert identity.identify("Token a", address=HERE).valid_until == user.valid_until
    assert tokens.calls == ["a"] * (2 if attributes else 1)
    later(0.2)
    assert identity.recall("Token a") is None
    identity.identify("Token a", address=HERE)
    assert len(tokens.calls) == (3 if attributes else 2)
    assert (
        identity.recall("Token a") is None
    )  # it has ended already, so it is not remembered at all


def test_a_cache_that_keeps_for_too_long_gives_nobody_more_time() -> None:
    class Forever(Recording):
        def put(self, key: str, value: Any, *, lifetime_s: float) -> None:
            super().put(key, value, lifetime_s=1e9)

    wall = [1e9]
    user = User(username="joe", realm="example", valid_until=wall[0] + 5)
    tokens = Tokens({"a": user})
    cache = Forever()
    identity = Identity({"r": Realm(authenticators=[tokens])}, cache, now=lambda: wall[0])
    identity.identify("Token a", address=HERE)
    wall[0] += 6
    tokens.answers = {}
    with pytest.raises(NotAuthenticated):
        identity.identify("Token a", address=HERE)


def test_a_user_with_secret_attributes_is_remembered_by_the_process_alone() -> None:
    now = [0.0]
    user = User(username="joe", realm="example", attributes={"ecmwf-apikey": "xyzzy"})
    tokens, cache = Tokens({"a": user}), Recording()
    realm = Realm(authenticators=[tokens])
    identity = Identity({"example": realm}, cache, clock=lambda: now[0])
    identity.identify("Token a", address=HERE)
    now[0] += LIFETIME_S - 0.1
    found = identity.recall("Token a")
    assert found is not None
    assert found.attributes["ecmwf-apikey"] == "xyzzy"
    assert "xyzzy" not in repr(found)
    now[0] += 0.2
    assert identity.recall("Token a") is None
    assert cache.seen == {}


def test_two_processes_leave_different_keys_for_the_same_credential() -> None:
    one, other = Recording(), Recording()
    for cache in (one, other):
        Identity.build(REALMS, cache).identify(basic("joe", "s3cret"), address=HERE)
    assert not one.seen.keys() & other.seen.keys()


def processes(cache: MemoryCache, *authenticators: Tokens, **options: Any) -> list[Identity]:
    """One for each authenticator, all with one key and one cache, as frontends with a shared cache are."""
    return [
        Identity(
            {"example": Realm(authenticators=(each,))}, cache, secret=lambda: b"k" * 32, **options
        )
        for each in authenticators
    ]


def test_processes_with_one_key_share_what_they_have_learnt() -> None:
    cache = Recording()
    asked, not_asked = Tokens({"a": JOE}), Tokens({})
    one, other = processes(cache, asked, not_asked)
    for each in (one, other):
        assert each.identify("Token a", address=HERE) == JOE
        with pytest.raises(NotAuthenticated):
            each.identify("Token b", address=HERE)
    assert asked.calls == ["a", "b"]
    assert not_asked.calls == []


def test_processes_with_one_key_and_other_sections_share_nothing() -> None:
    cache = Recording()
    for password in ("old", "new"):
        sections = changed(joe=password)
        identity = Identity.build(sections, cache, secret=lambda: b"k" * 32)
        assert identity.identify(basic("joe", password), address=HERE).username == "joe"
        for wrong in {"old", "new"} - {password}:
            with pytest.raises(NotAuthenticated):
                identity.identify(basic("joe", wrong), address=HERE)


def test_what_was_remembered_ends_whoever_puts_it_into_the_cache_again() -> None:
    now = [1e9]
    cache = Recording()
    tokens = Tokens({"a": JOE})
    (before,) = processes(cache, tokens, date=lambda: now[0])
    before.identify("Token a", address=HERE)
    ((key, kept),) = cache.seen.items()
    now[0] += 61
    cache.put(key, kept, lifetime_s=3600)
    tokens.answers = {}
    (after,) = processes(cache, tokens, date=lambda: now[0])
    with pytest.raises(NotAuthenticated):
        after.identify("Token a", address=HERE)


def test_roles_are_remembered_as_long_as_the_authorizer_says() -> None:
    # also where the login is not
    now = [1e9]
    tokens = Tokens({"a": JOE, "b": ANN})
    tokens.cacheable = False
    grants = Grants(lambda user: Grant(roles={user.username}), remembered_s=30)
    fresh = Grants(lambda user: Grant(attributes={"site": "reading"}))
    realm = Realm(authenticators=(tokens,), authorizers=(fresh, grants))
    identity = Identity({"example": realm}, Recording(), date=lambda: now[0])
    for _ in range(3):
        joe = identity.identify("Token a", address=HERE)
        assert (joe.roles, dict(joe.attributes)) == ({"default", "joe"}, {"site": "reading"})
        assert identity.identify("Token b", address=HERE).roles == {"default", "ann"}
    assert (grants.calls, fresh.calls) == (2, 6)
    now[0] += 30
    assert identity.identify("Token a", address=HERE).roles == {"default", "joe"}
    assert grants.calls == 3


def test_roles_are_remembered_for_users_with_the_same_roles_and_attributes_only() -> None:
    users = {
        "a": JOE,
        "b": User(username="joe", realm="example", roles=frozenset({"default", "admin"})),
        "c": User(username="joe", realm="example", attributes={"account": "x"}),
        "d": User(username="joe", realm="example", attributes={"account": "y"}),
    }
    grants = Grants(
        lambda user: Grant(roles={f"{len(user.roles)}{user.attributes.get('account')}"}),
        remembered_s=30,
    )
    identity = identity_of(Tokens(users), authorizers=(grants,))
    found = [identity.identify(f"Token {each}", address=HERE).roles for each in users]
    assert [min(roles) for roles in found] == ["1None", "2None", "1x", "1y"]


def test_secret_attributes_of_an_authorizer_are_not_remembered() -> None:
    cache = Recording()
    grants = Grants(lambda user: Grant(attributes={"ecmwf-apikey": "xyzzy"}), remembered_s=30)
    identity = identity_of(Tokens({"a": JOE}), authorizers=(grants,), cache=cache)
    for _ in range(2):
        assert identity.identify("Token a", address=HERE).attributes["ecmwf-apikey"] == "xyzzy"
    assert cache.seen == {}
    assert grants.calls == 2


def test_an_authorizer_that_is_away_is_not_remembered() -> None:
    answers: list[Any] = [BackendUnavailable("LDAP is away"), Grant(roles={"one"})]

    def answer(user: User) -> Grant:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    identity = identity_of(Tokens({"a": JOE}), authorizers=(Grants(answer, remembered_s=30),))
    with pytest.raises(BackendUnavailable):
        identity.identify("Token a", address=HERE)
    assert identity.identify("Token a", address=HERE).roles == {"default", "one"}


def test_who_can_write_the_cache_cannot_become_somebody_else() -> None:
    cache = Recording()
    identity = identity_of(Tokens({"a": JOE, "b": ANN}), cache=cache)
    identity.identify("Token a", address=HERE)
    joes_key, joes = next(iter(cache.seen.items()))
    identity.identify("Token b", address=HERE)
    anns = next(value for key, value in cache.seen.items() if key != joes_key)
    said = json.loads(joes["text"])
    said["value"]["user"]["roles"] = ["operator"]
    operator = json.dumps(said)
    forgeries: tuple[Any, ...] = (
        {**joes, "text": operator},
        {"text": operator, "signature": "é"},
        {"text": operator},
        anns,
        {"user": {"username": "root", "realm": "example", "roles": ["operator"]}},
        [],
        "text",
        7,
    )
    for forged in forgeries:
        cache.put(joes_key, forged, lifetime_s=60)
        assert identity.identify("Token a", address=HERE) == JOE


def test_there_is_one_challenge_per_scheme() -> None:
    assert Identity.build(REALMS, Recording()).challenges() == 'Basic realm="example"'
    both = identity_of(Tokens({}, scheme="First"), Tokens({}, scheme="Second"))
    assert both.challenges() == 'First realm="tokens", Second realm="tokens"'


def test_without_authenticators_nobody_can_log_in_and_that_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    identity = Identity({}, Recording())
    assert "nobody can log in" in caplog.text
    assert identity.challenges() == ""
    with pytest.raises(NotAuthenticated):
        identity.identify(basic("joe", "s3cret"), address=HERE)


def test_types_that_are_not_here_are_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    realm = RealmSection(
        authenticators={
            "sso": {"type": "no-such-type", "client_secret": "xyzzy"},
            **REALMS["example"].authenticators,
        },
        authorizers={"ldap": {"type": "no-such-type"}},
    )
    identity = Identity.build({"example": realm}, Recording())
    assert identity.identify(basic("joe", "s3cret"), address=HERE).roles == {"default"}
    sections = [vars(record)["section"] for record in caplog.records]
    assert sections == [
        "authentication.example.authenticators.sso",
        "authentication.example.authorizers.ldap",
    ]
    assert "xyzzy" not in str([vars(record) for record in caplog.records])


@pytest.mark.parametrize("options", [{}, {"type": None}, {"type": 7}, {"type": ""}])
def test_a_back_end_without_a_type_is_refused_by_its_place(options: Mapping[str, Any]) -> None:
    realm = RealmSection(authorizers={"mine": options})
    with pytest.raises(ConfigurationError, match=r"authentication\.r\.authorizers\.mine\.type"):
        Identity.build({"r": realm}, Recording())


def test_a_wrong_option_is_named_by_its_place_in_the_file() -> None:
    realm = RealmSection(authenticators={"mine": {"type": "plain", "users": [{"uid": "joe"}]}})
    with pytest.raises(ConfigurationError) as caught:
        Identity.build({"r": realm}, Recording())
    assert "authentication.r.authenticators.mine.users[0].password" in str(caught.value)


def test_after_some_wrong_passwords_a_login_from_there_is_slowed_and_no_other() -> None:
    identity = Identity.build(REALMS, Recording())
    for number in range(FREE_GUESSES):
        header = basic("joe", f"guess{number}")
        assert identity.delay_s(header, HERE) == 0.0
        with pytest.raises(NotAuthenticated):
            identity.identify(header, address=HERE)
    right = basic("joe", "s3cret")
    assert identity.delay_s(right, "198.51.100.1") == 0.0
    assert identity.delay_s(basic("ann", "s3cret"), HERE) == 0.0
    assert identity.delay_s(right, HERE) > 0.0
    assert identity.identify(right, address=HERE).username == "joe"
    assert identity.delay_s(right, HERE) == 0.0
    assert identity.delay_s(basic("joe", "one more"), HERE) > 0.0


def test_guesses_that_are_sent_at_once_gain_nothing() -> None:
    identity = Identity.build(REALMS, Recording())
    undelayed: list[int] = []

    def guess(number: int) -> None:
        try:
            if identity.delay_s(basic("joe", f"guess{number}"), HERE) == 0.0:
                undelayed.append(number)
        except NotAuthenticated:
            pass

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(undelayed) == FREE_GUESSES


def test_many_guesses_in_one_header_are_as_many_guesses() -> None:
    identity = Identity.build(REALMS, Recording())
    assert identity.delay_s(", ".join(basic("joe", str(n)) for n in range(7)), HERE) > 0.0


def test_credentials_that_name_nobody_are_never_slowed() -> None:
    identity = identity_of(Tokens({}))
    for number in range(20):
        assert identity.delay_s(f"Token {number}", HERE) == 0.0


def test_credentials_that_name_nobody_are_proven_too() -> None:
    tokens = Tokens({"a": JOE})
    identity = identity_of(tokens)
    assert not identity.is_proven("Token a")
    identity.identify("Token a", address=HERE)
    assert identity.is_proven("Token a")
    assert not identity.is_proven("Token b")


def test_an_outage_slows_nobody() -> None:
    answers: dict[str, User | Exception] = {
        str(number): BackendUnavailable("away") for number in range(20)
    }
    identity = identity_of(Tokens(answers, name="joe"))
    for number in range(20):
        assert identity.delay_s(f"Token {number}", HERE) == 0.0
        with pytest.raises(BackendUnavailable):
            identity.identify(f"Token {number}", address=HERE)


def test_no_credential_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    identity = Identity.build(REALMS, Recording())
    header = basic("joe", "wr0ng-xyzzy")
    with pytest.raises(NotAuthenticated):
        identity.identify(header, address=HERE)
    everything = str([vars(record) for record in caplog.records])
    assert HERE in everything
    assert not any(secret in everything for secret in ("wr0ng", header[6:]))


def changed(**users: str) -> Mapping[str, RealmSection]:
    """The realm ``example`` with other users and passwords."""
    listed = [{"uid": uid, "password": password} for uid, password in users.items()]
    return {"example": RealmSection(authenticators={"l": {"type": "plain", "users": listed}})}


def test_what_was_remembered_of_other_users_lets_nobody_in() -> None:
    cache = Recording()
    before = Identity.build(changed(joe="old", ann="anns"), cache)
    for uid, password in (("joe", "old"), ("ann", "anns")):
        before.identify(basic(uid, password), address=HERE)
    with pytest.raises(NotAuthenticated):
        before.identify(basic("joe", "new"), address=HERE)
    assert len(cache.seen) == 3
    after = Identity.build(changed(joe="new"), cache, before=before)
    assert after.identify(basic("joe", "new"), address=HERE).username == "joe"
    for uid, password in (("joe", "old"), ("ann", "anns")):
        with pytest.raises(NotAuthenticated):
            after.identify(basic(uid, password), address=HERE)


def test_a_role_that_was_taken_away_is_not_remembered() -> None:
    cache = Recording()
    before = Identity.build(REALMS, cache)
    assert "operator" in before.identify(basic("joe", "s3cret"), address=HERE).roles
    without = RealmSection(authenticators=REALMS["example"].authenticators)
    after = Identity.build({**REALMS, "example": without}, cache, before=before)
    assert after.identify(basic("joe", "s3cret"), address=HERE).roles == {"default"}


def test_guesses_count_on_over_a_change() -> None:
    before = Identity.build(changed(joe="old"), Recording())
    for number in range(FREE_GUESSES):
        assert before.delay_s(basic("joe", f"guess {number}"), HERE) == 0
    after = Identity.build(changed(joe="new"), Recording(), before=before)
    assert after.delay_s(basic("joe", "another guess"), HERE) > 0


def test_back_ends_that_are_as_they_were_are_kept_with_what_they_have_learnt() -> None:
    before = Identity.build(REALMS, Recording())
    other_roles = RealmSection(authenticators=REALMS["example"].authenticators)
    after = Identity.build(
        {"example": other_roles, "other": changed(joe="x")["example"]}, Recording(), before=before
    )
    kept, made = after._realms["example"], after._realms["other"]
    assert kept.authenticators == before._realms["example"].authenticators
    assert kept.authorizers == ()
    assert made.authenticators != before._realms["other"].authenticators
