"""A standalone server's data without its processes, and what is put into them."""

import hashlib
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from polytope_server.config.embedded import SqliteStoreSection
from polytope_server.config.staging import LocalStagingSection
from polytope_server.data.backup import Report, back_up
from polytope_server.data.place import Place, place_of
from polytope_server.data.progress import Progress
from polytope_server.request import BINARY, GRIB, DataObject, Request, Status, Step, Verb
from polytope_server.request_store.sqlite import SqliteRequestStore
from polytope_server.staging.local import LocalStaging
from polytope_server.testing.request_store import finish, new_request, start


def silent(what: str, done: int, total: int) -> None:
    """Nobody looks."""


@dataclass(frozen=True, slots=True)
class Data:
    """A data directory."""

    directory: Path

    @property
    def place(self) -> Place:
        return place_of([], self.directory, strict=True, environ={})

    @property
    def database(self) -> Path:
        return self.directory / "requests.sqlite"

    @property
    def store(self) -> SqliteRequestStore:
        return SqliteRequestStore(SqliteStoreSection(path=self.database))

    @property
    def staging(self) -> LocalStaging:
        return LocalStaging(LocalStagingSection(root_dir=self.directory / "staging"))

    def put(self, name: str, data: bytes, *, media_type: str = GRIB) -> DataObject:
        with self.staging.create(name, media_type=media_type) as upload:
            upload.write(data)
            upload.commit()
        digest = hashlib.sha256(data).hexdigest()
        return DataObject(name=name, media_type=media_type, size_bytes=len(data), sha256=digest)

    def running(self) -> Request:
        store = self.store
        return start(store, store.add(new_request(request_id=str(uuid.uuid4()))))

    def finish(self, running: Request, data: bytes = b"GRIB7777") -> Request:
        return finish(self.store, running, result=self.put(f"{running.id}-1.grib", data))

    def finished(self, data: bytes = b"GRIB7777") -> Request:
        return self.finish(self.running(), data)

    def to_archive(self, data: bytes = b"GRIB7777") -> Request:
        """A request that waits, and whose data were uploaded."""
        store = self.store
        request = store.add(
            new_request(request_id=str(uuid.uuid4()), status=Status.UPLOADING, verb=Verb.ARCHIVE)
        )
        name = f"{request.id}-in-{uuid.uuid4().hex}.bin"
        given = self.put(name, data, media_type=BINARY)
        return store.apply(
            Step(id=request.id, source=Status.UPLOADING, target=Status.WAITING, input=given)
        )

    def back_up(
        self,
        destination: Path,
        *,
        objects: bool = True,
        may_link: bool = True,
        progress: Progress = silent,
    ) -> Report:
        return back_up(
            self.place, destination, objects=objects, may_link=may_link, progress=progress
        )


def requests_in(database: Path) -> dict[str, str]:
    """Status by id."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        return dict(db.execute("SELECT id, status FROM requests"))


def objects_in(directory: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in (directory / "staging" / "objects").glob("*/*")
    }


def at_the_end_of_the_store(action: Callable[[], None]) -> Progress:
    """Do something right after the store has been copied."""
    left = [action]

    def progress(what: str, done: int, total: int) -> None:
        if (what, done) == ("store", total) and left:
            left.pop()()

    return progress
