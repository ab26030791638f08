"""Files that are closed to others and survive a power cut."""

import os
import shutil
from pathlib import Path
from typing import IO, Final

CHUNK_BYTES: Final = 1 << 20


def private(path: Path) -> IO[bytes]:
    """A new file, to be written.

    Raises:
        FileExistsError
    """
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")


def copy_file(source: Path, target: Path) -> None:
    """Write a new file; durable, but for its name."""
    with source.open("rb") as data, private(target) as out:
        shutil.copyfileobj(data, out, CHUNK_BYTES)
        out.flush()
        os.fsync(out.fileno())


def sync(path: Path) -> None:
    """Have a file, or the names in a directory, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
