"""A deployment that runs somewhere, as its configuration files describe it to who wants to use it.

For the integration tests and the benchmarks: where its frontend is, who its users are, what its collections
are made of. Nothing is asked of the deployment itself.
"""

import base64
import ipaddress
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from polytope_server.config.loading import load
from polytope_server.config.model import Config, LimitsSection
from polytope_server.errors import ConfigurationError

ADDRESS_VARIABLE: Final = "POLYTOPE_ADDRESS"
USER_VARIABLES: Final = ("POLYTOPE_", "POLYTOPE_OTHER_")
"""What the names of the environment begin with that hold a user, in polytope-client's own spelling:
``USERNAME`` and ``PASSWORD``, or ``USER_KEY``, with or without ``USER_EMAIL``. The second is another user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody who can log in."""

    name: str
    authorization: str = field(repr=False)
    """The value of the header."""
    client: Mapping[str, str] = field(repr=False)
    """The same as polytope-client takes it."""
    realm: str | None = None
    """Known of users who stand in the configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """A collection, and its first datasource: that one gets every request that does not say otherwise."""

    name: str
    type: str
    options: Mapping[str, Any] = field(repr=False)
    limits: LimitsSection

    @property
    def is_limited(self) -> bool:
        limits = self.limits
        return limits.total is not None or limits.per_user > 0 or bool(limits.per_role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """What the files say. `url` is that of the frontend, without ``/api/v1``."""

    url: str
    config: Config = field(repr=False)
    users: Sequence[User]
    collections: Sequence[Collection]

    def of_type(self, kind: str) -> Iterator[Collection]:
        """Collections that hand whatever request to a datasource of this type, the least limited first."""
        found = [
            each for each in self.collections if each.type == kind and not each.options.get("match")
        ]
        yield from sorted(found, key=lambda each: each.is_limited)


def deployed(files: Sequence[Path | str], *, environ: Mapping[str, str] = os.environ) -> Deployed:
    """The deployment of these files, merged as the server does it.

    The environment goes before the files: see `ADDRESS_VARIABLE` and `USER_VARIABLES`.

    Raises:
        ConfigurationError: as for the server; or no user is known.
    """
    return described(load(files, environ=environ).config, environ=environ)


def described(config: Config, *, environ: Mapping[str, str] = os.environ) -> Deployed:
    """Raises: ConfigurationError: no user is known."""
    users = [*_users_of_environment(environ), *_users_of(config)]
    if not users:
        raise ConfigurationError(
            "authentication: there is no user with a password in clear text; set POLYTOPE_USERNAME and"
            " POLYTOPE_PASSWORD, or POLYTOPE_USER_KEY, in the environment"
        )
    return Deployed(
        url=environ.get(ADDRESS_VARIABLE) or _address(config),
        config=config,
        users=users,
        collections=[
            Collection(
                name=name,
                type=str(section.datasources[0].get("type")),
                options=section.datasources[0],
                limits=section.limits,
            )
            for name, section in config.collections.items()
        ],
    )


def basic(username: str, password: str, *, realm: str | None = None) -> User:
    """A user with a password."""
    token = base64.b64encode(f"{username}:{password}".encode()).decode()
    return User(
        name=username,
        realm=realm,
        authorization=f"Basic {token}",
        client={"username": username, "password": password},
    )


def _address(config: Config) -> str:
    settings = config.frontend
    if settings.public_url is not None:
        return settings.public_url
    host = settings.bind_to
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{settings.port}"
    if address.is_unspecified:  # all interfaces: the nearest of them
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://{f'[{address}]' if address.version == 6 else address}:{settings.port}"


def _users_of_environment(environ: Mapping[str, str]) -> Iterator[User]:
    for prefix in USER_VARIABLES:
        username, key = environ.get(f"{prefix}USERNAME"), environ.get(f"{prefix}USER_KEY")
        if username is not None:
            yield basic(username, environ.get(f"{prefix}PASSWORD", ""))
        elif key is not None:
            email = environ.get(f"{prefix}USER_EMAIL")
            yield User(
                name=email or f"the owner of {prefix}USER_KEY",
                authorization=f"EmailKey {email}:{key}" if email else f"Bearer {key}",
                client={"user_key": key, **({"user_email": email} if email else {})},
            )


def _users_of(config: Config) -> Iterator[User]:
    """Those with a password in clear text."""
    for realm, section in config.authentication.items():
        for authenticator in section.authenticators.values():
            if authenticator.get("type") != "plain":
                continue
            for user in authenticator.get("users") or ():
                password = str(user.get("password", ""))
                if password and not password.startswith("$argon2"):
                    yield basic(str(user["uid"]), password, realm=realm)
