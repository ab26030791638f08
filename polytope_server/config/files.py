"""The files that a process is configured by: read together, then looked at for changes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from polytope_server.config.loading import SYSTEM_FILE, Loaded, load

Look = tuple[int, ...]
"""What tells one state of a file from another, also where a link or a rename brought another file."""


class ConfigFiles:
    """Reads a configuration, and says later whether it would be another one by now.

    Looked at are the named files, the system file, and those that ``!file`` names. For one thread at a
    time.

    Args:
        are_watched: False if another process looks at them, and sends us SIGHUP when they have changed.
    """

    def __init__(
        self,
        files: Sequence[Path | str],
        *,
        environ: Mapping[str, str],
        strict: bool = False,
        system_file: Path | None = SYSTEM_FILE,
        are_watched: bool = True,
    ) -> None:
        self.are_watched = are_watched
        self._files, self._environ = files, environ
        self._strict, self._system_file = strict, system_file
        self._read: dict[Path, Look] = {}
        """How each looked just before it was read last."""
        self._last_look: dict[Path, Look] = {}

    def load(self) -> Loaded:
        """Read all; see `config.loading.load`."""
        read: dict[Path, Look] = {}
        try:
            loaded = load(
                self._files,
                environ=self._environ,
                strict=self._strict,
                system_file=self._system_file,
                on_read=lambda path: read.setdefault(path, look_at(path)),
            )
        finally:
            # after a fault we may not have come upon all of them
            self._read |= read
        self._read = read
        return loaded

    def have_changed(self) -> bool:
        """Whether they are not as they were read, but as they were at the last look: nobody writes now."""
        look = {path: look_at(path) for path in self._read}
        is_still = look == self._last_look
        self._last_look = look
        return is_still and look != self._read


def look_at(path: Path) -> Look:
    """How a file looks at present, without reading it; one that is not there looks like nothing else."""
    try:
        found = path.stat()
    except OSError as exc:
        return (exc.errno or 0,)
    except ValueError:  # no path at all
        return ()
    # the last is for what keeps its time, and for rights that are given afterwards
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
