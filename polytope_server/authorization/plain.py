"""Roles and attributes that stand in the configuration."""

import fnmatch
import re
from collections.abc import Mapping

from pydantic import SecretStr

from polytope_server.authorization import Grant
from polytope_server.config.identity import PlainAuthorizerSection
from polytope_server.user import User


class PlainAuthorizer:
    """See `polytope_server.authorization.Authorizer`.

    Where several give the same attribute, a pattern on the user wins over a role, and what stands
    later over what stands earlier. Roles that the user has already count for ``role-attributes``.
    """

    Config = PlainAuthorizerSection
    remembered_s = 0.0

    def __init__(self, config: PlainAuthorizerSection) -> None:
        self._roles: dict[str, set[str]] = {}
        for role, uids in config.roles.items():
            for uid in uids:
                self._roles.setdefault(uid, set()).add(role)
        self._by_pattern = [
            (re.compile(fnmatch.translate(pattern)), _clear(attributes))
            for pattern, attributes in config.user_attributes.items()
        ]
        self._by_role = {role: _clear(given) for role, given in config.role_attributes.items()}

    def grant(self, user: User) -> Grant:
        roles = frozenset(self._roles.get(user.username, ()))
        held = roles | user.roles
        attributes: dict[str, str] = {}
        for role, given in self._by_role.items():
            if role in held:
                attributes.update(given)
        for pattern, given in self._by_pattern:
            if pattern.match(user.username):
                attributes.update(given)
        return Grant(roles=roles, attributes=attributes)


def _clear(attributes: Mapping[str, SecretStr]) -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in attributes.items()}
