"""One door to every back-end, ours and everybody's: entry points, loaded only when named."""

import functools
from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, Final

from polytope_server.errors import ConfigurationError

_OURS: Final = "polytope-server"


def backends(abstraction: str) -> EntryPoints:
    """The installed back-ends of one abstraction, by name; none of them is imported."""
    return entry_points(group=f"polytope_server.{abstraction}")


@functools.cache
def load_backend(abstraction: str, name: str) -> Any:
    """The class of one back-end, imported now, and found at once when it is asked for again.

    Raises:
        ConfigurationError: there is no such back-end, several packages have one, or it cannot be
            imported, most likely for want of its library.
    """
    group = backends(abstraction)
    if name not in group.names:
        raise ConfigurationError(
            f"{abstraction}: there is no {name!r} here; choose one of {', '.join(sorted(group.names))}"
        )
    offers = {entry.value: entry for entry in group.select(name=name)}
    if len(offers) > 1:
        packages = " and ".join(sorted(_package(entry) for entry in offers.values()))
        raise ConfigurationError(
            f"{abstraction}: {name!r} is in {packages}; only one of them can be installed"
        )
    (entry,) = offers.values()
    package = _package(entry)
    try:
        return entry.load()
    except (ImportError, AttributeError) as exc:
        if package != _OURS:
            raise ConfigurationError(
                f"{abstraction}: {name!r} of the package {package} cannot be loaded: {exc}"
            ) from exc
        missing = exc.name if isinstance(exc, ModuleNotFoundError) else None
        if missing is None or missing.startswith("polytope_server"):
            raise  # a mistake of ours, not a missing extra
        raise ConfigurationError(
            f"{abstraction}: {name!r} needs {missing}: pip install 'polytope-server[{name}]'"
        ) from exc


def _package(entry: EntryPoint) -> str:
    """Whose back-end it is."""
    return entry.dist.name if entry.dist else "a package without a name"


def open_backend(abstraction: str, name: str, options: Mapping[str, Any]) -> Any:
    """A back-end made from its section of the configuration.

    Raises:
        ConfigurationError: see `load_backend`; or an option is wrong.
    """
    backend = load_backend(abstraction, name)
    return backend(backend.Config.read(options, where=f"{abstraction}.{name}"))
