"""A server that speaks MongoDB's protocol: SecantusDB, on WiredTiger; keeps what it was told over a crash."""

from typing import ClassVar

from pymongo import MongoClient

from services.base import Server


class MongoDb(Server):
    """One server without users."""

    name = "mongodb"
    installation = "make services-install"
    programs = ("venv/bin/secantusd-py",)
    start_s: ClassVar[float] = 60.0

    @property
    def uri(self) -> str:
        # directly, as it calls itself a replica set of hosts that may not be reached through a proxy
        return f"mongodb://127.0.0.1:{self.port()}/?directConnection=true"

    def _launch(self) -> None:
        self._spawn(
            "secantusd",
            [
                self.program("venv/bin/secantusd-py"),
                *("--host", "127.0.0.1"),
                *("--port", str(self.port())),
                *("--storage-path", str(self.directory / "db")),
                *("--cache-size", "128M"),
                *("--log-level", "WARNING"),
            ],
        )

    def _answers(self) -> bool:
        with MongoClient[dict[str, object]](self.uri, serverSelectionTimeoutMS=1000) as client:
            client.admin.command("ping")
        return True
