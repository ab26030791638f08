"""Roles from the groups of a directory: Active Directory, OpenLDAP, or what has ``memberOf`` as they do."""

import logging
import math
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from ldap3 import (
    ANONYMOUS,
    DEREF_NEVER,
    NONE,
    SIMPLE,
    SUBTREE,
    SYNC,
    Connection,
    Server,
    Tls,
)
from ldap3.core import results
from ldap3.core.exceptions import (
    LDAPBusyResult,
    LDAPException,
    LDAPInvalidCredentialsResult,
    LDAPInvalidDNSyntaxResult,
    LDAPInvalidFilterError,
    LDAPNoSuchObjectResult,
    LDAPOperationResult,
    LDAPUnavailableResult,
)
from ldap3.operation.search import parse_filter
from ldap3.utils.conv import escape_filter_chars
from pyasn1.error import PyAsn1Error

from polytope_server.authorization import Grant
from polytope_server.authorization.distinguished_names import own_common_name
from polytope_server.authorization.socket_in_time import SocketInTime
from polytope_server.circuit_breaker import CircuitBreaker
from polytope_server.config.ldap import LdapAuthorizerSection
from polytope_server.errors import BackendUnavailable, ConfigurationError
from polytope_server.user import User

logger = logging.getLogger(__name__)

T = TypeVar("T")

_GROUPS: Final = "memberOf"
_LONGEST_NAME: Final = 1024
_NO_LDAP: Final = (OSError, ValueError, LookupError, TypeError, AttributeError, PyAsn1Error)
"""What the library lets through where the other side speaks something else."""
_PAUSE_S: Final = 1.0
_REFUSED_PAUSE_S: Final = 30.0
"""After a wrong password: directories lock accounts whose passwords are tried too often."""
_IDLE_S: Final = 300.0
"""Firewalls and directories drop connections that have been idle for longer, often without a word."""


class LdapAuthorizer:
    """See `polytope_server.authorization.Authorizer`.

    A role for each group that the user's entry names in ``memberOf``: the group's own CN. A user whom
    the directory has not, or has several of, gets none.
    """

    Config = LdapAuthorizerSection

    def __init__(self, config: LdapAuthorizerSection) -> None:
        self.remembered_s = config.remember
        self._config = config
        self._wanted = config.filter.casefold()
        self._directory = _Directory(config)
        try:
            parse_filter(self._filter("x"), None, False, False, None, False)
        except LDAPInvalidFilterError as exc:
            raise ConfigurationError(
                "authorizer ldap: user_filter: must be a filter such as (objectClass=person)"
            ) from exc

    def grant(self, user: User) -> Grant:
        name = self._looked_for(user)
        if not name.strip() or len(name) > _LONGEST_NAME or not _is_text(name):
            return Grant()
        attribute = self._config.uid_attribute
        who = {"username": user.username, "realm": user.realm, "attribute": attribute}
        try:
            entry = self._directory.find(self._filter(name), attributes=[attribute, _GROUPS])
        except _Several:
            logger.warning(
                "The directory has several entries for a user, who gets no roles of it", extra=who
            )
            return Grant()
        if entry is None:
            return Grant()
        if name not in _values(entry, attribute):
            # a directory compares without case and some blanks; our users are told apart by them
            logger.info(
                "The directory spells a user's name otherwise, who gets no roles of it", extra=who
            )
            return Grant()
        return Grant(roles=frozenset(self._roles(_values(entry, _GROUPS))))

    def _looked_for(self, user: User) -> str:
        attribute = self._config.username_attribute
        return user.username if attribute is None else user.attributes.get(attribute, "")

    def _filter(self, name: str) -> str:
        wanted = f"({self._config.uid_attribute}={escape_filter_chars(name)})"
        return f"(&{wanted}{self._config.user_filter})"

    def _roles(self, groups: list[str]) -> Iterator[str]:
        for group in groups:
            if self._wanted not in group.casefold():
                continue
            try:
                role = own_common_name(group)
            except ValueError as exc:
                logger.warning(
                    "The directory gives a group that has no proper name",
                    extra={"group": group, "cause": str(exc)},
                )
                continue
            if role:
                yield role


