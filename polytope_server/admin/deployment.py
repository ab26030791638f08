"""A deployment as its configuration describes it, opened by somebody who may."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from polytope_server.admin.operator import Operator
from polytope_server.collection import Collection, collections_of
from polytope_server.config.loading import BASE_VARIABLE, are_there, load
from polytope_server.config.model import Config
from polytope_server.errors import BackendUnavailable, ConfigurationError
from polytope_server.queue import Queue, Topic
from polytope_server.registry import open_backend
from polytope_server.request_store import RequestStore
from polytope_server.staging import Staging


class Deployment:
    """Its back-ends, each opened when it is first asked for.

    Raises:
        ConfigurationError, BackendUnavailable: when one is asked for that cannot be opened.
    """

    def __init__(self, config: Config, operator: Operator) -> None:
        self.config, self.operator = config, operator

    @cached_property
    def store(self) -> RequestStore:
        store: RequestStore = self._open("request_store")
        return store

    @cached_property
    def queue(self) -> Queue:
        queue: Queue = self._open("queue")
        return queue

    @cached_property
    def staging(self) -> Staging:
        staging: Staging = self._open("staging")
        return staging

    @cached_property
    def collections(self) -> Mapping[str, Collection]:
        return collections_of(self.config)

    def hint(self, topic: Topic, text: str) -> None:
        """Wake whoever it concerns. With the queue away they find out by themselves."""
        try:
            queue = self.queue
        except BackendUnavailable:
            return
        queue.hint(topic, text)

    def _open(self, abstraction: Literal["request_store", "queue", "staging"]) -> Any:
        choice = self.config.backend(abstraction)
        return open_backend(abstraction, choice.name, choice.options)


def configuration(files: Sequence[Path], data_dir: Path | None) -> Config:
    """The configuration of these files, or of the standalone server of a directory and its files.

    Raises:
        ConfigurationError: there is none, or it cannot be used.
    """
    environ: Mapping[str, str] = os.environ
    if data_dir is not None:
        made = data_dir.expanduser() / "standalone.yaml"
        if not made.exists():
            raise ConfigurationError(
                f"--data-dir: {made} cannot be found; no standalone server has run there"
            )
        environ = {**environ, BASE_VARIABLE: str(made)}
    elif not are_there(files, environ=environ):
        raise ConfigurationError(
            "name the configuration with -f FILE, or a standalone server's directory with "
            "--data-dir DIR"
        )
    return load(files, strict=False, environ=environ).config
