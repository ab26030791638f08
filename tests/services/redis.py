"""Redis: keeps what it was told over a crash."""

import socket
from contextlib import closing

from services.base import Server


class Redis(Server):
    """A redis-server without a password; every command is on disk before it is answered."""

    name = "redis"
    installation = "apt-get install redis-server"
    programs = ("redis-server",)

    def _launch(self) -> None:
        self._spawn(
            "redis",
            [
                self.program("redis-server"),
                *("--bind", "127.0.0.1"),
                *("--port", str(self.port())),
                *("--dir", str(self.directory)),
                *("--daemonize", "no"),
                *("--save", ""),
                *("--appendonly", "yes"),
                *("--appendfsync", "always"),
            ],
        )

    def _answers(self) -> bool:
        with closing(socket.create_connection(("127.0.0.1", self.port()), timeout=1)) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
