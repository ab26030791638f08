"""One address for the metrics of a server that consists of several processes.

The address is listened on before the server forks, and whichever process accepts a connection answers for
all of them: each has a Unix socket in a directory of theirs, where it tells its metrics to the others.
"""

import contextlib
import fcntl
import itertools
import logging
import os
import socket
import socketserver
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final, Self

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from polytope_server.observability.health import Checks, HealthListener, Readiness, Rendered

logger = logging.getLogger(__name__)

LABEL: Final = "process"
"""Tells the processes of one server apart, by numbers from 1 that a process inherits from a dead one."""

_ANSWER_S: Final = 1.0
"""What the answer of a process may take."""
_CHUNK_BYTES: Final = 1 << 16
_BACKLOG: Final = 16
_POLL_S: Final = 0.2


class SharedListener:
    """Listens for all processes of a server. Made in their parent, where it is a context that ends it.

    Args:
        sockets: that listen, all on one port; without any, nothing is ever answered.
    """

    def __init__(self, sockets: Sequence[socket.socket], *, processes: int) -> None:
        self._sockets = sockets
        self._ending = contextlib.ExitStack()
        for each in sockets:
            self._ending.callback(each.close)
            # whom another process is quicker than must not be kept waiting by `accept`
            each.setblocking(False)
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        if sockets and processes > 1:
            self._directory = tempfile.TemporaryDirectory(prefix="polytope-metrics-")
            self._ending.callback(self._directory.cleanup)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def answer(self, checks: Checks, metrics: Rendered) -> None:
        """Answer from now on, in threads, until this process or the context ends. Once in each process."""
        if self._directory is not None:
            siblings = _Siblings(Path(self._directory.name))
            teller = siblings.tell(metrics)
            self._ending.callback(teller.server_close)
            self._ending.callback(teller.shutdown)
            metrics = siblings
        readiness = Readiness(checks)
        for each in self._sockets:
            host, port = each.getsockname()[:2]
            listener = HealthListener(host, port, readiness, metrics, listener=each)
            listener.start()
            self._ending.callback(listener.close)


class _Siblings:
    """The metrics of all processes whose sockets are in one directory, each with the label `LABEL`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._number, self._lock = _free_number(directory)

    def tell(self, metrics: Rendered) -> "_Teller":
        """Tell the others, in a thread, what this process has."""
        path = self._directory / str(self._number)
        path.unlink(missing_ok=True)  # of a process that is dead
        teller = _Teller(path, metrics)
        threading.Thread(
            target=teller.serve_forever, args=(_POLL_S,), name="metrics", daemon=True
        ).start()
        return teller

    def render(self) -> tuple[bytes, str]:
        """See `Rendered`. A process that does not answer is left out."""
        return together(self._texts()).encode(), CONTENT_TYPE_LATEST

    def _texts(self) -> Iterator[tuple[str, str]]:
        numbers = sorted(int(name) for name in os.listdir(self._directory) if name.isdecimal())
        for number in numbers:
            try:
                yield str(number), _asked(self._directory / str(number))
            except (ConnectionRefusedError, FileNotFoundError):
                continue  # it has ended, and another one may be about to take its place
            except OSError as exc:
                logger.warning(
                    "A process does not tell its metrics",
                    extra={"number": number, "cause": str(exc)},
                )


class _Teller(socketserver.UnixStreamServer):
    """Tells whoever connects."""

    request_queue_size = _BACKLOG

    def __init__(self, path: Path, metrics: Rendered) -> None:
        self.metrics = metrics
        super().__init__(str(path), _Telling)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        logger.debug("A process that asked for metrics did not wait", exc_info=True)


class _Telling(socketserver.BaseRequestHandler):
    server: _Teller

    def handle(self) -> None:
        self.request.settimeout(_ANSWER_S)
        self.request.sendall(self.server.metrics.render()[0])


def together(texts: Iterable[tuple[str, str]]) -> str:
    """One text out of several, in the text format of Prometheus, each with the number it is known by.

    Not by a parser: these are our own lines, there are many of them, and requests wait meanwhile.
    """
    families: dict[str, list[str]] = {}
    samples: list[str] = []
    for number, text in texts:
        label = f'{LABEL}="{number}"'
        about = ""
        for line in text.splitlines():
            if line.startswith("# HELP "):
                about = line
            elif line.startswith("# TYPE "):
                samples = families.setdefault(f"{about}\n{line}", [])
            else:
                samples.append(_labelled(line, label))
    return "".join(f"{about}\n{''.join(lines)}" for about, lines in families.items())


def _labelled(line: str, label: str) -> str:
    name, brace, rest = line.partition("{")
    if brace:
        return f"{name}{{{label},{rest}\n"
    name, _, value = line.partition(" ")
    return f"{name}{{{label}}} {value}\n"


def _free_number(directory: Path) -> tuple[int, IO[bytes]]:
    """The first number that no living process has, and the file that holds it until we end."""
    for number in itertools.count(1):
        lock = (directory / f"{number}.lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return number, lock
    raise AssertionError("numbers do not end")


def _asked(path: Path) -> str:
    text = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(_ANSWER_S)
        peer.connect(str(path))
        while chunk := peer.recv(_CHUNK_BYTES):
            text += chunk
    return text.decode()
