"""Certificates for servers that speak TLS: an authority of a test's own, and what it issues."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from services.base import Missing


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


class Certificates:
    """An authority in a directory; everything is made when it is first asked for.

    Raises: Missing, at the first use.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def authority(self) -> Path:
        """Its certificate, which its clients trust."""
        return self._root().certificate

    def issued(self, host: str) -> Pair:
        """For a server of this name, and of 127.0.0.1, or for a client."""
        root, pair = self._root(), self._pair(host)
        if not pair.certificate.exists():
            self._openssl(
                pair,
                f"/CN={host}",
                *("-CA", str(root.certificate), "-CAkey", str(root.key)),
                *("-addext", f"subjectAltName=DNS:{host},IP:127.0.0.1"),
                *("-addext", "basicConstraints=critical,CA:FALSE"),
            )
        return pair

    def _root(self) -> Pair:
        pair = self._pair("authority")
        if not pair.certificate.exists():
            self._directory.mkdir(parents=True, exist_ok=True)
            self._openssl(pair, "/CN=an authority for tests")
        return pair

    def _pair(self, name: str) -> Pair:
        return Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")

    def _openssl(self, pair: Pair, subject: str, *more: str) -> None:
        try:
            subprocess.run(
                [
                    *("openssl", "req", "-x509", "-nodes", "-days", "2"),
                    *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                    *("-keyout", str(pair.key), "-out", str(pair.certificate)),
                    *("-subj", subject, *more),
                ],
                check=True,
                capture_output=True,
                timeout=30,
            )
        except FileNotFoundError as exc:
            raise Missing("there is no openssl; install it with: apt-get install openssl") from exc
