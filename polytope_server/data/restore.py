"""From a backup to a server's data: everything is checked before anything is written.

The store's file comes last, by one link. A server that is started too early finds no store, and a restore
that was cut off can be begun again.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from polytope_server.data import manifest
from polytope_server.data.files import copy_file, sync
from polytope_server.data.manifest import Manifest, measured
from polytope_server.data.objects import Objects
from polytope_server.data.place import Place
from polytope_server.data.progress import Progress
from polytope_server.errors import ConfigurationError, ObjectNotFound
from polytope_server.request import DataObject
from polytope_server.request_store.snapshot import Copy
from polytope_server.staging import Staging
from polytope_server.staging.local import LocalStaging
from polytope_server.standalone import hold

_SUFFIX: Final = ".restoring"


@dataclass(slots=True, kw_only=True)
class Report:
    """What has come of it.

    `again`: requests that were running and wait again. `without`: requests whose results the staging does
    not have, and that were left out. `kept`: files that were there, and stay.
    """

    manifest: Manifest
    again: int = 0
    without: int = 0
    kept: list[Path] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """The same, for an operator."""
        yield from self.manifest.lines()
        if self.again:
            yield f"{self.again} requests were running and will be run again"
        if self.without:
            yield f"{self.without} requests had data that the staging does not have"
        for path in self.kept:
            yield f"{path}: was there already, and stays as it is"


def check(source: Path, *, contents: bool, progress: Progress) -> Manifest:
    """See that a backup is whole; with *contents*, that every object has the bytes it had.

    Raises:
        ConfigurationError: it is not.
    """
    made = Manifest.read(source)
    for name, file in made.files.items():
        path = source / name
        try:
            found = measured(path)
        except OSError as exc:
            raise ConfigurationError(f"{path}: cannot be read: {exc.strerror}") from exc
        if found != file:
            raise ConfigurationError(f"{path}: is not what was backed up")
    with Copy(source / manifest.DATABASE, read_only=True) as copy:
        copy.check()
        total, size_bytes = copy.needed()
        if made.objects is None:
            return made
        if (total, size_bytes) != (made.objects, made.object_bytes):
            raise ConfigurationError(f"{source}: does not hold as many objects as it should")
        stored = Objects(source)
        for done, held in enumerate(copy.objects(), start=1):
            if not _is_whole(stored, held.data, contents=contents):
                raise ConfigurationError(
                    f"{source}: the object {held.data.name} is missing, or not what was backed up"
                )
            progress("checking objects", done, total)
    return made


def restore(
    place: Place, source: Path, *, objects: bool, contents: bool, progress: Progress
) -> Report:
    """Put a backup where a server will find it; there must be nothing yet, and no server.

    Args:
        objects: False leaves the staging as it is, and requests out whose results it does not have.
        contents: compare the bytes of every object, too.

    Raises:
        ConfigurationError: the backup is damaged, or the place is not empty, or not free.
        BackendUnavailable: the staging is away, or there is no room.
    """
    database = place.database
    marker = database.with_name(database.name + _SUFFIX)
    with _alone(place, marker):
        staging = _empty_staging(place, marker) if objects else place.open_staging()
        made = check(source, contents=contents, progress=progress)
        if objects and made.objects is None:
            raise ConfigurationError(
                f"{source}: was made without the staging's objects; with --no-objects, requests whose "
                "results are in the staging still are restored"
            )
        report = Report(manifest=made)
        try:
            database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _begin(source / manifest.DATABASE, marker)
            with Copy(marker) as copy:
                if objects:
                    _put_objects(copy, Objects(source), staging, progress)
                else:
                    report.without = _leave_out(copy, staging, progress)
                report.again = copy.make_ready(now=time.time())
            _put_files(place, source, report)
            _publish(marker, database)
        except OSError as exc:
            raise ConfigurationError(f"{database}: cannot be restored: {exc.strerror}") from exc
    return report


@contextlib.contextmanager
def _alone(place: Place, marker: Path) -> Iterator[None]:
    """No server uses the place, and none is started meanwhile if it is a standalone one.

    Raises:
        ConfigurationError: there is one, or there are data.
    """
    with contextlib.ExitStack() as stack:
        if place.directory is not None:
            try:
                place.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as exc:
                raise ConfigurationError(
                    f"--data-dir: {place.directory} cannot be used: {exc.strerror}"
                ) from exc
            stack.enter_context(hold(place.directory))
        if place.is_in_use():
            raise ConfigurationError(f"{place.database}: a server is running there; stop it first")
        if place.database.exists() and marker.exists() and marker.samefile(place.database):
            marker.unlink()  # by a restore that was killed when all was done
        for path in (place.database, *_beside(place.database)):
            if path.exists():
                raise ConfigurationError(
                    f"{path}: there are data already; move all of them away, and begin again"
                )
        yield


def _beside(database: Path) -> Iterator[Path]:
    """What SQLite keeps beside a file, and would take for a part of any other file in its place."""
    for suffix in ("-wal", "-shm", "-journal"):
        yield database.with_name(database.name + suffix)


def _empty_staging(place: Place, marker: Path) -> Staging:
    """The staging, if it is empty, or holds what an earlier restore has put there before it was cut off."""
    staging = place.open_staging()
    if staging.list("", limit=1) and not marker.exists():
        raise ConfigurationError(
            "staging: there are objects already; empty it, or leave it as it is with --no-objects"
        )
    return staging


def _begin(database: Path, marker: Path) -> None:
    """Put the store's file beside its place. The marker of an earlier restore is there all the while."""
    new = marker.with_name(marker.name + ".new")
    new.unlink(missing_ok=True)
    copy_file(database, new)
    for left in _beside(marker):
        left.unlink(missing_ok=True)
    new.rename(marker)
    sync(marker.parent)


