"""From the Authorization header to a user with roles: all realms, all credentials, one answer."""

import hashlib
import json
import logging
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from types import MappingProxyType
from typing import Any, Final, Self

from polytope_server.authentication import Authenticator
from polytope_server.authentication.api_keys import ApiKeyAuthenticator, key_in
from polytope_server.authentication.guessing import (
    FREE_GUESSES,
    FREE_GUESSES_OF_ADDRESS,
    Guesses,
    neighbourhood,
)
from polytope_server.authentication.header import Credential, parse
from polytope_server.authentication.sealed import SealedCache, Secret, keyed_digest
from polytope_server.authorization import Authorizer, Grant
from polytope_server.caching import Cache
from polytope_server.config.identity import RealmSection
from polytope_server.config.secrecy import looks_secret
from polytope_server.errors import (
    BackendUnavailable,
    ConfigurationError,
    NotAuthenticated,
    NotAuthorized,
)
from polytope_server.observability.backends import observed
from polytope_server.observability.metrics import Metrics
from polytope_server.registry import backends, load_backend
from polytope_server.request_store import RequestStore
from polytope_server.user import User

logger = logging.getLogger(__name__)

EVERYBODY: Final = "default"
"""The role that every authenticated user has."""
LIFETIME_S: Final = 60.0
KNOWN_S: Final = 10.0
"""How long a process goes by what it has just learnt of a user, without a look into the cache."""
KEY_KNOWN_S: Final = 2.0
"""The same for who came with an API key: so long at most a key is good that somebody else has revoked."""
REFUSAL_LIFETIME_S: Final = 5.0

LONGEST_NAME: Final = 1024
"""Of a user, a realm or a role; what identity services say is stored with each request."""
_NOT_IN_A_NAME: Final = re.compile("[\x00\r\n\ud800-\udfff]")
"""What no store, header or line takes; an identity service may say it all the same, or hand it on."""

