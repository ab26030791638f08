"""Ceph's S3: one monitor, one OSD and radosgw, without a manager."""

import re
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Literal

from services.base import Server, StartFailed, free_port
from services.certificates import Certificates

ACCESS_KEY: Final = "testkey"
SECRET_KEY: Final = "testsecret"
DOMAIN: Final = "objects.test"
"""Of which the buckets are hosts, for virtual-host addressing; nobody resolves it."""

_CONFIGURATION: Final = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]
public network = 127.0.0.0/8
ms bind ipv6 = false
keyring = {directory}/keyring
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
run dir = {directory}/run
admin socket = {directory}/run/$name.asok
pid file = {directory}/run/$name.pid
log file = {directory}/run/$name.log
crash dir = {directory}/run
# this is what makes the start fast
paxos propose interval = 0.05
mon tick interval = 1
mon allow pool size one = true
mon data avail crit = 1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
[mon.a]
mon data = {directory}/mon
[osd.0]
osd data = {directory}/osd
osd objectstore = {store}
memstore device bytes = 4294967296
bluestore block size = 10737418240
osd memory target = 939524096
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{http} ssl_endpoint=127.0.0.1:{https} \
ssl_certificate={tls.certificate} ssl_private_key={tls.key}
rgw dns name = {domain}
rgw run sync thread = false
rgw gc max objs = 8
rgw gc obj min wait = 1
rgw gc processor period = 5
rgw gc processor max time = 5
# a quota counts what has just been written
rgw bucket quota ttl = 0
rgw user quota bucket sync interval = 1
"""


class RadosGw(Server):
    """radosgw with one user, on a port for http and one for https, whose certificate is `ca_file`.

    Args:
        store: ``memstore`` forgets everything when it is killed; ``bluestore`` does not, and starts slowly.
    """

    name = "radosgw"
    installation = "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd"
    programs = (
        *("ceph-mon", "ceph-osd", "radosgw"),
        *("ceph", "ceph-authtool", "monmaptool", "radosgw-admin", "openssl"),
    )
    start_s = 90.0

    def __init__(
        self,
        directory: Path | None = None,
        *,
        store: Literal["memstore", "bluestore"] = "memstore",
    ) -> None:
        super().__init__(directory)
        self._store = store
        self._has_data = False
        self._certificates = Certificates(self.directory / "tls")

    @property
    def options(self) -> Mapping[str, Any]:
        """What ``staging.s3`` needs, but for the bucket."""
        return {
            "host": "http://127.0.0.1",
            "port": self.port(),
            "access_key": ACCESS_KEY,
            "secret_key": SECRET_KEY,
        }

    @property
    def ca_file(self) -> Path:
        return self._certificates.authority

    def limit(self, bucket: str, *, max_bytes: int) -> None:
        """Give a bucket a quota."""
        common = (f"--bucket={bucket}", "--quota-scope=bucket")
        self._admin("quota", "set", *common, f"--max-size={max_bytes}")
        self._admin("quota", "enable", *common)

    def _launch(self) -> None:
        if not self._has_data:
            self._make()
        if self._store == "bluestore" and self._has_data:
            for left in (self.directory / "run").glob("*.asok"):
                left.unlink()
        end = time.monotonic() + self.start_s
        self._daemon("mon", "ceph-mon", "-i", "a")
        if not self._has_data:
            self._until(end, "-s")
            self._make_osd()
        self._daemon("osd", "ceph-osd", "-i", "0")
        if not self._has_data:
            self._until(end, "osd", "stat", says=r"\b1 up\b")
        self._daemon("rgw", "radosgw", "-n", "client.rgw")
        if not self._has_data:
            self._until_rgw(end)
            keys = (f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")
            self._admin("user", "create", "--uid=test", "--display-name=test", *keys)
        self._has_data = True

    def kill(self) -> None:
        super().kill()
        if (
            self._store == "memstore"
        ):  # all is gone with the OSD: what the monitor knows is of no use
            self._has_data = False

    def stop(self) -> None:
        """By force: nobody needs what would be flushed, and that takes ten seconds."""
        self.kill()

    def _answers(self) -> bool:
        return b" 200 " in _ask(self.port())

    def _make(self) -> None:
        for name in ("mon", "osd", "run"):
            shutil.rmtree(self.directory / name, ignore_errors=True)
            (self.directory / name).mkdir()
        for name in ("monmap", "keyring"):
            (self.directory / name).unlink(missing_ok=True)
        tls = self._certificates.issued(DOMAIN)
        fsid = str(uuid.uuid4())
        addresses = {"mon_v1": free_port(), "mon_v2": free_port()}
        configuration = _CONFIGURATION.format(
            fsid=fsid,
            directory=self.directory,
            store=self._store,
            domain=DOMAIN,
            tls=tls,
            **addresses,
            http=self.port(),
            https=self.port("https"),
        )
        (self.directory / "ceph.conf").write_text(configuration)
        keys = ("ceph-authtool", "keyring", "--gen-key", "-n")
        self._run("ceph-authtool", "-C", "keyring", *keys[2:], "mon.", "--cap", "mon", "allow *")
        self._run(*keys, "client.admin", "--cap", "mon", "allow *", "--cap", "osd", "allow *")
        self._run(*keys, "client.rgw", "--cap", "mon", "allow rw", "--cap", "osd", "allow rwx")
        self._run(*keys, "osd.0", "--cap", "mon", "allow profile osd", "--cap", "osd", "allow *")
        address = "[v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]".format_map(addresses)
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, "monmap")
        self._run(
            *("ceph-mon", "-c", "ceph.conf", "-i", "a", "--mkfs"),
            *("--monmap", "monmap", "--keyring", "keyring"),
        )

    def _make_osd(self) -> None:
        osd = str(uuid.uuid4())
        self._run("ceph", "-c", "ceph.conf", "osd", "new", osd)
        self._run("ceph-osd", "-c", "ceph.conf", "-i", "0", "--mkfs", "--osd-uuid", osd)

    def _daemon(self, label: str, program: str, *arguments: str) -> None:
        self._spawn(label, [self.program(program), "-c", "ceph.conf", *arguments, "-f"])

    def _admin(self, *arguments: str) -> str:
        return self._run("radosgw-admin", "-c", "ceph.conf", "-n", "client.rgw", *arguments)

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self.program(program), *arguments],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise StartFailed(f"{program} {' '.join(arguments)}: {done.stderr[-2000:]}")
        return done.stdout

    def _until(self, end: float, *arguments: str, says: str = "") -> None:
        """Ask Ceph, until it answers and says that."""
        while True:
            try:
                said = self._run("ceph", "-c", "ceph.conf", "--connect-timeout", "5", *arguments)
                if re.search(says, said):
                    return
            except StartFailed:
                if time.monotonic() > end:
                    raise
            if time.monotonic() > end:
                raise StartFailed(f"{self.name}: {' '.join(arguments)} never said {says}")
            time.sleep(0.05)

    def _until_rgw(self, end: float) -> None:
        while not self._tried():
            if time.monotonic() > end:
                raise StartFailed(f"{self.name}: no answer: {self.log()[-2000:]}")
            time.sleep(0.05)


def _ask(port: int) -> bytes:
    """The beginning of what ``GET /`` is answered with."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=5)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return connection.recv(64)
