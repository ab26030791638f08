"""Where the data of a server lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from polytope_server.config.embedded import SqliteQueueSection, SqliteStoreSection
from polytope_server.config.loading import are_there, load
from polytope_server.config.model import Choice, Config, UsageSection
from polytope_server.errors import ConfigurationError
from polytope_server.queue.hints import has_listeners
from polytope_server.queue.sqlite import hints_directory
from polytope_server.registry import open_backend
from polytope_server.request_store import RequestStore
from polytope_server.staging import Staging
from polytope_server.standalone import PASSWORD, configuration

_TOOLS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "mongodb": "mongodump --oplog and mongorestore of the whole database, or snapshots of its disks; "
        "see docs/backends.md"
    }
)
"""What backs up a request store that is not ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a configuration, or a standalone server's directory, says about where its data lie.

    `directory` is the latter, None if it is no standalone server.
    """

    request_store: Choice
    queue: Choice
    staging: Choice
    usage: UsageSection
    directory: Path | None

    @property
    def database(self) -> Path:
        """The file of the embedded request store.

        Raises:
            ConfigurationError: the request store is another one.
        """
        if self.request_store.name != "sqlite":
            tools = _TOOLS.get(self.request_store.name, "the tools that come with it")
            raise ConfigurationError(
                f"request_store: {self.request_store.name!r} is not an embedded one; use {tools}"
            )
        where = "request_store.sqlite"
        return SqliteStoreSection.read(self.request_store.options, where=where).path.expanduser()

    @property
    def password(self) -> Path | None:
        """The file with the password of a standalone server's own user."""
        return self.directory / PASSWORD if self.directory else None

    def open_store(self) -> RequestStore:
        """The request store, which must be there already."""
        if self.request_store.name == "sqlite" and not self.database.exists():
            raise ConfigurationError(f"{self.database}: there is no such database")
        store: RequestStore = open_backend(
            "request_store", self.request_store.name, self.request_store.options
        )
        return store

    def open_staging(self) -> Staging:
        staging: Staging = open_backend("staging", self.staging.name, self.staging.options)
        return staging

    def is_in_use(self) -> bool:
        """Whether a frontend, broker or worker is running; only known of those with the embedded queue."""
        if self.queue.name != "sqlite":
            return False
        section = SqliteQueueSection.read(self.queue.options, where="queue.sqlite")
        return has_listeners(hints_directory(section))


def place_of(
    files: Sequence[Path], data_dir: Path | None, *, strict: bool, environ: Mapping[str, str]
) -> Place:
    """The place that the operator means; what *files* say goes before the layout of *data_dir*.

    Raises:
        ConfigurationError: none is named, or the files are wrong.
    """
    if data_dir is None:
        if not are_there(files, environ=environ):
            raise ConfigurationError(
                "whose data? name the directory of a standalone server with --data-dir DIR, or the "
                "configuration with -f FILE"
            )
        config = load(files, strict=strict, environ=environ).config
        return Place(
            request_store=config.backend("request_store"),
            queue=config.backend("queue"),
            staging=config.backend("staging"),
            usage=config.usage,
            directory=None,
        )
    directory = data_dir.expanduser().absolute()
    own = Config.model_validate(configuration(directory, port=1, password=None))
    config = own
    if are_there(files, environ=environ):
        config = load(files, strict=strict, environ=environ).config
    usage = config.usage
    return Place(
        request_store=config.request_store or own.backend("request_store"),
        queue=config.queue or own.backend("queue"),
        staging=config.staging or own.backend("staging"),
        usage=usage if usage.path else usage.model_copy(update={"path": own.usage.path}),
        directory=directory,
    )
