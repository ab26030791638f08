"""SeaweedFS: a second S3 server, made quite differently, that is up again within a second."""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import requests

from services.base import Server

ACCESS_KEY: Final = "testkey"
SECRET_KEY: Final = "testsecret"

_PORTS: Final = ("master", "volume", "filer", "s3", "admin")


class SeaweedFs(Server):
    """All of SeaweedFS in one process, with one user who may do everything. Keeps its data when killed."""

    name = "seaweedfs"
    installation = "make services-install"
    programs = ("venv/bin/weed",)

    @property
    def options(self) -> Mapping[str, Any]:
        """What ``staging.s3`` needs, but for the bucket."""
        return {
            "host": "http://127.0.0.1",
            "port": self.port(),
            "access_key": ACCESS_KEY,
            "secret_key": SECRET_KEY,
        }

    def port(self, use: str = "main") -> int:
        return super().port("s3" if use == "main" else use)

    def _launch(self) -> None:
        may = ["Admin", "Read", "Write", "List", "Tagging"]
        credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        users = {"identities": [{"name": "admin", "credentials": credentials, "actions": may}]}
        (self.directory / "s3.json").write_text(json.dumps(users))
        (self.directory / "data").mkdir(exist_ok=True)
        for left in self.directory.glob("*.sock"):
            left.unlink()
        ports = [f"-{name}.port={self.port(name)}" for name in _PORTS]
        ports += [f"-{name}.port.grpc={self.port(f'{name} grpc')}" for name in _PORTS]
        self._spawn(
            "weed",
            [
                *(self.program("venv/bin/weed"), "mini"),
                f"-dir={self.directory / 'data'}",
                *("-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *("-master.telemetry=false", "-admin.ui=false", "-webdav=false"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
                f"-s3.config={self.directory / 's3.json'}",
                *ports,
                f"-filer.localSocket={self.directory / 'filer.sock'}",
                f"-s3.localSocket={self.directory / 's3.sock'}",
            ],
        )

    def stop(self) -> None:
        """By force: what it has answered for is kept, and an orderly end takes seconds."""
        self.kill()

    def _answers(self) -> bool:
        """Whether it asks for credentials, as it does when it has read who its users are, and has room."""
        filer = f"http://127.0.0.1:{self.port('filer')}/ready"
        if requests.put(filer, data=str(time.time()), timeout=5).status_code >= 300:
            return False
        answer = requests.get(f"http://127.0.0.1:{self.port()}/", timeout=5)
        return answer.status_code == requests.codes.forbidden

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for name in _PORTS:  # it puts these there whatever it is told
            for left in Path(tempfile.gettempdir()).glob(
                f"seaweedfs-*-grpc-{self.port(f'{name} grpc')}.sock"
            ):
                left.unlink(missing_ok=True)
