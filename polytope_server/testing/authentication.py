"""What every authenticator must do.

Subclass `AuthenticatorContract` and give it the fixtures `authenticator`, `good` and `wrong`.
"""

import contextlib
import re
import threading
from collections.abc import Mapping, Sequence

import pytest

from polytope_server.authentication import Authenticator
from polytope_server.errors import NotAuthenticated
from polytope_server.user import User

Good = Mapping[str, User]
"""Credentials that must be accepted, and whom each belongs to (attributes apart)."""
Wrong = Sequence[str]
"""Well-formed credentials that must be refused."""

UNREADABLE = (
    "",
    " ",
    "=",
    "%%%",
    "a b c",
    "\x00",
    "ÿþ",
    ":",
    "::",
    "Og==",
    "\ud800",
    "a" * 16_000,
    "' OR 1=1 --",
    "*)(uid=*",
)


class AuthenticatorContract:
    """The contract of `polytope_server.authentication.Authenticator`."""

    def test_good_credentials_are_accepted(self, authenticator: Authenticator, good: Good) -> None:
        assert good
        for credential, user in good.items():
            found = authenticator.authenticate(credential)
            assert (found.username, found.realm) == (user.username, user.realm)
            assert found.roles >= {"default"}
            assert all(isinstance(text, str) for text in found.attributes.values())

    def test_wrong_credentials_are_refused(
        self, authenticator: Authenticator, wrong: Wrong
    ) -> None:
        assert wrong
        for credential in wrong:
            with pytest.raises(NotAuthenticated):
                authenticator.authenticate(credential)

    @pytest.mark.parametrize("credential", UNREADABLE, ids=range(len(UNREADABLE)))
    def test_what_cannot_be_read_is_refused(
        self, authenticator: Authenticator, credential: str
    ) -> None:
        with pytest.raises(NotAuthenticated):
            authenticator.authenticate(credential)

    @pytest.mark.parametrize("credential", UNREADABLE, ids=range(len(UNREADABLE)))
    def test_anything_may_be_asked_for_a_login_name(
        self, authenticator: Authenticator, credential: str
    ) -> None:
        assert isinstance(authenticator.login_name(credential), str)

    def test_a_refusal_repeats_nothing_of_the_credential(
        self, authenticator: Authenticator, wrong: Wrong
    ) -> None:
        for credential in wrong:
            with pytest.raises(NotAuthenticated) as caught:
                authenticator.authenticate(credential)
            assert credential not in str(caught.value)

    def test_a_part_of_a_good_credential_is_refused(
        self, authenticator: Authenticator, good: Good
    ) -> None:
        for credential in good:
            for part in (credential[:-4], credential[4:], credential[: len(credential) // 2]):
                with pytest.raises(NotAuthenticated):
                    authenticator.authenticate(part)

    def test_the_challenge_is_a_standard_one(self, authenticator: Authenticator) -> None:
        assert re.fullmatch(
            re.escape(authenticator.scheme) + r' realm="(?:[\x20-!#-\[\]-~]|\\["\\])*"',
            authenticator.challenge(),
        )

    def test_the_attributes_of_one_login_are_not_those_of_the_next(
        self, authenticator: Authenticator, good: Good
    ) -> None:
        credential = next(iter(good))
        before = dict(authenticator.authenticate(credential).attributes)
        user = authenticator.authenticate(credential)
        with contextlib.suppress(TypeError):
            user.attributes["added"] = "text"  # type: ignore[index]  # on purpose
        assert dict(authenticator.authenticate(credential).attributes) == before

    def test_many_threads_may_ask_at_once(
        self, authenticator: Authenticator, good: Good, wrong: Wrong
    ) -> None:
        surprises: list[str] = []

        def work() -> None:
            for credential, user in good.items():
                if authenticator.authenticate(credential).username != user.username:
                    surprises.append(user.username)
            with contextlib.suppress(NotAuthenticated):
                surprises.append(authenticator.authenticate(wrong[0]).username)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert surprises == []
