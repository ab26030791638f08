"""The objects of a backup, as they are read."""

from collections.abc import Iterator
from pathlib import Path

from polytope_server.data import manifest
from polytope_server.staging import StoredObject
from polytope_server.staging.local import LocalReader, object_path, our_errors


class Objects:
    """Only read, so that a backup may lie where nobody can write.

    Raises in every method: ObjectNotFound; ValueError, for what cannot be an object's name.
    """

    def __init__(self, backup: Path) -> None:
        self._root = backup / manifest.STAGING

    def stat(self, name: str) -> StoredObject:
        with our_errors(name):
            status = object_path(self._root, name).stat()
        return StoredObject(name=name, size_bytes=status.st_size, modified_at=status.st_mtime)

    def read(self, name: str) -> Iterator[bytes]:
        with our_errors(name):
            return LocalReader(object_path(self._root, name).open("rb", buffering=0), name)
