"""Sections of the embedded request store and queue."""

from pathlib import Path

from polytope_server.config.section import Section


class SqliteStoreSection(Section):
    """``request_store.sqlite``"""

    path: Path
    """The database file; its directory is made if it is not there."""


class SqliteQueueSection(Section):
    """``queue.sqlite``"""

    path: Path
    """The database file; may be removed at any time, as it holds no truth."""

    hints_dir: Path | None = None
    """Where the processes' wake-up sockets are; beside the database file unless given."""
