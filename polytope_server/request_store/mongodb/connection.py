"""The client: how it is made, how long it may take, and what its errors mean for us."""

import logging
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeVar

import pymongo
from pymongo import MongoClient
from pymongo.errors import (
    ConfigurationError as DriversConfigurationError,
)
from pymongo.errors import (
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from polytope_server.config.mongodb import MongoStoreSection
from polytope_server.config.secrecy import masked
from polytope_server.errors import BackendUnavailable, ConfigurationError

logger = logging.getLogger(__name__)

Document = dict[str, Any]
T = TypeVar("T")

_UNAUTHORIZED: Final = 13
_NOT_AUTHENTICATED: Final = frozenset({11, 18, 8000})
_CONNECT_S: Final = 5.0
_FIRST_LOOK_S: Final = 2.0
"""A process that starts has to tell soon what it waits for."""
_LOOK_MS: Final = 2000
"""After so long the driver finds out that a server it had given up is there again."""


class NeedsOperator(BackendUnavailable):
    """A server that answers, but of which nothing will become until somebody changes something.

    Where a store is opened this is a `ConfigurationError`. Later on, to those who wait for the server, it is
    one that is away, for whoever puts it right need not restart us.
    """


class Connection:
    """One client, shared by all threads of a process.

    *prepare*, wherever it is asked for, is what must have succeeded once before anything else is done. It may
    be called again after it failed, and by several processes at once.

    Raises:
        ConfigurationError: the client cannot be made from this.
    """

    def __init__(self, config: MongoStoreSection) -> None:
        self._config = config
        self._timeout_s = config.timeout
        self._is_prepared = False
        self._preparing = threading.Lock()
        logging.getLogger("pymongo").setLevel(config.log_level)
        self.client: MongoClient[Document] = _client(config)
        # No threads stay behind where a store was opened only to see whether that can be done: a process that
        # forks then must have none.
        self._end = weakref.finalize(self, self.client.close)

    def close(self) -> None:
        self._end()

    def open(self, prepare: Callable[[], None]) -> None:
        """Prepare now, if the server is there; does not wait for one that is not.

        Raises:
            ConfigurationError: it is there, and the operator must do something first.
        """
        try:
            self.ready(prepare, answer_s=_FIRST_LOOK_S)
        except NeedsOperator as exc:
            raise ConfigurationError(f"request_store.mongodb: {exc}") from exc
        except BackendUnavailable as exc:
            logger.warning(
                "the request store is away; it is made ready when it answers",
                extra={"cause": str(exc)},
            )

    def ready(self, prepare: Callable[[], None], *, answer_s: float = _CONNECT_S) -> None:
        """Return if the server has been prepared, now or before.

        Args:
            answer_s: how long it may take to answer at all.

        Raises: BackendUnavailable.
        """
        if self._is_prepared:
            return
        # One thread tries; the others wait for it no longer than they would have tried themselves.
        if not self._preparing.acquire(timeout=self._timeout_s):
            raise BackendUnavailable(f"{self.where} is not ready")
        try:
            if not self._is_prepared:
                self._limited(self._ping, min(self._timeout_s, answer_s))
                self._told(prepare)
                self._is_prepared = True
        finally:
            self._preparing.release()

    def prepare_again(self) -> None:
        """Have that done before anything else is."""
        self._is_prepared = False

    def run(self, action: Callable[[], T], prepare: Callable[[], None]) -> T:
        """The result of *action*, which is tried a second time if the server does not answer.

        The driver tries once more where a connection breaks. Here a second attempt is for what it does not
        see: a connection that is there, and on which nothing comes back. It takes another connection.

        Whoever writes makes sure that the first attempt does no harm if it arrives as well, then or later.

        Raises:
            BackendUnavailable: within `timeout`. Whether it has happened is unknown.
        """
        self.ready(prepare)
        attempt_s = self._timeout_s / 2
        try:
            return self._limited(action, attempt_s)
        except NeedsOperator:
            raise
        except BackendUnavailable as exc:
            logger.debug("trying once more", extra={"cause": str(exc)})
            return self._limited(action, attempt_s)

    @property
    def where(self) -> str:
        """For messages: what and where it is, without what is secret."""
        return f"MongoDB at {_hosts(self._config.uri)}"

    def _ping(self) -> None:
        self.client.admin.command("ping")

    def _limited(self, action: Callable[[], T], seconds: float) -> T:
        with pymongo.timeout(seconds):
            return self._told(action)

    def _told(self, action: Callable[[], T]) -> T:
        """The result of *action*, the driver's errors as ours."""
        try:
            return action()
        except PyMongoError as exc:
            raise self._ours(exc) from exc

    def _ours(self, error: PyMongoError) -> BackendUnavailable:
        text = masked(str(error))
        if (words := self._refusal(error, text)) is not None:
            return NeedsOperator(f"{self.where} {words}")
        if isinstance(error, OperationFailure):
            return BackendUnavailable(f"{self.where} has not done it: {_short(text)}")
        return BackendUnavailable(f"{self.where} does not answer: {_short(text)}")

    def _refusal(self, error: PyMongoError, text: str) -> str | None:
        """What the operator can do, if that is what it takes."""
        code = error.code if isinstance(error, OperationFailure) else None
        if code in _NOT_AUTHENTICATED or "authentication failed" in text.lower():
            source = self._config.auth_source or "what `uri` says, or admin, as there is none"
            return (
                "does not accept the user name and the password; see that `username` and `password` are "
                f"right, and that `auth_source` names the database that knows the user ({source})"
            )
        if code == _UNAUTHORIZED:
            return (
                f"does not let this user work in the database {self._config.database!r}; give it the role "
                "readWrite there, and set `username` and `password` if there are none"
            )
        if isinstance(error, ServerSelectionTimeoutError):
            for sign, words in _NOT_REACHED.items():
                if sign in text:
                    return f"cannot be used: {words}: {_short(text)}"
        return None


_NOT_REACHED: Final = {
    "Got response id": "what answers there does not speak MongoDB's protocol; see the port in `uri`",
    "certificate verify failed": "its certificate is not trusted; name the authority in `tls_ca_file`, and "
    "see that the certificate is for the name in `uri`",
    "WRONG_VERSION_NUMBER": "it does not speak TLS; leave it out of `uri`, with the `tls_` keys",
    "record layer failure": "it does not speak TLS; leave it out of `uri`, with the `tls_` keys",
    "tlsv13 alert certificate required": "it wants a certificate of ours; name it in `tls_cert_file`",
    "No replica set members available": "`uri` names another replica set than the servers'",
}
"""What an unreachable server says when the operator can help, and what that means."""


def _client(config: MongoStoreSection) -> MongoClient[Document]:
    options: dict[str, Any] = {
        "appname": "polytope-server",
        "maxPoolSize": config.max_pool_size,
        "connectTimeoutMS": round(1000 * min(config.timeout, _CONNECT_S)),
        "serverSelectionTimeoutMS": round(1000 * config.timeout),
        "heartbeatFrequencyMS": _LOOK_MS,
        # not for `uri` to say: the store is right only with these
        "retryWrites": True,
        "retryReads": True,
        "readPreference": "primary",
    }
    if config.username is not None and config.password is not None:
        options |= {
            "username": config.username,
            "password": config.password.get_secret_value(),
        }
    elif config.username is not None or config.password is not None:
        logger.warning(
            "request_store.mongodb: username and password are used only together; one of them is missing"
        )
    if config.auth_source is not None:
        options["authSource"] = config.auth_source
    for option, path in (
        ("tlsCAFile", config.tls_ca_file),
        ("tlsCertificateKeyFile", config.tls_cert_file),
    ):
        if path is not None:
            options[option] = str(path)
    try:
        with warnings.catch_warnings():
            # an option that is misspelt, `tls` above all, is not one that is left out
            warnings.simplefilter("error", UserWarning)
            return MongoClient(config.uri, connect=False, **options)
    except UserWarning as exc:
        raise _unusable(exc) from None
    except DriversConfigurationError as exc:
        if config.uri.startswith("mongodb+srv://") and exc.__cause__ is not None:
            raise BackendUnavailable(  # of a name server
                f"MongoDB at {_hosts(config.uri)} cannot be looked up: {_short(masked(str(exc)))}"
            ) from exc
        raise _unusable(exc) from None
    except (PyMongoError, ValueError, OSError) as exc:
        raise _unusable(exc) from None


def _unusable(error: Exception) -> ConfigurationError:
    # not chained: the driver's traceback has the address with the password in it
    return ConfigurationError(
        f"request_store.mongodb: this address, or one of the options, cannot be used: "
        f"{_short(masked(str(error)))}"
    )


def _hosts(uri: str) -> str:
    return uri.partition("://")[2].rpartition("@")[2].partition("/")[0].partition("?")[0]


def _short(text: str) -> str:
    """Without the driver's own long story of all servers, and of what was said beside the error."""
    for more in (
        ", full error:",
        ", Topology Description:",
        " (configured timeouts:",
        ", Timeout:",
    ):
        text = text.partition(more)[0]
    return text if len(text) <= 500 else f"{text[:500]}..."
