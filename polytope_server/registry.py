"""One door to every back-end, ours and everybody's: entry points, loaded only when named."""

import functools
from collections.abc import Mapping
from importlib.metadata import EntryPoints, entry_points
from typing import Any

from polytope_server.errors import ConfigurationError


def backends(abstraction: str) -> EntryPoints:
    """The installed back-ends of one abstraction, by name; none of them is imported."""
    return entry_points(group=f"polytope_server.{abstraction}")


@functools.cache
def load_backend(abstraction: str, name: str) -> Any:
    """The class of one back-end, imported now, and found at once when it is asked for again.

    Raises:
        ConfigurationError: there is no such back-end, or its library is not installed.
    """
    group = backends(abstraction)
    if name not in group.names:
        raise ConfigurationError(
            f"{abstraction}: there is no {name!r} here; choose one of {', '.join(sorted(group.names))}"
        )
    try:
        return group[name].load()
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("polytope_server"):
            raise  # a mistake of ours, not a missing extra
        raise ConfigurationError(
            f"{abstraction}: {name!r} needs {exc.name}: pip install 'polytope-server[{name}]'"
        ) from exc


def open_backend(abstraction: str, name: str, options: Mapping[str, Any]) -> Any:
    """A back-end made from its section of the configuration.

    Raises:
        ConfigurationError: see `load_backend`; or an option is wrong.
    """
    backend = load_backend(abstraction, name)
    return backend(backend.Config.read(options, where=f"{abstraction}.{name}"))
