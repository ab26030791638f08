"""What lies in a backup: the file that is written last, and without which a backup is none.

::

    DEST/manifest.json       this
    DEST/requests.sqlite     the requests, the links' signing key, and all else that the store holds
    DEST/staging/objects/    results, and the uploads of unfinished requests
    DEST/usage.jsonl         records of use, if there is a file of them
    DEST/password            of a standalone server's own user
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from polytope_server.data.files import CHUNK_BYTES, private
from polytope_server.errors import ConfigurationError

FILE: Final = "manifest.json"
DATABASE: Final = "requests.sqlite"
STAGING: Final = "staging"
USAGE: Final = "usage.jsonl"
PASSWORD: Final = "password"  # noqa: S105 -- the name of a file

FILES: Final = (DATABASE, USAGE, PASSWORD)

_FORMAT: Final = 1
_FORMAT_KEY: Final = "polytope-server-backup"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of a backup, as it must be."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a backup holds. `objects` is None if it was made without the staging's objects.

    `made_at` is ISO 8601; the requests are as they were then, or later.
    """

    made_at: str
    server: str
    schema: int
    requests: Mapping[str, int]
    objects: int | None
    object_bytes: int
    files: Mapping[str, File] = field(repr=False)

    def write(self, directory: Path) -> None:
        text = json.dumps({_FORMAT_KEY: _FORMAT, **asdict(self)}, indent=2)
        with private(directory / FILE) as out:
            out.write(f"{text}\n".encode())
            out.flush()
            os.fsync(out.fileno())

    def lines(self) -> Iterator[str]:
        """What it holds, for an operator."""
        yield f"made at: {self.made_at}, by version {self.server}, schema version {self.schema}"
        yield f"requests: {requests_text(self.requests)}"
        if self.objects is None:
            yield "objects: none; those of the staging were left where they are"
        else:
            yield f"objects: {self.objects}, {self.object_bytes} bytes"
        for name, file in self.files.items():
            yield f"{name}: {file.size_bytes} bytes"

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Raises: ConfigurationError, this is no backup, or not a whole one."""
        try:
            value: Any = json.loads((directory / FILE).read_bytes())
        except FileNotFoundError as exc:
            raise ConfigurationError(
                f"{directory}: this is no backup, or not a whole one: it has no {FILE}"
            ) from exc
        except NotADirectoryError as exc:
            raise ConfigurationError(f"{directory}: a backup is a directory") from exc
        except OSError as exc:
            raise ConfigurationError(f"{directory}: cannot be read: {exc.strerror}") from exc
        except ValueError as exc:
            raise ConfigurationError(f"{directory / FILE}: cannot be read: {exc}") from exc
        version = value.pop(_FORMAT_KEY, None) if isinstance(value, dict) else None
        if version != _FORMAT:
            raise ConfigurationError(
                f"{directory / FILE}: is of format {version!r}, this server reads {_FORMAT}"
            )
        try:
            files = {name: File(**file) for name, file in value.pop("files").items()}
            manifest = cls(files=files, **value)
        except (KeyError, TypeError, AttributeError) as exc:
            raise ConfigurationError(f"{directory / FILE}: is not what we write: {exc}") from exc
        if DATABASE not in files or not files.keys() <= set(FILES):
            raise ConfigurationError(f"{directory / FILE}: names files that no backup has")
        return manifest


def requests_text(requests: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in requests.items())
    return f"{sum(requests.values())} ({counts})" if counts else "0"


def measured(path: Path) -> File:
    """A file as it is; holds a chunk of it at a time."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return File(size_bytes=size, sha256=digest.hexdigest())