class _Directory:
    """Connections to one directory, each used by one thread at a time, and searches over them."""

    def __init__(self, config: LdapAuthorizerSection) -> None:
        self._config = config
        self._tls = _tls(config)
        self._room = threading.BoundedSemaphore(config.pool_size)
        self._lock = threading.Lock()
        self._idle: list[tuple[float, Connection]] = []
        self._breaker = CircuitBreaker(f"authorization.ldap {config.url}", pause_s=_PAUSE_S)
        if config.user and not config.uses_tls and not _is_here(config.url):
            logger.warning(
                "The password for the directory goes over the network unprotected; "
                "use ldaps:// or start_tls",
                extra={"url": config.url},
            )

    def find(self, filter_: str, *, attributes: list[str]) -> Mapping[str, Any] | None:
        """The one entry below the search base, as the library gives it, that matches.

        Raises:
            _Several: it is not the only one.
            BackendUnavailable: the directory is away, or does not let us in or search; it says which.
        """

        def ask(connection: Connection) -> list[Mapping[str, Any]]:
            connection.socket.begin()
            connection.search(
                self._config.search_base,
                filter_,
                search_scope=SUBTREE,
                dereference_aliases=DEREF_NEVER,
                attributes=attributes,
                size_limit=2,
                time_limit=math.ceil(self._config.timeout),
            )
            self._must_be_whole(connection.result)
            # the others are referrals to other directories
            found = connection.response or []
            return [each for each in found if each.get("type") == "searchResEntry"]

        entries = self._asked(ask)
        if len(entries) > 1:
            raise _Several
        return entries[0] if entries else None

    def _must_be_whole(self, result: Mapping[str, Any]) -> None:
        """Raise if there may be more than what was answered: the library is content with some results."""
        config = self._config
        match result["result"]:
            case results.RESULT_SUCCESS:
                return
            case results.RESULT_SIZE_LIMIT_EXCEEDED:
                raise _Several
            case results.RESULT_REFERRAL:
                raise _Answered(
                    f"ldap: {config.url} refers to another directory for {config.search_base!r}, which is "
                    "not followed; name that one in url"
                )
        raise _Answered(
            f"ldap: {config.url} answers {result['description']}: {result['message'] or 'no reason'}"
        )

    def _asked(self, action: Callable[[Connection], T]) -> T:
        if not self._breaker.lets_through():
            raise BackendUnavailable(f"{self._breaker.cause} (seen a moment ago)")
        if not self._room.acquire(timeout=self._config.timeout):
            raise BackendUnavailable(
                f"ldap: all {self._config.pool_size} connections to {self._config.url} are busy"
            )
        try:
            answer = self._tried(action)
        except _LoginRefused as exc:
            self._breaker.failed(exc, pause_s=_REFUSED_PAUSE_S)
            raise
        except (_Answered, _Several):
            self._breaker.succeeded()
            raise
        except BackendUnavailable as exc:
            self._breaker.failed(exc)
            raise
        finally:
            self._room.release()
        self._breaker.succeeded()
        return answer

    def _tried(self, action: Callable[[Connection], T]) -> T:
        connection = self._taken()
        if connection is not None:
            began = time.monotonic()
            try:
                with self._our_errors():
                    answer = action(connection)
            except (_Answered, _Several):
                self._put_back(connection)
                raise
            except BackendUnavailable:
                _close(connection)
                if time.monotonic() - began >= self._config.timeout:
                    raise
                # it was of a directory that has been started again since; so are the others
                self._close_idle()
            else:
                self._put_back(connection)
                return answer
        with self._our_errors():
            connection = self._connected()
            try:
                answer = action(connection)
            except BaseException:
                _close(connection)
                raise
        self._put_back(connection)
        return answer

    def _taken(self) -> Connection | None:
        """An open connection that nobody uses."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                since, connection = self._idle.pop()
            if time.monotonic() - since < _IDLE_S:
                return connection
            _close(connection)

    def _put_back(self, connection: Connection) -> None:
        with self._lock:
            self._idle.append((time.monotonic(), connection))

    def _close_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            _close(connection)

    def _connected(self) -> Connection:
        """A new connection, bound."""
        config = self._config
        connection = Connection(
            self._server(),
            user=config.user or None,
            password=config.ldap_password.get_secret_value() if config.ldap_password else None,
            authentication=SIMPLE if config.user else ANONYMOUS,
            client_strategy=SYNC,
            auto_referrals=False,
            check_names=False,
            read_only=True,
            raise_exceptions=True,
            # whole seconds for the library; it also holds for the handshake of TLS
            receive_timeout=math.ceil(config.timeout),
        )
        try:
            connection.open(read_server_info=False)
            connection.socket = SocketInTime(connection.socket, config.timeout)
            if config.start_tls:
                _start_tls(connection, config.url)
            connection.socket.begin()
            _bind(connection, config)
        except BaseException:
            _close(connection)
            raise
        return connection

    def _server(self) -> Server:
        """The library keeps the state of a connection in it, so each has its own."""
        parts = urlsplit(self._config.url)
        uses_tls = parts.scheme == "ldaps"
        return Server(
            parts.hostname,
            port=parts.port or (636 if uses_tls else 389),
            use_ssl=uses_tls,
            tls=self._tls,
            get_info=NONE,
            connect_timeout=self._config.timeout,
        )

    @contextmanager
    def _our_errors(self) -> Iterator[None]:
        config = self._config
        try:
            yield
        except (LDAPNoSuchObjectResult, LDAPInvalidDNSyntaxResult) as exc:
            raise _Answered(
                f"ldap: {config.url} has no entry {config.search_base!r} that '{config.user}' may see; "
                "see search_base"
            ) from exc
        except LDAPOperationResult as exc:
            raise _Answered(
                f"ldap: {config.url} answers {exc.description}: {exc.message or 'no reason'}"
            ) from exc
        except (LDAPException, *_NO_LDAP) as exc:
            raise BackendUnavailable(f"ldap: {config.url}: {_said(exc)}") from exc


class _Several(Exception):
    """More than one entry is somebody's."""


