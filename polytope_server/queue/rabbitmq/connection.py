"""The driver's connections and channels, with its callbacks made awaitable and its errors made ours.

Everything here happens in one event loop, for the driver is not safe between threads.
"""

import asyncio
import contextlib
import re
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils import connection_workflow
from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionClosed

from polytope_server.errors import BackendUnavailable

NOT_FOUND: Final = 404
DIFFERENT: Final = 406
_REPLY: Final = re.compile(r"ConnectionClosedByBroker: \((\d+)\) (['\"])(.*)\2$")
"""How the driver's guess at what went wrong quotes what the server has said."""


class ClosedByServer(BackendUnavailable):
    """The server has closed a channel, for a reason that it names."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"RabbitMQ refuses: {text}")
        self.code = code


class Connection:
    """An open connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.closed: asyncio.Future[BackendUnavailable] = asyncio.get_running_loop().create_future()
        self.channels: set[Channel] = set()
        self._gone = asyncio.Event()
        self.unblocked = asyncio.Event()
        """Cleared while the server takes no messages, for want of memory or disk."""
        self.unblocked.set()
        connection.add_on_close_callback(self._on_close)
        connection.add_on_connection_blocked_callback(lambda *_: self.unblocked.clear())
        connection.add_on_connection_unblocked_callback(lambda *_: self.unblocked.set())

    async def channel(self) -> "Channel":
        """A new channel.

        Raises:
            BackendUnavailable
        """
        opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with_reason = partial(_settle, opened)
        try:
            channel = self._connection.channel(on_open_callback=with_reason)
        except AMQPError as exc:
            raise _away(exc) from exc
        channel.add_on_close_callback(lambda _, reason: _fail(opened, _away(reason)))
        await opened
        return Channel(channel, self)

    async def end(self) -> None:
        """Close it, and return when the server knows."""
        if not self._gone.is_set():
            self.drop("closed by us")
            await self._gone.wait()

    def drop(self, why: str) -> None:
        """Give it up; what waits for it is told. Without an answer the driver ends it in time."""
        self._end(BackendUnavailable(why))
        if self._connection.is_open:
            self._connection.close()

    def _on_close(self, _connection: Any, reason: BaseException) -> None:
        self._gone.set()
        self._end(_away(reason))

    def _end(self, reason: BackendUnavailable) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)
        for channel in tuple(
            self.channels
        ):  # the driver tells those of one that was given up nothing
            channel.end(reason)


