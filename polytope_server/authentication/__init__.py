"""Who somebody is, from one credential."""

from typing import Protocol

from polytope_server.user import User


class Authenticator(Protocol):
    """Turns the credential of one scheme into a user of its realm. Safe between threads.

    Made with its `Config` and the name of its realm, ``(config, *, realm)``. A back-end that reads several
    schemes makes a sequence of authenticators, one for each.

    One that knows all of its users may have ``has_user(username) -> bool``: API keys of a user whom nobody in
    their realm has any more are refused. It must not ask anybody.
    """

    scheme: str
    """The word of the Authorization header that this reads; compared without case."""

    cacheable: bool
    """Whether a good answer may be remembered for a short while, and until its `valid_until` at most."""

    def challenge(self) -> str:
        """One standard challenge for ``WWW-Authenticate``."""

    def login_name(self, credential: str) -> str:
        """Whom the credential is about as far as it says so itself, to slow guessing; may be empty."""

    def authenticate(self, credential: str) -> User:
        """The user whom the text after the scheme belongs to; role ``default``, own attributes.

        Roles that the credential itself proves may come besides, and another realm where it speaks for one.

        Raises:
            NotAuthenticated: unreadable or wrong; the text tells nothing about which.
            BackendUnavailable: whoever would know is away, answers nothing of use, or does not let us ask.
        """
