"""memcached: keeps nothing over a crash."""

import os
import socket
from contextlib import closing

from services.base import Server


class Memcached(Server):
    """A memcached, on TCP only."""

    name = "memcached"
    installation = "apt-get install memcached"
    programs = ("memcached",)

    def _launch(self) -> None:
        self._spawn(
            "memcached",
            [
                self.program("memcached"),
                *("-l", "127.0.0.1"),
                *("-p", str(self.port())),
                *("-U", "0"),
                *("-m", "64"),
                *(("-u", "root") if os.geteuid() == 0 else ()),  # which it insists on being told
            ],
        )

    def stop(self) -> None:
        self.kill()  # there is nothing to save, and it takes a second to end otherwise

    def _answers(self) -> bool:
        with closing(socket.create_connection(("127.0.0.1", self.port()), timeout=1)) as connection:
            connection.sendall(b"version\r\n")
            return connection.recv(64).startswith(b"VERSION")