class Channel:
    """An open channel. What waits for an answer on it is told when it is closed."""

    def __init__(self, channel: Any, connection: Connection) -> None:
        self.driver, self.connection = channel, connection
        self.closed: asyncio.Future[BackendUnavailable] = asyncio.get_running_loop().create_future()
        self._waiting: set[asyncio.Future[Any]] = set()
        self._get: asyncio.Future[Any] | None = None
        self._got = asyncio.Event()
        channel.add_on_close_callback(lambda _, reason: self.end(_away(reason)))
        connection.channels.add(self)
        channel.add_callback(self._on_empty, [pika.spec.Basic.GetEmpty], one_shot=False)

    async def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The server's answer to a method that takes a callback.

        Raises:
            ClosedByServer: it refuses; the channel is gone.
            BackendUnavailable
        """
        return await self._answer(
            lambda future: method(*args, callback=partial(_settle, future), **kwargs)
        )

    async def get(self, queue: str) -> tuple[int, bytes] | None:
        """Tag and body of the next message; None if there is none.

        Who gives up waiting loses nothing: what comes later goes back. The driver takes one at a time.

        Raises:
            ClosedByServer: it refuses; the channel is gone.
            BackendUnavailable
        """
        while self._get is not None:
            await self._got.wait()

        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.send(self.driver.basic_get, queue, self._on_message)
        self._get, self._got = future, asyncio.Event()
        try:
            found: tuple[int, bytes] | None = await future
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None and future.result():
                self._reject(future.result()[0])  # it came in this very moment
            raise
        return found

    def send(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """What the server does not answer.

        Raises:
            BackendUnavailable
        """
        if self.closed.done():
            raise BackendUnavailable(str(self.closed.result()))
        try:
            method(*args, **kwargs)
        except AMQPError as exc:
            raise _away(exc) from exc

    def close(self) -> None:
        """Close it, and do not wait for the server to know."""
        if self.driver.is_open and not self.closed.done():
            self.driver.close()
        self.end(BackendUnavailable("The channel was closed by us."))

    async def _answer(self, ask: Callable[[asyncio.Future[Any]], None]) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            self.send(ask, future)
            return await future
        finally:
            self._waiting.discard(future)

    def _on_message(self, _channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        future = self._end_get()
        if future is None or future.done():
            self._reject(method.delivery_tag)
        else:
            future.set_result((method.delivery_tag, body))

    def _reject(self, tag: int) -> None:
        with contextlib.suppress(BackendUnavailable):  # then it goes back by itself
            self.send(self.driver.basic_reject, tag, requeue=True)

    def _on_empty(self, _frame: Any) -> None:
        future = self._end_get()
        if future is not None:
            _settle(future, None)

    def _end_get(self) -> "asyncio.Future[Any] | None":
        future, self._get = self._get, None
        self._got.set()
        return future

    def end(self, error: BackendUnavailable) -> None:
        """It was closed: tell all who wait for something on it."""
        self.connection.channels.discard(self)
        if not self.closed.done():
            self.closed.set_result(error)
        if (get := self._end_get()) is not None:
            _fail(get, error)
        for future in tuple(self._waiting):
            _fail(future, error)


async def connect(parameters: pika.ConnectionParameters) -> Connection:
    """A new connection; takes no longer than the time-outs of its parameters.

    Raises:
        BackendUnavailable: and why, in words that tell an operator what to do.
    """
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    AsyncioConnection.create_connection(
        [parameters], on_done=partial(_settle, done), custom_ioloop=asyncio.get_running_loop()
    )
    outcome = await done
    if isinstance(outcome, BaseException):
        raise _unreachable(outcome, parameters) from outcome
    return Connection(outcome)


def _unreachable(error: BaseException, parameters: pika.ConnectionParameters) -> BackendUnavailable:
    """What has gone wrong: wrong by configuration is told from away."""
    where = f"RabbitMQ at {parameters.host}:{parameters.port}"
    root = _root(error)
    if isinstance(root, ssl.SSLCertVerificationError):
        text = f"{where} has a certificate that is not trusted: {root.verify_message}"
    elif isinstance(root, ssl.SSLError):
        text = f"{where} and we do not agree on TLS: {root.reason or 'it ended the connection'}"
    elif isinstance(root, connection_workflow.AMQPConnectorStackTimeout):
        text = f"{where} takes connections but does not answer"
    elif reply := _REPLY.search(str(root.args[0]) if root.args else ""):
        text = f"{where} refuses: {reply[3]}"
        if reply[1] == "403":
            text = f"{where} refuses user or password; see queue.rabbitmq.user and .password"
        elif reply[1] == "530":
            text += "; see queue.rabbitmq.virtual_host, and the user's permissions there"
    elif isinstance(root, OSError):
        text = f"{where} cannot be reached: {root.strerror or type(root).__name__}"
    else:
        text = f"{where} ended the connection before it was open"
        if parameters.ssl_options is None:
            text += "; does it want TLS there?"
    return BackendUnavailable(text)


def _root(error: BaseException) -> BaseException:
    """What the driver has wrapped, several times."""
    while True:
        match error:
            case connection_workflow.AMQPConnectionWorkflowFailed(exceptions=(*_, last)):
                error = last
            case connection_workflow.AMQPConnectorException(exception=inner):
                error = inner
            case _:
                return error


def _away(reason: BaseException) -> BackendUnavailable:
    match reason:
        case ChannelClosedByBroker():
            return ClosedByServer(reason.reply_code, reason.reply_text)
        case ConnectionClosed():
            return BackendUnavailable(f"RabbitMQ closed the connection: {reason.reply_text}")
        case _:
            return BackendUnavailable(
                f"The connection to RabbitMQ is gone: {type(reason).__name__}"
            )


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