# Clients crash on a refusal whose text says that something has run out, so none here does.
_MAX_KNOWN: Final = 8192
_REFUSED: Final = "The credentials were not accepted."
_NO_KEY_FOR_A_KEY: Final = (
    "An API key cannot be used to make another one; log in with the credentials of your account."
)
_NOWHERE: Final = b""
"""Stands for where a credential that names nobody is counted."""
_NOT_A_NAME: Final = (
    "The name of this account cannot be used here: it is too long, or no plain text."
)
_SPEAKS_FOR_OTHERS: Final = "federation"
"""The scheme of servers that speak for users of theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Realm:
    """Who tells the users of one realm apart, and who says what they may do; each in order."""

    authenticators: Sequence[Authenticator] = ()
    authorizers: Sequence[Authorizer] = ()


class Identity:
    """Identifies users by credentials of any scheme of any realm. Safe between threads.

    Answers are remembered for a short while, in a cache of which only that is believed which we, or those
    who share our secret, have put there; see `SealedCache`. A user with secret attributes is remembered by
    this process alone. Nobody is remembered for longer than what they came with is good.

    API keys are looked up in the store each time, or every other second: only what the authorizers say of
    their users is remembered as above. A text that is a key of ours is shown to no other authenticator.

    Args:
        keys: where API keys are; None if they are not to be accepted.
        secret: processes with the same one and the same sections know what the others have remembered.
        sections: what the realms were made of: other sections find nothing that these have remembered.
        before: the one whose place this takes; who has guessed too often there has done so here.
    """

    def __init__(
        self,
        realms: Mapping[str, Realm],
        cache: Cache,
        *,
        lifetime_s: float = LIFETIME_S,
        refusal_lifetime_s: float = REFUSAL_LIFETIME_S,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sections: Mapping[str, RealmSection] | None = None,
        before: "Identity | None" = None,
        keys: Authenticator | None = None,
        secret: Secret | None = None,
        date: Callable[[], float] = time.time,
    ) -> None:
        self._realms = realms
        self._sections = sections or {}
        self._remembered: SealedCache = (
            before._remembered if before else SealedCache(cache, secret=secret, date=date)
        )
        self._lifetime_s = lifetime_s
        self._refusal_lifetime_s = refusal_lifetime_s
        self._key: bytes = before._key if before else secrets.token_bytes(32)
        self._guesses: Guesses = before._guesses if before else Guesses(clock=clock)
        text = json.dumps({name: realm.written() for name, realm in self._sections.items()})
        self._known: OrderedDict[bytes, tuple[float, User]] = OrderedDict()
        self._clock, self._now = clock, now
        self._lock = Lock()
        self._fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._by_scheme: dict[str, list[Authenticator]] = {}
        for realm in realms.values():
            for each in realm.authenticators:
                self._by_scheme.setdefault(each.scheme.lower(), []).append(each)
        if not self._by_scheme:
            logger.warning("No authenticator is configured: nobody can log in")
        self._keys = keys
        if keys is not None:
            self._by_scheme.setdefault(keys.scheme.lower(), []).append(keys)

    @classmethod
    def build(
        cls,
        sections: Mapping[str, RealmSection],
        cache: Cache,
        *,
        before: Self | None = None,
        metrics: Metrics | None = None,
        keys: RequestStore | None = None,
        secret: Secret | None = None,
    ) -> Self:
        """From the configuration. Back-ends of types that are not here are left out, with a warning.

        What is as it was *before* goes on with the back-ends that it had there, and what they have learnt;
        the cache and the secret are those of *before*.

        Args:
            metrics: told of all calls of the back-ends.
            keys: the store whose API keys are accepted, if any are.

        Raises:
            ConfigurationError: a back-end has no type, its library is missing, or an option is wrong.
        """
        opened = {}
        for name, section in sections.items():
            where = f"authentication.{name}"
            known = before._sections.get(name) if before else None
            authenticators, authorizers = known.written() if known else ("", "")
            realm = before._realms[name] if before and known else Realm()
            if section.written()[0] != authenticators:
                made = _open(
                    "authentication",
                    section.authenticators,
                    where=f"{where}.authenticators",
                    metrics=metrics,
                    realm=name,
                )
                realm = replace(realm, authenticators=tuple(made))
            if section.written()[1] != authorizers:
                made = _open(
                    "authorization",
                    section.authorizers,
                    where=f"{where}.authorizers",
                    metrics=metrics,
                )
                realm = replace(realm, authorizers=tuple(made))
            opened[name] = realm
        authenticator = ApiKeyAuthenticator(keys) if keys is not None else None
        if authenticator is not None and metrics is not None:
            authenticator = observed(
                authenticator, abstraction="authentication", name="api-keys", metrics=metrics
            )
        return cls(
            opened, cache, sections=sections, before=before, keys=authenticator, secret=secret
        )

    @property
    def schemes(self) -> Sequence[str]:
        """The words of the Authorization header that somebody here reads."""
        return [each[0].scheme for each in self._by_scheme.values()]

    def challenges(self) -> str:
        """The value of ``WWW-Authenticate``: one challenge per scheme; empty if there is none."""
        return ", ".join(each[0].challenge() for each in self._by_scheme.values())

    def delay_s(self, authorization: str | None, address: str) -> float:
        """How long to wait before `identify` is called with these credentials; mostly 0.

        Never blocks, so the event loop may ask. Not zero after failed logins of the same user from the same
        address, or of very many users from there. The wait is at most `guessing.LONGEST_WAIT_S`.

        Raises:
            NotAuthenticated: too many guesses are waiting already, or the header is not acceptable.
        """
        return max(
            (
                self._guesses.wait_s(place, self._guess(credential), free=free)
                for credential in parse(authorization)
                for place, free in self._places(address, credential)
            ),
            default=0.0,
        )

    def recall(self, authorization: str | None) -> User | None:
        """Who has just been identified by this header here. Never blocks, and costs next to nothing."""
        if authorization is None:
            return None
        key = self._digest("known", authorization)
        with self._lock:
            until, user = self._known.get(key, (0.0, None))
            return user if self._clock() < until else None

    def is_proven(self, authorization: str | None) -> bool:
        """Whether all of these credentials were accepted lately: then `identify` is quick. Never blocks.

        Raises:
            NotAuthenticated: the header is not acceptable.
        """
        credentials = parse(authorization)
        return all(self._guesses.is_proven(self._guess(credential)) for credential in credentials)

    def identify(self, authorization: str | None, *, address: str) -> User:
        """Who sends this header; of several credentials, the first that is accepted counts. Blocks.

        Raises:
            NotAuthenticated: no credentials, or none that were accepted.
            NotAuthorized: they are of somebody whose name cannot be used.
            BackendUnavailable: none was accepted, and somebody who might have done so is away; or
                an authorizer of the user's realm is.
        """
        credentials = parse(authorization)
        if not credentials:
            raise NotAuthenticated(self._wanted())
        parts = (f"{c.scheme.lower()} {c.text}" for c in credentials)
        place = ("login", self._fingerprint, *parts)
        remembered = self._remembered.get(*place)
        if remembered is not None:
            if remembered["user"] is None:
                raise NotAuthenticated(_REFUSED)
            user = _user(remembered["user"])
            if self._rest_s(user, self._lifetime_s) > 0:
                self._know(authorization, user)
                return user
        found = self._authenticate(credentials, address)
        if found is None:
            logger.info("Credentials were refused", extra={"address": address})
            self._remembered.put(*place, value={"user": None}, lifetime_s=self._refusal_lifetime_s)
            raise NotAuthenticated(_REFUSED)
        user, authenticator = found
        if authenticator is self._keys:
            user = self._with_remembered_grants(user)
            self._know(authorization, user, lifetime_s=KEY_KNOWN_S)
            return user
        user = self._with_grants(user)
        if not authenticator.cacheable:
            return user
        if _has_secrets(user.attributes):
            self._know(authorization, user, lifetime_s=self._lifetime_s)
        elif (rest_s := self._rest_s(user, self._lifetime_s)) > 0:
            value = {"user": {**_whole(user), "valid_until": user.valid_until}}
            self._remembered.put(*place, value=value, lifetime_s=rest_s)
            self._know(authorization, user)
        return user

    def identify_for_key(self, authorization: str | None, *, address: str) -> User:
        """Who sends this header, for whom an API key may be made: asked anew, and as a key acts for them.

        That is without roles, which are found out at each login, and without attributes that are secret or
        come from authorizers. Blocks.

        Raises:
            NotAuthenticated: see `identify`.
            NotAuthorized: see `identify`; or only an API key says who it is; or it is a user of nobody here.
            BackendUnavailable: see `identify`.
        """
        credentials = parse(authorization)
        others = [credential for credential in credentials if key_in(credential) is None]
        found = self._authenticate(others, address)
        if found is None:
            if len(others) < len(credentials):
                raise NotAuthorized(_NO_KEY_FOR_A_KEY)
            raise NotAuthenticated(_REFUSED)
        user, authenticator = found
        if not self._is_known(user) or authenticator.scheme.lower() == _SPEAKS_FOR_OTHERS:
            raise NotAuthorized("This server has API keys only for users of its own.")
        public = {name: text for name, text in user.attributes.items() if not looks_secret(name)}
        return User(username=user.username, realm=user.realm, attributes=MappingProxyType(public))

    def forget(self, user_id: str) -> None:
        """Look again who this user is when they come next: a key of theirs is none any more."""
        with self._lock:
            for key in [key for key, (_, user) in self._known.items() if user.id == user_id]:
                del self._known[key]

    def _is_known(self, user: User) -> bool:
        """Whether a user may still be one: their realm is there, and not all who could know say no."""
        realm = self._realms.get(user.realm, Realm())
        return any(_may_know(each, user.username) for each in realm.authenticators)

    def _rest_s(self, user: User, lifetime_s: float) -> float:
        """How long they may be remembered: so long, or as long as what they came with is good."""
        if user.valid_until is None:
            return lifetime_s
        return min(lifetime_s, user.valid_until - self._now())

    def _know(self, authorization: str | None, user: User, *, lifetime_s: float = KNOWN_S) -> None:
        with self._lock:
            until = self._clock() + self._rest_s(user, min(lifetime_s, self._lifetime_s))
            self._known[self._digest("known", authorization or "")] = (until, user)
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)

    def _wanted(self) -> str:
        schemes = ", ".join(self.schemes) or "none"
        return f"An Authorization header with credentials is needed; accepted schemes: {schemes}."

    def _authenticate(
        self, credentials: Sequence[Credential], address: str
    ) -> tuple[User, Authenticator] | None:
        """The user and who knew them; None if all who could tell said no."""
        away: BackendUnavailable | None = None
        for credential in credentials:
            guess = self._guess(credential)
            places = [place for place, _ in self._places(address, credential)]
            judged = True
            for each in self._authenticators(credential):
                try:
                    user = each.authenticate(credential.text)
                except NotAuthenticated:
                    continue
                except BackendUnavailable as exc:
                    logger.warning(
                        "An authenticator is away", extra={"scheme": each.scheme}, exc_info=exc
                    )
                    away, judged = exc, False
                    continue
                if each is self._keys and not self._is_known(user):
                    logger.info("An API key of somebody who is no user any more was refused")
                    continue
                for place in places or [_NOWHERE]:
                    self._guesses.was_right(place, guess)
                return _usable(user), each
            if judged:
                self._guesses.was_wrong(guess)
            else:
                for place in places:
                    self._guesses.was_not_judged(place, guess)
        if away is not None:
            raise BackendUnavailable("Credentials cannot be checked at present.") from away
        return None

    def _with_grants(self, user: User) -> User:
        """The user with what each authorizer adds; each sees what those before it have added."""
        user = replace(user, roles=user.roles | {EVERYBODY})
        realm = self._realms.get(user.realm, Realm())
        for number, each in enumerate(realm.authorizers):
            grant = self._grant(each, user, number=number)
            user = replace(
                user,
                roles=user.roles | grant.roles,
                attributes=MappingProxyType({**user.attributes, **grant.attributes}),
            )
        return user

    def _with_remembered_grants(self, user: User) -> User:
        """The same, for the user of a key, whose roles need not be asked for again with each request."""
        place = ("grants", self._fingerprint, json.dumps(_whole(user), sort_keys=True))
        remembered = self._remembered.get(*place)
        if remembered is not None:
            # another key of the same user may be good for longer, or not for so long
            return replace(_user(remembered), valid_until=user.valid_until)
        user = self._with_grants(user)
        if not _has_secrets(user.attributes):
            self._remembered.put(*place, value=_whole(user), lifetime_s=self._lifetime_s)
        return user

    def _grant(self, authorizer: Authorizer, user: User, *, number: int) -> Grant:
        """What the authorizer of this number in its realm says, or has said lately."""
        if not authorizer.remembered_s:
            return authorizer.grant(user)
        asked = json.dumps(_whole(user), sort_keys=True)
        place = ("grant", self._fingerprint, str(number), asked)
        remembered = self._remembered.get(*place)
        if remembered is not None:
            return Grant(
                roles=frozenset(remembered["roles"]),
                attributes=MappingProxyType(remembered["attributes"]),
            )
        grant = authorizer.grant(user)
        if not _has_secrets(grant.attributes):
            value = {"roles": sorted(grant.roles), "attributes": dict(grant.attributes)}
            self._remembered.put(*place, value=value, lifetime_s=authorizer.remembered_s)
        return grant

    def _authenticators(self, credential: Credential) -> Sequence[Authenticator]:
        if key_in(credential) is not None:
            return () if self._keys is None else (self._keys,)
        return self._by_scheme.get(credential.scheme.lower(), ())

    def _login_names(self, credential: Credential) -> set[str]:
        names = {each.login_name(credential.text) for each in self._authenticators(credential)}
        return names - {""}

    def _places(self, address: str, credential: Credential) -> Iterator[tuple[bytes, int]]:
        """Where a guess is counted, and how many are free there; nowhere if it says no name."""
        where, scheme = neighbourhood(address), credential.scheme.lower()
        names = self._login_names(credential)
        for name in names:
            yield self._digest("place", where, scheme, name), FREE_GUESSES
        if names:
            yield self._digest("address", where), FREE_GUESSES_OF_ADDRESS

    def _guess(self, credential: Credential) -> bytes:
        return self._digest("guess", credential.scheme.lower(), credential.text)

    def _digest(self, *parts: str) -> bytes:
        return keyed_digest(self._key, *parts)


def _usable(user: User) -> User:
    """The user, without roles that nobody could be given.

    Raises:
        NotAuthorized: who it is cannot be said.
    """
    if not (_is_name(user.username) and _is_name(user.realm)):
        logger.warning("A user's name cannot be used", extra={"username": user.username[:100]})
        raise NotAuthorized(_NOT_A_NAME)
    return replace(user, roles=frozenset(role for role in user.roles if _is_name(role)))


def _is_name(text: str) -> bool:
    return 0 < len(text) <= LONGEST_NAME and not _NOT_IN_A_NAME.search(text)


def _has_secrets(attributes: Mapping[str, str]) -> bool:
    return any(looks_secret(name) for name in attributes)


def _whole(user: User) -> Mapping[str, Any]:
    """What is said about a user, secrets included, but not until when."""
    return {**user.as_json(), "attributes": dict(user.attributes)}


def _user(whole: Mapping[str, Any]) -> User:
    return replace(
        User.from_json(whole),
        attributes=MappingProxyType(whole["attributes"]),
        valid_until=whole.get("valid_until"),
    )


def _may_know(authenticator: Authenticator, username: str) -> bool:
    """What an authenticator that lists its users says; others cannot tell."""
    has_user = getattr(authenticator, "has_user", None)
    return has_user is None or bool(has_user(username))


def _open(
    abstraction: str,
    sections: Mapping[str, Mapping[str, Any]],
    *,
    where: str,
    metrics: Metrics | None,
    **context: str,
) -> Iterator[Any]:
    """The back-ends of one realm, in the order of the configuration."""
    there_are = backends(abstraction).names
    for name, options in sections.items():
        here = f"{where}.{name}"
        kind = options.get("type")
        if not isinstance(kind, str) or not kind:
            raise ConfigurationError(f"{here}.type: must be one of {', '.join(sorted(there_are))}")
        if kind not in there_are:
            logger.warning(
                "A type that this server does not have is left out",
                extra={"section": here, "type": kind, "there_are": sorted(there_are)},
            )
            continue
        backend = load_backend(abstraction, kind)
        opened = backend(backend.Config.read(options, where=here), **context)
        for each in opened if isinstance(opened, Sequence) else (opened,):
            if metrics is None:
                yield each
            else:
                yield observed(each, abstraction=abstraction, name=kind, metrics=metrics)
