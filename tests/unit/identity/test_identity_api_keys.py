"""API keys: their shape, whom they act for, and until when."""

import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from test_identity_identify import HERE, Grants, Recording, Tokens, basic

from polytope_server.authentication import Authenticator
from polytope_server.authentication.api_keys import (
    ApiKeyAuthenticator,
    digest,
    is_key,
    key_in,
    new_key,
)
from polytope_server.authentication.guessing import FREE_GUESSES, FREE_GUESSES_OF_ADDRESS
from polytope_server.authentication.header import Credential
from polytope_server.authentication.identity import KEY_KNOWN_S, Identity, Realm
from polytope_server.authorization import Authorizer, Grant
from polytope_server.config.embedded import SqliteStoreSection
from polytope_server.config.identity import RealmSection
from polytope_server.errors import BackendUnavailable, NotAuthenticated, NotAuthorized
from polytope_server.request_store import ApiKey
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.user import User

JOE = User(username="joe", realm="example")


@pytest.fixture
def store(tmp_path: Path) -> SqliteRequestStore:
    return SqliteRequestStore(SqliteStoreSection(path=tmp_path / "r.sqlite"))


def made(store: SqliteRequestStore, user: User = JOE, *, lifetime_s: float = 60.0) -> str:
    key = new_key()
    kept = ApiKey(id=str(uuid.uuid4()), digest=digest(key), user=user)
    store.add_key(kept, lifetime_s=lifetime_s, max_keys=100)
    return key


def realms(*users: str, roles: Mapping[str, list[str]] | None = None) -> dict[str, RealmSection]:
    listed = [
        {
            "uid": uid,
            "password": "s3cret",
            "attributes": {"ecmwf-email": f"{uid}@e.org", "ecmwf-apikey": "xyzzy"},
        }
        for uid in users
    ]
    return {
        "example": RealmSection(
            authenticators={"local": {"type": "plain", "users": listed}},
            authorizers={"local": {"type": "plain", "roles": roles or {}}},
        )
    }


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def identity_of(
    store: SqliteRequestStore,
    *authenticators: Authenticator,
    authorizers: tuple[Authorizer, ...] = (),
    clock: Clock | None = None,
    cache: Recording | None = None,
) -> Identity:
    realm = Realm(authenticators=authenticators or (Tokens({}),), authorizers=authorizers)
    return Identity(
        {"example": realm},
        cache or Recording(),
        clock=clock or time.monotonic,
        keys=ApiKeyAuthenticator(store),
    )


# --- the key itself


def test_keys_are_long_random_and_safe_wherever_a_token_may_stand() -> None:
    keys = {new_key() for _ in range(200)}
    assert len(keys) == 200
    for key in keys:
        assert re.fullmatch(r"polytope_[0-9A-Za-z]{49}", key)
        assert is_key(key)
    # each of the random characters takes many values, up to the first, which carries the top bits
    assert all(len({key[place] for key in keys}) > 20 for place in range(10, 52))
    assert len({key[9] for key in keys}) > 5


def test_what_is_not_whole_is_no_key() -> None:
    key = new_key()
    for wrong in (
        key[:-1],
        key + "0",
        key.upper(),
        "Polytope_" + key[9:],
        key[9:],
        key[:20] + ("0" if key[20] != "0" else "1") + key[21:],
        key[:-1] + ("0" if key[-1] != "0" else "1"),
        f"{key}\n",
        key.replace(key[15], "é"),
        "",
    ):
        assert not is_key(wrong), wrong


def test_a_key_is_found_in_what_clients_send() -> None:
    key = new_key()
    assert key_in(Credential("Bearer", key)) == key
    assert key_in(Credential("bEARER", key)) == key
    assert key_in(Credential("EmailKey", f"joe@e.org:{key}")) == key
    assert key_in(Credential("Basic", key)) is None
    assert key_in(Credential("Federation", f"{key}:joe:example")) is None
    assert key_in(Credential("Bearer", "eyJhbGciOi.J9.x")) is None
    assert key_in(Credential("EmailKey", "joe@e.org:0123456789abcdef")) is None


# --- whom it acts for


def test_a_key_acts_for_its_user_with_the_roles_of_today(store: SqliteRequestStore) -> None:
    user = User(
        username="joe",
        realm="example",
        roles=frozenset({"default", "of the past"}),
        attributes=MappingProxyType({"ecmwf-email": "j@e.org"}),
    )
    header = f"Bearer {made(store, user)}"
    for roles, expected in (({"operator": ["joe"]}, {"default", "operator"}), ({}, {"default"})):
        identity = Identity.build(realms("joe", roles=roles), Recording(), keys=store)
        found = identity.identify(header, address=HERE)
        assert (found.username, found.realm, found.id) == ("joe", "example", user.id)
        assert found.roles == expected
        assert dict(found.attributes) == {"ecmwf-email": "j@e.org"}


def test_a_key_with_an_address_before_it_is_the_same(store: SqliteRequestStore) -> None:
    identity = identity_of(store)
    found = identity.identify(f"EmailKey joe@e.org:{made(store)}", address=HERE)
    assert found.username == "joe"


