"""A consistent copy of everything, made while all processes go on.

First the store, as it is at one moment; then the objects that its requests need. An object that is gone by
then is one whose request has gone on meanwhile: it finished, or was removed. Then the request in the backup
goes on, too. So each of them stands as it once stood, and each result of one is there, whole.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from polytope_server.config.staging import LocalStagingSection
from polytope_server.data import manifest
from polytope_server.data.files import CHUNK_BYTES, copy_file, private, sync
from polytope_server.data.manifest import Manifest, measured
from polytope_server.data.place import Place
from polytope_server.data.progress import Progress
from polytope_server.errors import ConfigurationError, ObjectNotFound, StorageFull
from polytope_server.request import DataObject
from polytope_server.request_store.snapshot import Copy, Live
from polytope_server.staging import Staging
from polytope_server.staging.local import LocalStaging


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What has come of it.

    `linked`: objects that are links. `damaged`: requests whose data were lost, or not whole, to begin with.
    """

    manifest: Manifest
    linked: int
    damaged: Sequence[str]

    def lines(self) -> Iterator[str]:
        """The same, for an operator."""
        yield from self.manifest.lines()
        if self.linked:
            yield f"{self.linked} objects are links to the same bytes as the server's"
        for request_id in self.damaged:
            yield f"warning: the data of request {request_id} are lost, and not in the backup"


@dataclass(slots=True, kw_only=True)
class _Kept:
    linked: int = 0
    copied: int = 0
    size_bytes: int = 0
    damaged: list[str] = field(default_factory=list)


def back_up(
    place: Place, destination: Path, *, objects: bool, may_link: bool, progress: Progress
) -> Report:
    """Make a backup at *destination*, which must not exist: it does when all is done, or not at all.

    Args:
        objects: with those of the staging.
        may_link: do not copy objects that lie on the same file system as the backup; they never change.

    Raises:
        ConfigurationError: there is nothing to back up, or no place for it.
        BackendUnavailable: store or staging is away, or there is no room.
    """
    with Live(place.database) as live, _new_directory(destination) as directory:
        live.copy(directory / manifest.DATABASE, lambda done, of: progress("store", done, of))
        made_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        with Copy(directory / manifest.DATABASE) as copy:
            copy.check()
            kept = _Kept()
            if objects:
                _Keeping(
                    live=live,
                    copy=copy,
                    source=place.open_staging(),
                    target=LocalStaging(LocalStagingSection(root_dir=directory / manifest.STAGING)),
                    may_link=may_link,
                    kept=kept,
                ).keep_all(progress)
            summary = copy.summary()
        # after the store: the records that its copy does not hold any more are in here
        if place.usage.path is not None:
            _copy_lines(place.usage.path, directory / manifest.USAGE)
        if place.password is not None and place.password.exists():
            copy_file(place.password, directory / manifest.PASSWORD)
        names = [name for name in manifest.FILES if (directory / name).exists()]
        sync(directory / manifest.DATABASE)
        made = Manifest(
            made_at=made_at,
            server=version("polytope-server"),
            schema=summary.version,
            requests=summary.requests,
            objects=kept.linked + kept.copied if objects else None,
            object_bytes=kept.size_bytes,
            files={name: measured(directory / name) for name in names},
        )
        made.write(directory)
        sync(directory)
    return Report(manifest=made, linked=kept.linked, damaged=kept.damaged)


class _Keeping:
    """Puts the objects of a copy's requests beside it."""

    def __init__(
        self,
        *,
        live: Live,
        copy: Copy,
        source: Staging,
        target: LocalStaging,
        may_link: bool,
        kept: _Kept,
    ) -> None:
        self._live, self._copy, self._kept = live, copy, kept
        self._source, self._target = source, target
        can_link = isinstance(source, LocalStaging) and source.device() == target.device()
        self._links = source if isinstance(source, LocalStaging) and may_link and can_link else None
        self._shards: set[Path] = set()

    def keep_all(self, progress: Progress) -> None:
        total, size_bytes = self._copy.needed()
        if self._links is None and size_bytes > self._target.free_bytes():
            raise StorageFull(f"backup: there is no room for {size_bytes} bytes of objects")
        for done, held in enumerate(self._copy.objects(), start=1):
            if not self._keep(held.data):
                self._follow(held.request_id)
            progress("objects", done, total)
        for directory in {each for shard in self._shards for each in (shard, shard.parent)}:
            sync(directory)

    def _keep(self, data: DataObject) -> bool:
        """Whether the object is in the backup now, whole."""
        try:
            stored = self._source.stat(data.name)
            if stored.size_bytes != data.size_bytes:
                return False
            if not self._link(data.name):
                self._copy_object(data, modified_at=stored.modified_at)
        except ObjectNotFound:
            return False
        self._kept.size_bytes += data.size_bytes
        return True

    def _link(self, name: str) -> bool:
        """Whether it could be done without a copy."""
        if self._links is None:
            return False
        path = self._target.path(name)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            os.link(self._links.path(name), path)
        except FileNotFoundError as exc:
            raise ObjectNotFound(name) from exc
        except OSError:  # another file system, or one without links
            return False
        self._shards.add(path.parent)
        self._kept.linked += 1
        return True

    def _copy_object(self, data: DataObject, *, modified_at: float) -> None:
        with self._target.create(data.name, media_type=data.media_type) as upload:
            for chunk in self._source.read(data.name):
                upload.write(chunk)
            upload.commit()
        os.utime(self._target.path(data.name), (modified_at, modified_at))
        self._kept.copied += 1

    def _follow(self, request_id: str) -> None:
        """An object was not there: have the request's copy go on, as the request has by now."""
        while (row := self._live.row(request_id)) is not None and self._copy.put(row):
            data = self._copy.needs(request_id)
            if data is None or self._keep(data):
                return
        if row is None:
            self._copy.remove(request_id)
            return
        # it has not gone on: the object is lost, or cut off
        self._kept.damaged.append(request_id)
        self._copy.do_without(request_id)


@contextlib.contextmanager
def _new_directory(destination: Path) -> Iterator[Path]:
    """A directory that gets its name only when all has gone well, and else is removed.

    Raises:
        ConfigurationError: the name is taken, or nothing can be made there.
    """
    partial = destination.with_name(destination.name + ".partial")
    try:
        if destination.exists() or destination.is_symlink():
            raise ConfigurationError(
                f"{destination}: is there already; a backup has a new directory"
            )
        partial.mkdir(mode=0o700, exist_ok=True)
        with _held(partial) as descriptor:
            for left in partial.iterdir():  # by one that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            try:
                yield partial
                os.rename(partial, destination)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            os.fsync(descriptor)
        sync(destination.parent)
    except OSError as exc:
        raise ConfigurationError(
            f"{destination}: a backup cannot be written there: {exc.strerror}"
        ) from exc


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ConfigurationError(f"{directory}: another backup is being written there") from exc
        yield descriptor
    finally:
        os.close(descriptor)


def _copy_lines(source: Path, target: Path) -> None:
    """The whole lines that a file has now; none if there is no such file."""
    with contextlib.suppress(FileNotFoundError), source.open("rb") as lines:
        rest = os.fstat(lines.fileno()).st_size
        with private(target) as out:
            end = 0
            while rest and (chunk := lines.read(min(CHUNK_BYTES, rest))):
                rest -= len(chunk)
                newline = chunk.rfind(b"\n")
                if newline >= 0:
                    end = out.tell() + newline + 1
                out.write(chunk)
            out.truncate(end)
            out.flush()
            os.fsync(out.fileno())
