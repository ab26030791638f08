"""moto: what AWS answers, as far as that can be known without AWS; it believes every signature."""

from collections.abc import Mapping
from typing import Any

import requests

from services.base import Server


class Moto(Server):
    """One process that keeps everything in memory: for small objects."""

    name = "moto"
    installation = "make services-install"
    programs = ("venv/bin/moto_server",)

    @property
    def options(self) -> Mapping[str, Any]:
        """What ``staging.s3`` needs, but for the bucket."""
        return {
            "host": "http://127.0.0.1",
            "port": self.port(),
            "access_key": "any",
            "secret_key": "any",
        }

    def _launch(self) -> None:
        arguments = ["-H", "127.0.0.1", "-p", str(self.port())]
        self._spawn("moto", [self.program("venv/bin/moto_server"), *arguments])

    def _answers(self) -> bool:
        return requests.get(f"http://127.0.0.1:{self.port()}/moto-api/", timeout=5).ok
