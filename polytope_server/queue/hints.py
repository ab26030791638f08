"""Hints between the processes of one machine: a Unix datagram socket for each listener.

The sockets lie in one directory; a socket's name begins with the topics it wants, so that a sender needs
no list of listeners. Sockets of dead processes are removed by the first who writes to them.
"""

import contextlib
import errno
import os
import select
import socket
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from polytope_server.queue import Hint, Topic

_TOPICS = tuple(Topic)
_DATAGRAM_BYTES = 1024
_RECEIVE_BUFFER_BYTES = 1 << 20


class HintDirectory:
    """Sends hints to, and makes, the listeners of one directory. Safe between threads."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        # A socket's path must fit into 108 bytes, wherever our directory may be.
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self._short = f"/proc/self/fd/{self._descriptor}"
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)

    def send(self, hint: Hint) -> None:
        """Hand a hint to all who listen; those that are full or gone miss it."""
        wanted = 1 << _TOPICS.index(hint.topic)
        datagram = f"{hint.topic} {hint.text}".encode()[:_DATAGRAM_BYTES]
        for name in self._listeners(wanted):
            try:
                self._sender.sendto(datagram, f"{self._short}/{name}")
            except ConnectionRefusedError:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._descriptor)
            except OSError as exc:
                if exc.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENOENT):
                    raise

    def _listeners(self, wanted: int) -> Iterator[str]:
        try:
            names = os.listdir(self._descriptor)
        except OSError:
            return
        for name in names:
            mask, _, _ = name.partition("-")
            with contextlib.suppress(ValueError):
                if int(mask, 16) & wanted:
                    yield name

    @contextlib.contextmanager
    def listen(self, *topics: Topic) -> Iterator["SocketHints"]:
        """See `polytope_server.queue.Queue.listen`."""
        mask = sum(1 << _TOPICS.index(topic) for topic in set(topics))
        name = f"{mask:x}-{uuid.uuid4().hex}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            receiver.setblocking(False)
            receiver.bind(f"{self._short}/{name}")
            bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            try:
                yield SocketHints(receiver, bell)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._descriptor)
                os.close(bell)


def has_listeners(directory: Path) -> bool:
    """Whether any process listens there; nothing is made or removed."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        return any(
            _answers(f"/proc/self/fd/{descriptor}/{name}") for name in os.listdir(descriptor)
        )
    finally:
        os.close(descriptor)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError:  # nobody any more, or no socket
            return False
        return True


class SocketHints:
    """See `polytope_server.queue.Hints`."""

    def __init__(self, receiver: socket.socket, bell: int) -> None:
        self._receiver, self._bell = receiver, bell

    def wait(self, timeout_s: float) -> Sequence[Hint]:
        poll = select.poll()
        poll.register(self._receiver, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        poll.poll(max(0.0, timeout_s) * 1000)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        return list(self._pending())

    def interrupt(self) -> None:
        os.eventfd_write(self._bell, 1)

    def _pending(self) -> Iterator[Hint]:
        while True:
            try:
                datagram = self._receiver.recv(_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            topic, _, text = datagram.decode(errors="replace").partition(" ")
            with contextlib.suppress(ValueError):
                yield Hint(topic=Topic(topic), text=text)
