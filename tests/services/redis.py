"""Redis: keeps what it was told over a crash."""

import socket
import ssl
from contextlib import closing
from pathlib import Path

from services.base import Server
from services.certificates import Certificates


class Redis(Server):
    """A redis-server; every command is on disk before it is answered.

    Args:
        password: of the default user; there is none if not given.
        certificates: with them it speaks TLS only, on the same port.
    """

    name = "redis"
    installation = "apt-get install redis-server"
    programs = ("redis-server",)

    def __init__(
        self,
        directory: Path | None = None,
        *,
        password: str = "",
        certificates: Certificates | None = None,
    ) -> None:
        super().__init__(directory)
        self._password = password
        self._certificates = certificates

    def _launch(self) -> None:
        self._spawn(
            "redis",
            [
                self.program("redis-server"),
                *("--bind", "127.0.0.1"),
                *self._listener(),
                *("--dir", str(self.directory)),
                *("--daemonize", "no"),
                *("--save", ""),
                *("--appendonly", "yes"),
                *("--appendfsync", "always"),
                *(("--requirepass", self._password) if self._password else ()),
            ],
        )

    def _listener(self) -> tuple[str, ...]:
        port = str(self.port())
        if self._certificates is None:
            return ("--port", port)
        pair = self._certificates.issued("localhost")
        return (
            *("--port", "0", "--tls-port", port),
            *("--tls-cert-file", str(pair.certificate)),
            *("--tls-key-file", str(pair.key)),
            *("--tls-auth-clients", "no"),
        )

    def _answers(self) -> bool:
        with closing(socket.create_connection(("127.0.0.1", self.port()), timeout=1)) as connection:
            if self._certificates is not None:
                context = ssl.create_default_context(cafile=self._certificates.authority)
                connection = context.wrap_socket(connection, server_hostname="localhost")
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