def test_no_other_authenticator_sees_a_key(store: SqliteRequestStore) -> None:
    bearer, email = Tokens({}, scheme="Bearer"), Tokens({}, scheme="EmailKey")
    identity = identity_of(store, bearer, email)
    key, unknown = made(store), new_key()
    identity.identify(f"Bearer {key}", address=HERE)
    for header in (f"Bearer {unknown}", f"EmailKey j@e.org:{unknown}"):
        with pytest.raises(NotAuthenticated):
            identity.identify(header, address=HERE)
    without = Identity({"example": Realm(authenticators=(bearer, email))}, Recording())
    with pytest.raises(NotAuthenticated):
        without.identify(f"Bearer {key}", address=HERE)
    assert (bearer.calls, email.calls) == ([], [])


def test_other_tokens_still_go_to_those_who_know_them(store: SqliteRequestStore) -> None:
    bearer = Tokens({"a.b.c": JOE}, scheme="Bearer")
    identity = identity_of(store, bearer)
    assert identity.identify("Bearer a.b.c", address=HERE).username == "joe"
    with pytest.raises(NotAuthenticated):
        identity.identify("Bearer d.e.f", address=HERE)
    assert [scheme.lower() for scheme in identity.schemes] == ["bearer"]
    assert identity.challenges().count("Bearer") == 1


def test_a_key_that_is_none_any_more_does_not_keep_a_password_out(
    store: SqliteRequestStore,
) -> None:
    identity = Identity.build(realms("joe"), Recording(), keys=store)
    header = f"Bearer {new_key()}, {basic('joe', 's3cret')}"
    assert identity.identify(header, address=HERE).username == "joe"


@pytest.mark.parametrize(
    "sections",
    [
        realms("ann"),
        {"other": realms("joe")["example"]},
        {"example": RealmSection(authorizers=realms("joe")["example"].authorizers)},
        {},
    ],
    ids=["user gone", "realm gone", "authenticators gone", "nothing left"],
)
def test_who_is_no_user_any_more_has_no_key(
    store: SqliteRequestStore, sections: dict[str, RealmSection]
) -> None:
    header = f"Bearer {made(store)}"
    before = Identity.build(realms("joe", "ann"), Recording(), keys=store)
    assert before.identify(header, address=HERE).username == "joe"
    after = Identity.build(sections, Recording(), keys=store, before=before)
    assert after.recall(header) is None
    with pytest.raises(NotAuthenticated):
        after.identify(header, address=HERE)


def test_where_somebody_else_may_know_the_user_the_key_stays_good(
    store: SqliteRequestStore,
) -> None:
    (section,) = realms("ann").values()
    plain = Identity.build({"example": section}, Recording())
    (authenticator,) = plain._realms["example"].authenticators
    identity = identity_of(store, authenticator, Tokens({}))
    assert identity.identify(f"Bearer {made(store)}", address=HERE).username == "joe"


# --- until when


def test_a_revoked_key_is_refused_at_once_here_and_within_two_seconds_elsewhere(
    store: SqliteRequestStore,
) -> None:
    cache, clock = Recording(), Clock()
    here = identity_of(store, clock=clock, cache=cache)
    elsewhere = identity_of(store, clock=clock, cache=cache)
    header = f"Bearer {made(store)}"
    for identity in (here, elsewhere):
        identity.identify(header, address=HERE)
        assert identity.recall(header) == JOE
    (key,) = store.keys_of(JOE.id)
    store.remove_key(key.id)
    here.forget(JOE.id)
    assert here.recall(header) is None
    clock.now += KEY_KNOWN_S
    assert elsewhere.recall(header) is None
    for identity in (here, elsewhere):
        with pytest.raises(NotAuthenticated):
            identity.identify(header, address=HERE)
    assert KEY_KNOWN_S <= 2


def test_forgetting_one_user_leaves_others(store: SqliteRequestStore) -> None:
    ann = User(username="ann", realm="example")
    identity = identity_of(store)
    headers = [f"Bearer {made(store, user)}" for user in (JOE, ann)]
    for header in headers:
        identity.identify(header, address=HERE)
    identity.forget(JOE.id)
    assert [identity.recall(header) for header in headers] == [None, ann]


def test_an_expired_key_is_refused(store: SqliteRequestStore) -> None:
    identity = identity_of(store, clock=Clock())  # which does not move on
    key = made(store, lifetime_s=0.2)
    deadline = time.monotonic() + 10
    while store.key(digest(key)) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(NotAuthenticated):
        identity.identify(f"Bearer {key}", address=HERE)


def test_a_key_is_never_known_for_longer_than_it_lasts(store: SqliteRequestStore) -> None:
    clock = Clock()
    identity = identity_of(store, clock=clock)
    short, long = (f"Bearer {made(store, lifetime_s=lifetime_s)}" for lifetime_s in (1, 60))
    for header in (long, short):
        identity.identify(header, address=HERE)
        assert identity.recall(header) == JOE
    clock.now += 1
    assert identity.recall(short) is None, "whatever the other key has left in the cache"
    assert identity.recall(long) == JOE


