"""Copies of the embedded store's file: taken while it is in use, checked, and made fit to begin from.

A copy is a plain SQLite file that no server uses yet, of any version of the schema that this server reads.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from polytope_server.errors import ConfigurationError
from polytope_server.request import DataObject
from polytope_server.request_store.sqlite import SCHEMA
from polytope_server.sqlite import BUSY_TIMEOUT_S, our_errors

_PAGES: Final = 2000
"""Of the database, copied between two calls for progress."""
_RUNTIME: Final = ("posts", "positions", "workers")
"""Tables that say only what the processes are doing at present."""
_AFTER_RESTORE: Final = "The server was restored from a backup; this request is run again."

_OBJECT: Final = "CASE WHEN status = 'processed' THEN result ELSE input END"
"""What a request needs: its result, or else its input, for one that has failed may start over."""
_NEEDS: Final = (
    "CASE WHEN status = 'processed' THEN result IS NOT NULL"
    " ELSE input_name IS NOT NULL AND input_name <> '' END"
)

Progress = Callable[[int, int], None]
"""How many are done, of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An object that a request needs: its result, or its input while somebody may still read it."""

    request_id: str
    data: DataObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a file holds: its version, requests by status, results, records of use, and API keys."""

    version: int
    requests: Mapping[str, int]
    results: int
    result_bytes: int
    usage: int
    keys: int
    """API keys, with those that have expired and are not forgotten yet."""


