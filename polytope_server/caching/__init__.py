"""Short memory for what is costly to ask again."""

from typing import Any, Protocol


class Cache(Protocol):
    """JSON values under text keys, each with a lifetime. A cache that is away is slow, never an error.

    Safe between threads. While it is away nothing is found, and what is put or deleted is lost, so that
    an earlier value may be found again afterwards, until its own lifetime is over.

    Keys are hashed by the caller where they hold a credential; see `authentication.identity`.
    """

    def ping(self) -> None:
        """Return if the cache answers; the only method that raises `BackendUnavailable`."""

    def get(self, key: str) -> Any | None:
        """The value, or None if there is none or its lifetime is over."""

    def put(self, key: str, value: Any, *, lifetime_s: float) -> None:
        """Remember a JSON value so long at most; it may be forgotten earlier.

        A value that is too large is not kept. In no case is an earlier one found after this.

        Raises:
            TypeError, ValueError: this is no JSON. Nothing has changed.
        """

    def delete(self, key: str) -> None:
        """Forget a value."""
