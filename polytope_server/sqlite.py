"""SQLite as our embedded back-ends use it: one connection a thread, short transactions."""

import fcntl
import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from polytope_server.errors import BackendUnavailable, ConfigurationError

logger = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 30.0
_LOOK_AGAIN_S = (0.0002, 0.001)
_CHECKPOINT_PAGES = 4000
"""Of 4 KiB: a WAL that is written back less often writes pages back once that change often."""


class Database:
    """A database file that many threads and processes share.

    Every thread has its own two connections, made when it first asks: a durable one, whose commits
    survive a power cut (`synchronous=FULL`), and one for hints, whose commits survive only the process.

    Args:
        path: the file; its directory is made, closed to others.
        schema: the statements that lead from each version to the next, the first from an empty file; their
            number is the version, kept in the file. An older file is brought up to date when it is opened.
            Each step only adds: one version's difference is tolerated, so that old and new processes can run
            side by side during an upgrade.
        replaceable: for a file that holds no truth: nothing of it need survive a power cut, and it is made
            again if somebody removes or damages it. It has no WAL, whose parts could outlive it.

    Raises:
        ConfigurationError: the file cannot be opened or made, is not ours, or too new for us.
    """

    def __init__(self, path: Path, *, schema: Sequence[str], replaceable: bool = False) -> None:
        self._path, self._schema, self._replaceable = path, schema, replaceable
        self._threads = threading.local()
        self._writing = threading.Lock()
        try:
            self._make()
            self._identity = _identity(os.stat(self._path))
        except OSError as exc:
            raise ConfigurationError(
                f"{path}: cannot be used as a database: {exc.strerror}"
            ) from exc
        except sqlite3.Error as exc:
            raise ConfigurationError(f"{path}: cannot be used as a database: {exc}") from exc

    def ping(self) -> None:
        """Return if the file answers and is ours; `BackendUnavailable` if not."""
        with self.errors():
            (version,) = self.connection().execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._make_again()
            raise BackendUnavailable(f"the embedded database {self._path.name} was emptied")

    def connection(self, *, durable: bool = True) -> sqlite3.Connection:
        """This thread's connection, in autocommit mode."""
        name = "durable" if durable and not self._replaceable else "hints"
        if self._replaceable:
            self._follow(name)
        elif _identity(os.stat(self._path)) != self._identity:
            # what we wrote into a file that nobody else sees would be lost
            raise BackendUnavailable(
                f"{self._path} is another file than the one that was opened; put that one back, or "
                "restart this process"
            )
        known: sqlite3.Connection | None = getattr(self._threads, name, None)
        if known is None:
            without = "OFF" if self._replaceable else "NORMAL"
            known = self._open(synchronous="FULL" if name == "durable" else without)
            setattr(self._threads, name, known)
        return known

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A write transaction, committed at the end or rolled back by an exception."""
        with self.errors(), self._turn():
            db = self.connection(durable=durable)
            _begin(db)
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Threads of one process take turns without looking, and wait no longer than for other processes."""
        if not self._writing.acquire(timeout=BUSY_TIMEOUT_S):
            raise BackendUnavailable(
                f"the embedded database {self._path.name} is busy for too long"
            )
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """SQLite's errors as ours. A replaceable file that is damaged is made again for the next call."""
        with our_errors():
            try:
                yield
            except sqlite3.DatabaseError as exc:
                if self._replaceable and _is_damaged(exc):
                    self._make_again()
                raise

    def _make_again(self) -> None:
        """Replace a file that is not ours any more, unless another process has just done so."""
        if not self._replaceable:
            return
        with self._replacing():
            try:
                with closing(self._open(synchronous="NORMAL")) as db:
                    (version,) = db.execute("PRAGMA user_version").fetchone()
                    db.execute("PRAGMA quick_check(1)").fetchone()
                    if version:
                        return
            except sqlite3.DatabaseError as exc:
                if not _is_damaged(exc):
                    raise
            logger.warning("Making a damaged database again", extra={"path": str(self._path)})
            self._path.unlink(missing_ok=True)

    @contextmanager
    def _replacing(self) -> Iterator[None]:
        """One process at a time decides that the file must be made again."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._path.with_name(self._path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make(self) -> None:
        """Make the file if it is missing, and see that it is ours."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # only a new file: closing a descriptor of a used one drops the locks this process has on it
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            logger.info("Made a new database", extra={"path": str(self._path)})
        # who turns a file to WAL while another does is not made to wait by SQLite, but refused
        Retrying(
            retry=retry_if_exception(_is_busy),
            wait=wait_random_exponential(multiplier=0.01, max=0.5),
            stop=stop_after_delay(BUSY_TIMEOUT_S),
            reraise=True,
        )(self._check)

    def _open(self, *, synchronous: str) -> sqlite3.Connection:
        db = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw",  # only `_make` makes a file
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        db.row_factory = sqlite3.Row
        db.execute(f"PRAGMA synchronous={synchronous}")
        db.execute("PRAGMA foreign_keys=ON")
        db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        if self._replaceable:
            _leave_wal(db)
        return db

    def _check(self) -> None:
        with closing(self._open(synchronous="FULL")) as db:
            if not self._replaceable:
                db.execute("PRAGMA journal_mode=WAL")
            db.execute("BEGIN IMMEDIATE")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0 and db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
                raise ConfigurationError(f"{self._path}: this is a database of something else")
            if version > len(self._schema) + 1:
                raise ConfigurationError(
                    f"{self._path}: has schema version {version}, this server reads {len(self._schema)}"
                )
            for step in self._schema[version:]:
                for statement in _statements(step):
                    db.execute(statement)
            if version < len(self._schema):
                db.execute(f"PRAGMA user_version={len(self._schema)}")
            db.execute("COMMIT")
        if 0 < version < len(self._schema):
            logger.info(
                "Brought a database up to date",
                extra={"path": str(self._path), "from": version, "to": len(self._schema)},
            )

    def _follow(self, name: str) -> None:
        """Forget this thread's connection if the file at our path is another one by now."""
        known: tuple[int, int] | None = getattr(self._threads, f"{name}_file", None)
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            with self._replacing():
                if not self._path.exists():
                    self._make()
            found = os.stat(self._path)
        identity = _identity(found)
        if known != identity:
            setattr(self._threads, name, None)
            setattr(self._threads, f"{name}_file", identity)


