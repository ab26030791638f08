"""A server that speaks MongoDB's protocol and keeps what it was told over a crash."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pymongo

from services.base import Server
from services.certificates import Certificates

USER: Final = "polytope"
PASSWORD: Final = "a p@ss/word"
_WAIT_MS: Final = 2000


class MongoDb(Server):
    """SecantusDB, which says that it is a replica set of one MongoDB 8.

    Args:
        auth: only for the user `USER` with `PASSWORD`, whom the database ``admin`` knows.
        tls: only with TLS, with a certificate of `certificates`.
        alone: does not say that it is a replica set.
    """

    name = "mongodb"
    installation = "make services-install"
    programs = ("venv/bin/secantusd-py",)
    start_s = 60.0

    def __init__(
        self,
        directory: Path | None = None,
        *,
        auth: bool = False,
        tls: bool = False,
        alone: bool = False,
    ) -> None:
        super().__init__(directory)
        self._auth, self._tls, self._alone = auth, tls, alone
        self._knows_the_user = False
        self.certificates = Certificates(self.directory / "certificates")

    @property
    def uri(self) -> str:
        """Without user and TLS."""
        return self.uri_at(self.port())

    def uri_at(self, port: int) -> str:
        """The same, by way of a proxy."""
        return f"mongodb://127.0.0.1:{port}/?directConnection=true"

    def launch(self) -> None:
        if self._auth and not self._knows_the_user:
            # Only whoever starts without passwords can make the first user.
            self._run("first", with_passwords=False)
            self.until_ready()
            with self.client() as client:
                client.admin.command("createUser", USER, pwd=PASSWORD, roles=["root"])
            self._knows_the_user = True
            Server.stop(self)
        super().launch()

    def _launch(self) -> None:
        self._run("mongodb", with_passwords=self._auth)

    def _run(self, label: str, *, with_passwords: bool) -> None:
        (self.directory / "empty.toml").touch()
        options = ["--auth"] if with_passwords else []
        options += ["--standalone"] if self._alone else []
        if self._tls:
            own = self.certificates.issued("localhost")
            options += [
                *("--tls-cert-file", str(own.certificate)),
                *("--tls-key-file", str(own.key)),
            ]
        self._spawn(
            label,
            [
                self.program("venv/bin/secantusd-py"),
                *("--config", str(self.directory / "empty.toml")),
                *("--host", "127.0.0.1"),
                *("--port", str(self.port())),
                *("--storage-path", str(self.directory / "db")),
                *("--cache-size", "128M"),
                *("--log-level", "WARNING"),
                *options,
            ],
        )

    def _answers(self) -> bool:
        with self.client() as client:
            client.admin.command("ping")
        return True

    # --- for tests

    @contextmanager
    def client(self) -> Iterator["pymongo.MongoClient[dict[str, Any]]"]:
        """A client of its own, for what an operator does by hand."""
        options: dict[str, Any] = {"timeoutMS": _WAIT_MS}
        if self._knows_the_user:
            options |= {"username": USER, "password": PASSWORD}
        if self._tls:
            options["tlsCAFile"] = str(self.certificates.authority)
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(self.uri, **options)
        try:
            yield client
        finally:
            client.close()

    @staticmethod
    def database() -> str:
        """The name of a new one."""
        return f"test-{secrets.token_hex(6)}"