class Live:
    """The file of a store that may be in use; nothing is written to it, nor is it brought up to date.

    Raises:
        ConfigurationError: it is not there, not ours, or too new for us.
    """

    def __init__(self, path: Path) -> None:
        self._db = _opened(path)
        with _closed_on_error(self._db), our_errors():
            self._db.execute("PRAGMA query_only=ON")
            _check_version(self._db, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def summary(self) -> Summary:
        with our_errors():
            return _summary(self._db)

    def row(self, request_id: str) -> Mapping[str, Any] | None:
        """A request as it stands now, column by column; None if it is gone."""
        with our_errors():
            row = _row(self._db, request_id)
        return dict(row) if row is not None else None

    def copy(self, target: Path, progress: Progress) -> None:
        """Write all of it, as it is at one moment, to a new file; others may write meanwhile.

        Raises:
            ConfigurationError: the copy cannot be written.
            BackendUnavailable: the file does not answer.
        """
        _make(target)
        with our_errors(), closing(_opened(target)) as copy:
            copy.execute("PRAGMA synchronous=OFF")  # it is synced when it is whole
            # within one transaction SQLite need not begin again whenever somebody writes
            self._db.execute("BEGIN")
            try:
                self._db.execute("SELECT 1 FROM sqlite_schema").fetchone()
                self._db.backup(
                    copy, pages=_PAGES, progress=lambda _, left, all_: progress(all_ - left, all_)
                )
            finally:
                self._db.execute("ROLLBACK")
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, not three


class Copy:
    """A copy, opened to be checked, and changed unless it is *read_only*.

    Raises:
        ConfigurationError: it is not there, not ours, or too new for us.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._db = _opened(path, mode="ro" if read_only else "rw")
        with _closed_on_error(self._db), our_errors():
            _check_version(self._db, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def summary(self) -> Summary:
        with our_errors():
            return _summary(self._db)

    def check(self) -> None:
        """Have SQLite look at every page.

        Raises:
            ConfigurationError: it is damaged.
        """
        try:
            (said,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        except sqlite3.DatabaseError as exc:
            said = str(exc)
        if said != "ok":
            raise ConfigurationError(f"{self._path}: this database is damaged: {said}")

    def objects(self) -> Iterator[Held]:
        """All objects that the requests need, in order of the requests' ids; a page at a time.

        Requests up to the one that was yielded last may be changed meanwhile.
        """
        after = ""
        while page := self._page(after):
            for row in page:
                yield Held(request_id=row["id"], data=_object(row))
            after = page[-1]["id"]

    def needed(self) -> tuple[int, int]:
        """How many objects that are, and how many bytes."""
        with our_errors():
            count, size_bytes = self._db.execute(
                f"SELECT count(*), coalesce(sum(json_extract({_OBJECT}, '$.size_bytes')), 0)"
                f" FROM requests WHERE {_NEEDS}"
            ).fetchone()
        return int(count), int(size_bytes)

    def needs(self, request_id: str) -> DataObject | None:
        """The object that a request needs, if it needs any."""
        with our_errors():
            row = self._db.execute(
                f"SELECT {_OBJECT} AS object FROM requests WHERE {_NEEDS} AND id = ?", (request_id,)
            ).fetchone()
        return _object(row) if row is not None else None

    def row(self, request_id: str) -> Mapping[str, Any] | None:
        with our_errors():
            row = _row(self._db, request_id)
        return dict(row) if row is not None else None

    def put(self, row: Mapping[str, Any]) -> bool:
        """Have a request stand as it stands in another file; False if it does already."""
        known = self.row(row["id"]) or {}
        changed = [
            name
            for name, value in row.items()
            if name in known and name not in ("seq", "id") and known[name] != value
        ]
        if not changed:
            return False
        changes = ", ".join(f"{name} = :{name}" for name in changed)
        with our_errors():
            self._db.execute(f"UPDATE requests SET {changes} WHERE id = :id", dict(row))
        return True

    def remove(self, request_id: str) -> None:
        with our_errors():
            self._db.execute("DELETE FROM requests WHERE id = ?", (request_id,))

    def do_without(self, request_id: str) -> None:
        """The object that a request needs is lost: if it is the result, the request goes with it.

        One that is not finished will fail, and tell its user that the uploaded data are gone.
        """
        with our_errors():
            self._db.execute(
                "DELETE FROM requests WHERE id = ? AND status = 'processed'", (request_id,)
            )
            self._db.execute(
                "UPDATE requests SET input = json_set(input, '$.name', ''), input_name = NULL"
                " WHERE id = ?",
                (request_id,),
            )

    def make_ready(self, *, now: float) -> int:
        """Take away what the processes of the past were doing; how many requests they were running.

        These wait again, with their attempts as they were, before all others. What was queued is
        published by the first broker.
        """
        with our_errors():
            self._db.execute("BEGIN IMMEDIATE")
            tables = {row["name"] for row in self._db.execute("SELECT name FROM sqlite_schema")}
            for table in _RUNTIME:
                if table in tables:
                    self._db.execute(f"DELETE FROM {table}")
            count = self._db.execute(
                "UPDATE requests SET status = 'waiting', holder = NULL, lease_expires_at = NULL,"
                " bytes_staged = 0, message = ?, modified_at = ? WHERE status = 'processing'",
                (_AFTER_RESTORE, now),
            ).rowcount
            self._db.execute("COMMIT")
        return count

    def _page(self, after: str) -> Sequence[sqlite3.Row]:
        with our_errors():
            return self._db.execute(
                f"SELECT id, {_OBJECT} AS object FROM requests WHERE {_NEEDS} AND id > ?"
                " ORDER BY id LIMIT 200",
                (after,),
            ).fetchall()


def _object(row: sqlite3.Row) -> DataObject:
    return DataObject(**json.loads(row["object"]))


def _make(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as exc:
        raise ConfigurationError(f"{path}: cannot be written: {exc.strerror}") from exc


def _opened(path: Path, *, mode: str = "rw") -> sqlite3.Connection:
    if not path.is_file():
        raise ConfigurationError(f"{path}: there is no such database")
    with our_errors():
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
        )
    db.row_factory = sqlite3.Row
    return db


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        is_ours = db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'requests'").fetchone()
    except sqlite3.DatabaseError as exc:
        if isinstance(exc, sqlite3.OperationalError):
            raise
        raise ConfigurationError(f"{path}: is no database, or a damaged one: {exc}") from exc
    if version == 0 or not is_ours:
        raise ConfigurationError(f"{path}: this is a database of something else")
    if version > len(SCHEMA) + 1:
        raise ConfigurationError(
            f"{path}: has schema version {version}, this server reads {len(SCHEMA)}"
        )


def _summary(db: sqlite3.Connection) -> Summary:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    counts = db.execute("SELECT status, count(*) FROM requests GROUP BY status").fetchall()
    results, result_bytes = db.execute(
        "SELECT count(*), coalesce(sum(json_extract(result, '$.size_bytes')), 0) FROM requests"
        " WHERE status = 'processed' AND result IS NOT NULL"
    ).fetchone()
    return Summary(
        version=version,
        requests=dict(sorted((status, count) for status, count in counts)),
        results=results,
        result_bytes=result_bytes,
        usage=_count(db, "usage"),
        keys=_count(db, "api_keys"),
    )


def _count(db: sqlite3.Connection, table: str) -> int:
    """Rows of a table that files of older versions do not have."""
    if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,)).fetchone():
        return 0
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def _row(db: sqlite3.Connection, request_id: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute(
        "SELECT * FROM requests WHERE id = ?", (request_id,)
    ).fetchone()
    return row


@contextmanager
def _closed_on_error(db: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        db.close()
        raise