class _Answered(BackendUnavailable):
    """The directory is there, and does not do what we want."""


class _LoginRefused(_Answered):
    """The directory does not know us."""


class _VerifiedTls(Tls):  # type: ignore[misc]  # the library has no types
    """The standard library's checks of a certificate, its names and addresses included."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self._context = context

    def wrap_socket(self, connection: Connection, do_handshake: bool = False) -> None:
        before = connection.socket
        plain = before.socket if isinstance(before, SocketInTime) else before
        secured = self._context.wrap_socket(
            plain,
            server_hostname=connection.server.host,
            do_handshake_on_connect=do_handshake,
        )
        connection.socket = before.of(secured) if isinstance(before, SocketInTime) else secured


def _tls(config: LdapAuthorizerSection) -> Tls | None:
    if not config.uses_tls:
        return None
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except OSError as exc:  # what ssl raises for a file that is no certificate is one as well
        raise ConfigurationError(
            f"authorizer ldap: ca_file: must be a file of certificates (PEM) that can be read; "
            f"{config.ca_file}: {exc.strerror or type(exc).__name__}"
        ) from exc
    if not config.tls_verify:
        logger.warning("The certificate of the directory is not checked", extra={"url": config.url})
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return _VerifiedTls(context)


def _start_tls(connection: Connection, url: str) -> None:
    try:
        connection.start_tls(read_server_info=False)
    except LDAPOperationResult as exc:
        raise _Answered(
            f"ldap: {url} does not take start_tls: {exc.message or exc.description}"
        ) from exc


def _bind(connection: Connection, config: LdapAuthorizerSection) -> None:
    try:
        connection.bind(read_server_info=False)
    except (LDAPBusyResult, LDAPUnavailableResult) as exc:
        raise BackendUnavailable(f"ldap: {config.url} is {exc.description}") from exc
    except LDAPOperationResult as exc:
        why = exc.description
        if isinstance(exc, LDAPInvalidCredentialsResult):
            why = "that user or ldap_password is wrong"
        hint = "; most directories want a distinguished name there" if config.ldap_user else ""
        raise _LoginRefused(
            f"ldap: {config.url} does not let '{config.user}' in: {why}{hint} "
            f"({exc.message or exc.description})"
        ) from exc
    if not connection.bound:
        said = connection.result["description"]
        raise _Answered(f"ldap: {config.url} does not let '{config.user}' in: {said}")


def _said(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"its certificate is not trusted: {text}; see ca_file"
    if "timed out" in text:
        return f"no answer in time: {text}"
    return text


def _close(connection: Connection) -> None:
    """Without a farewell, for which a directory that hangs would be waited for."""
    connection.strategy.close()


def _values(entry: Mapping[str, Any], attribute: str) -> list[str]:
    """The texts of an attribute, whose name a directory may spell in its own case."""
    for name, values in entry["raw_attributes"].items():
        if name.casefold() == attribute.casefold():
            return [value.decode("utf-8", "replace") for value in values]
    return []


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host == "::1" or host.startswith("127.")