def _begin(db: sqlite3.Connection) -> None:
    """Begin to write once nobody else does.

    SQLite itself would sleep for longer and longer between two looks, up to a hundred times as long as
    others write.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    db.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as exc:
                if not _is_busy(exc) or time.monotonic() > deadline:
                    raise
            else:
                return
            time.sleep(random.uniform(*_LOOK_AGAIN_S))  # noqa: S311 -- so that two do not keep step
    finally:
        db.execute(f"PRAGMA busy_timeout={round(BUSY_TIMEOUT_S * 1000)}")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _leave_wal(db: sqlite3.Connection) -> None:
    """Journal in memory; but not while processes of the version before use the WAL that they have made.

    Who is killed in the middle of a commit may leave a damaged file behind, which is made again.
    """
    db.execute("PRAGMA busy_timeout=0")
    try:
        db.execute("PRAGMA journal_mode=MEMORY")
    except sqlite3.OperationalError as exc:
        if not _is_busy(exc):
            raise
    db.execute(f"PRAGMA busy_timeout={round(BUSY_TIMEOUT_S * 1000)}")


def _statements(text: str) -> Iterator[str]:
    """The statements of a text, one by one, for SQLite runs several only outside of a transaction."""
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        raise ValueError(f"an unfinished statement: {statement}")


@contextmanager
def our_errors() -> Iterator[None]:
    """SQLite's errors as ours: whatever fails here may work later."""
    try:
        yield
    except sqlite3.Error as exc:
        raise BackendUnavailable(f"the embedded database does not answer: {exc}") from exc
    except OSError as exc:
        raise BackendUnavailable(
            f"the embedded database cannot be reached: {exc.strerror}"
        ) from exc


def _is_damaged(error: sqlite3.DatabaseError) -> bool:
    primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or (
        primary == sqlite3.SQLITE_ERROR and str(error).startswith("no such table")
    )


def _is_busy(error: BaseException) -> bool:
    if not isinstance(error, sqlite3.OperationalError):
        return False
    primary = error.sqlite_errorcode & 0xFF
    return primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
