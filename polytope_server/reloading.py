"""A configuration that is changed while a process runs: checked as a whole, then taken as a whole.

What a process works by is one frozen value, made of a checked configuration. Whoever needs it is given
a `Current`, reads it once for each piece of work, and so never sees half of a change.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from polytope_server.collection import Collection, collections_of
from polytope_server.config.changes import changes, taken_up, users
from polytope_server.config.files import ConfigFiles
from polytope_server.config.model import Config
from polytope_server.errors import ConfigurationError
from polytope_server.lifecycle import Hangup
from polytope_server.observability.logging import configure

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Current(Generic[T]):
    """The newest of a row of values, each of which takes the place of the one before. For all threads."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    @property
    def value(self) -> T:
        return self._value

    def replace(self, value: T) -> None:
        self._value = value
        with self._lock:
            for listener in self._listeners:
                listener()

    @contextmanager
    def calling(self, listener: Callable[[], None]) -> Iterator[None]:
        """Have *listener* called, by whoever replaces the value, each time that this was done."""
        with self._lock:
            self._listeners.append(listener)
        try:
            yield
        finally:
            with self._lock:  # it is not called any more when we return
                self._listeners.remove(listener)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A configuration that is good as a whole."""

    config: Config
    collections: Mapping[str, Collection]

    @classmethod
    def of(cls, config: Config) -> "Snapshot":
        """Raises: ConfigurationError: one line for each fault that shows only when collections are made."""
        return cls(config=config, collections=collections_of(config))


Build = Callable[[Snapshot, T | None], T]
"""What a process works by, of a configuration and what it has worked by until now, if anything.

Raises `ConfigurationError` if it cannot be made of that.
"""


class Reload(Generic[T]):
    """Keeps what a process works by up to date with its files.

    Args:
        files: read once already; *config* was in them.
        hangup: after it, files are read whether they have changed or not.
        process: our name, as in the log.
        looks: False if another process of ours looks at the files and sends us SIGHUP.
        success: the log level of what was taken up.
        caution: the log level of warnings, and of what would need a restart.

    Raises:
        ConfigurationError: nothing can be made of *config*.
    """

    def __init__(
        self,
        files: ConfigFiles,
        hangup: Hangup,
        config: Config,
        build: Build[T],
        *,
        process: str,
        looks: bool = True,
        success: int = logging.INFO,
        caution: int = logging.WARNING,
    ) -> None:
        self._files, self._hangup = files, hangup
        self._config, self._build = config, build
        self._process, self._success, self._caution = process, success, caution
        self._interval_s = config.reload.interval if looks and files.are_watched else 0.0
        self._due = time.monotonic() + self._interval_s
        self._ended = threading.Event()
        self.current = Current(build(Snapshot.of(config), None))

    @property
    def config(self) -> Config:
        """What is in effect: what was there at the start, with all that was taken up since."""
        return self._config

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take changes up meanwhile, in a thread of its own."""
        thread = self.start()
        try:
            yield
        finally:
            self._ended.set()
            if thread.ident is not None and thread.is_alive():
                signal.pthread_kill(thread.ident, signal.SIGHUP)
            thread.join()

    def start(self) -> threading.Thread:
        """Take changes up from now on, in a thread that ends with the process."""
        thread = threading.Thread(target=self._run, name="reload", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while True:
            is_asked = self._hangup.came(self._interval_s or None)
            if self._ended.is_set():
                return
            if is_asked or self._files.have_changed():
                self._take()

    def turn(self) -> bool:
        """Take a change up if there is one, or if that is asked for; whether the files were good.

        For processes that have no thread for it. Never raises, and looks no more often than configured.
        """
        is_asked = self._hangup.came()
        if not is_asked:
            if not self._interval_s or time.monotonic() < self._due:
                return False
            self._due = time.monotonic() + self._interval_s
        return (is_asked or self._files.have_changed()) and self._take()

    def _take(self) -> bool:
        try:
            self._read_again()
        except ConfigurationError as exc:
            refuse(exc)
            return False
        except Exception:
            # Somebody else's section may raise anything, and what runs goes on by what it has.
            logger.exception("the configuration could not be read, the old one stays")
            return False
        return True

    def _read_again(self) -> None:
        loaded = self._files.load()
        snapshot = Snapshot.of(taken_up(self._config, loaded.config))
        found = changes(self._config, loaded.config, process=self._process)
        value = self._build(snapshot, self.current.value) if found else self.current.value
        for warning in loaded.warnings:
            logger.log(self._caution, "configuration: %s", warning)
        if found.need_restart:
            logger.log(self._caution, "needs a restart: %s", ", ".join(found.need_restart))
        if not found:
            logger.log(self._success, "configuration read again: nothing changes before a restart")
            return
        log_level, self._config = self._config.logging.level, snapshot.config
        self.current.replace(value)
        logger.log(
            self._success,
            "configuration changed",
            extra={**found.named(), "users": users(self._config)},
        )
        if self._config.logging.level != log_level:
            configure(self._config.logging, process=self._process)


def refuse(error: ConfigurationError) -> None:
    """Say one line for each fault of a configuration that is not taken up."""
    for line in str(error).splitlines():
        logger.error("configuration refused, the old one stays: %s", line)