def _put_objects(copy: Copy, source: Objects, target: Staging, progress: Progress) -> None:
    total, _ = copy.needed()
    for done, held in enumerate(copy.objects(), start=1):
        data = held.data
        if not _is_whole(target, data, contents=False):  # by an earlier restore
            with target.create(data.name, media_type=data.media_type) as upload:
                for chunk in source.read(data.name):
                    upload.write(chunk)
                upload.commit()
        if isinstance(target, LocalStaging):
            modified_at = source.stat(data.name).modified_at
            os.utime(target.path(data.name), (modified_at, modified_at))
        progress("objects", done, total)


def _leave_out(copy: Copy, staging: Staging, progress: Progress) -> int:
    """Do without the objects that the staging does not have; how many these are."""
    total, _ = copy.needed()
    lost = 0
    for done, held in enumerate(copy.objects(), start=1):
        if not _is_whole(staging, held.data, contents=False):
            copy.do_without(held.request_id)
            lost += 1
        progress("looking for objects", done, total)
    return lost


def _put_files(place: Place, source: Path, report: Report) -> None:
    targets = {manifest.USAGE: place.usage.path, manifest.PASSWORD: place.password}
    for name, target in targets.items():
        if target is None or name not in report.manifest.files:
            continue
        if target.exists():
            report.kept.append(target)
            continue
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = target.with_name(target.name + _SUFFIX)
        partial.unlink(missing_ok=True)
        copy_file(source / name, partial)
        partial.rename(target)
        sync(target.parent)


def _publish(marker: Path, database: Path) -> None:
    sync(marker)
    try:
        os.link(marker, database)  # unlike a renaming, not in place of another one
    except FileExistsError as exc:
        raise ConfigurationError(
            f"{database}: a server was started meanwhile; stop it, move its data away, and begin again"
        ) from exc
    marker.unlink()
    sync(database.parent)


def _is_whole(staging: Staging | Objects, data: DataObject, *, contents: bool) -> bool:
    try:
        if staging.stat(data.name).size_bytes != data.size_bytes:
            return False
        if not contents:
            return True
        digest = hashlib.sha256()
        for chunk in staging.read(data.name):
            digest.update(chunk)
    except (ObjectNotFound, ValueError):  # the latter: no object can have that name
        return False
    return digest.hexdigest() == data.sha256
