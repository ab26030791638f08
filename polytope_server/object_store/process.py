"""The object store as a process of its own."""

from polytope_server.config.model import Config
from polytope_server.config.staging import ObjectStoreSection
from polytope_server.errors import ConfigurationError
from polytope_server.object_store import run as serve


def run(config: Config) -> None:
    """Serve objects until SIGTERM.

    Raises:
        ConfigurationError: it cannot start.
    """
    choice = config.staging
    if choice is None or choice.name != "polytope":
        raise ConfigurationError(
            "staging: must be 'polytope: {...}' for the object store, which serves that section"
        )
    serve(ObjectStoreSection.read(choice.options, where="staging.polytope"))
