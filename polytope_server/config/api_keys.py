"""The section about API keys."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from polytope_server.config.section import Duration, Section, Whole


class ApiKeysSection(Section):
    """``api-keys``: keys that users make for their programs, with ``polytope login`` or over HTTP."""

    enabled: bool = False
    """Whether users can make keys, and log in with them; false also makes those useless that there are."""
    lifetime: Annotated[Duration, Field(ge=1)] = 90 * 86400.0
    """After it, a key expires; its user may ask for less."""
    max_per_user: Annotated[Whole, Field(ge=1, le=1000)] = 10
    """Keys that one user may have at once."""
    authenticator: Annotated[Mapping[str, Any], Field(repr=False)] = Field(default_factory=dict)
    """Who else tells users by keys: one authenticator with its `type`. Its users are of realm `polytope`."""