def test_roles_are_asked_for_once_a_minute_and_the_key_is_looked_up_each_time(
    store: SqliteRequestStore,
) -> None:
    grants = Grants(lambda user: Grant(roles=frozenset({"staff"})))
    cache, clock = Recording(), Clock()
    identity = identity_of(store, authorizers=(grants,), cache=cache, clock=clock)
    keys = [made(store) for _ in range(2)]
    for key in keys:
        for _ in range(2):
            clock.now += KEY_KNOWN_S
            found = identity.identify(f"Bearer {key}", address=HERE)
            assert found.roles == {"default", "staff"}
    assert grants.calls == 1
    seen = repr(cache.seen)
    assert not any(key in seen or digest(key) in seen for key in keys)


def test_a_user_with_secrets_out_of_authorizers_is_in_no_cache(
    store: SqliteRequestStore,
) -> None:
    grants = Grants(lambda user: Grant(attributes={"ecmwf-apikey": "xyzzy"}))
    cache = Recording()
    identity = identity_of(store, authorizers=(grants,), cache=cache)
    header = f"Bearer {made(store)}"
    for _ in range(2):
        assert identity.identify(header, address=HERE).attributes["ecmwf-apikey"] == "xyzzy"
    assert grants.calls == 2
    assert identity.recall(header) == JOE
    assert cache.seen == {}


class Away:
    """A store that does not answer."""

    def key(self, digest: str) -> ApiKey | None:
        raise BackendUnavailable("gone")


def test_a_store_that_is_away_is_not_a_wrong_key() -> None:
    store: Any = Away()
    realm = Realm(authenticators=(Tokens({}),))
    identity = Identity({"example": realm}, Recording(), keys=ApiKeyAuthenticator(store))
    with pytest.raises(BackendUnavailable):
        identity.identify(f"Bearer {new_key()}", address=HERE)
    # what is no key of ours needs no store
    with pytest.raises(NotAuthenticated):
        identity.identify("Bearer polytope_nonsense", address=HERE)


def test_who_guesses_keys_is_slowed_and_who_has_one_is_not(store: SqliteRequestStore) -> None:
    identity = identity_of(store)
    good = f"Bearer {made(store)}"
    assert identity.delay_s(good, HERE) == 0
    identity.identify(good, address=HERE)
    delays = [
        identity.delay_s(f"Bearer {new_key()}", HERE) for _ in range(FREE_GUESSES_OF_ADDRESS + 2)
    ]
    assert delays[0] == 0
    assert delays[-1] > 0
    assert identity.is_proven(good)
    assert identity.delay_s(good, HERE) == 0


def test_a_key_is_no_cover_for_guessing_passwords(store: SqliteRequestStore) -> None:
    identity = Identity.build(realms("joe"), Recording(), keys=store)
    key = made(store)
    delays = []
    for number in range(FREE_GUESSES + 2):
        header = f"Bearer {key}, {basic('joe', f'guess {number}')}"
        assert identity.recall(header) is None
        assert not identity.is_proven(header)
        delays.append(identity.delay_s(header, HERE))
        identity.identify(header, address=HERE)
        with pytest.raises(NotAuthorized):
            identity.identify_for_key(header, address=HERE)
    assert delays[0] == 0
    assert delays[-1] > 0


# --- making one


def test_a_key_is_made_for_a_user_without_roles_and_secrets(store: SqliteRequestStore) -> None:
    identity = Identity.build(realms("joe", roles={"operator": ["joe"]}), Recording(), keys=store)
    found = identity.identify_for_key(basic("joe", "s3cret"), address=HERE)
    assert (found.username, found.realm, found.roles) == ("joe", "example", {"default"})
    assert dict(found.attributes) == {"ecmwf-email": "joe@e.org"}


def test_a_key_cannot_make_a_key(store: SqliteRequestStore) -> None:
    identity = Identity.build(realms("joe"), Recording(), keys=store)
    key = made(store)
    for header in (
        f"Bearer {key}",
        f"EmailKey joe@e.org:{key}",
        f"Bearer {key}, {basic('joe', 'wrong')}",
    ):
        with pytest.raises(NotAuthorized, match="cannot be used to make another"):
            identity.identify_for_key(header, address=HERE)
    both = f"Bearer {key}, {basic('joe', 's3cret')}"
    assert identity.identify_for_key(both, address=HERE).username == "joe"


def test_a_password_is_asked_for_anew(store: SqliteRequestStore) -> None:
    token = Tokens({"t": JOE})
    identity = identity_of(store, token)
    identity.identify("Token t", address=HERE)
    token.answers = {}
    assert identity.identify("Token t", address=HERE) == JOE, "remembered"
    with pytest.raises(NotAuthenticated):
        identity.identify_for_key("Token t", address=HERE)


def test_no_key_for_users_of_others(store: SqliteRequestStore) -> None:
    stranger = User(username="joe", realm="elsewhere")
    peers = Tokens({"p": JOE}, scheme="Federation")
    identity = identity_of(store, Tokens({"t": stranger}), peers)
    for header in ("Token t", "Federation p"):
        with pytest.raises(NotAuthorized, match="users of its own"):
            identity.identify_for_key(header, address=HERE)
