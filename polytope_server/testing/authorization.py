"""What every authorizer must do.

Subclass `AuthorizerContract` and give it the fixtures `authorizer` and `known`.
"""

import contextlib
from collections.abc import Mapping

import pytest

from polytope_server.authorization import Authorizer, Grant
from polytope_server.user import User

Known = Mapping[User, Grant]
"""Users, and what the authorizer must give each."""

STRANGERS = ("nobody", "*", "", "a\x00b", "*)(uid=*", "[", "Ünal", "x" * 10_000, "\n")


class AuthorizerContract:
    """The contract of `polytope_server.authorization.Authorizer`."""

    def test_known_users_get_what_is_theirs(self, authorizer: Authorizer, known: Known) -> None:
        assert known
        for user, expected in known.items():
            found = authorizer.grant(user)
            assert found.roles == expected.roles
            assert dict(found.attributes) == dict(expected.attributes)

    def test_it_says_how_long_it_may_be_remembered(self, authorizer: Authorizer) -> None:
        assert authorizer.remembered_s >= 0

    @pytest.mark.parametrize("name", STRANGERS, ids=range(len(STRANGERS)))
    def test_a_stranger_gets_nothing(self, authorizer: Authorizer, name: str) -> None:
        found = authorizer.grant(User(username=name, realm="example"))
        assert found.roles == frozenset()
        assert dict(found.attributes) == {}

    def test_names_are_compared_with_case(self, authorizer: Authorizer, known: Known) -> None:
        for user in known:
            shouted = User(username=user.username.swapcase(), realm=user.realm)
            assert authorizer.grant(shouted).roles == frozenset()

    def test_what_one_user_got_is_not_added_to_the_next(
        self, authorizer: Authorizer, known: Known
    ) -> None:
        for user, expected in known.items():
            found = authorizer.grant(user)
            with contextlib.suppress(TypeError):
                found.attributes["added"] = "text"  # type: ignore[index]  # on purpose
            assert dict(authorizer.grant(user).attributes) == dict(expected.attributes)

    def test_the_user_is_not_altered(self, authorizer: Authorizer, known: Known) -> None:
        for user in known:
            before = (user.roles, dict(user.attributes))
            authorizer.grant(user)
            assert (user.roles, dict(user.attributes)) == before

    def test_no_attribute_is_in_a_repr(self, authorizer: Authorizer, known: Known) -> None:
        for user, expected in known.items():
            shown = repr(authorizer.grant(user))
            assert not any(text in shown for text in expected.attributes.values())
