"""Sections of the embedded request store and queue."""

from polytope_server.config.section import HomePath, Section


class SqliteStoreSection(Section):
    """``request_store.sqlite``"""

    path: HomePath
    """The database file; its directory is made if it is not there."""


class SqliteQueueSection(Section):
    """``queue.sqlite``"""

    path: HomePath
    """The database file; may be removed at any time, as it holds no truth."""

    hints_dir: HomePath | None = None
    """Where the processes' wake-up sockets are; beside the database file unless given."""
