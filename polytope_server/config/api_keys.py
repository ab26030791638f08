"""The section about API keys."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from polytope_server.config.section import Section


class ApiKeysSection(Section):
    """``api-keys``"""

    authenticator: Annotated[Mapping[str, Any], Field(repr=False)] = Field(default_factory=dict)
    """Who else tells users by keys: one authenticator with its `type`. Its users are of realm `polytope`."""
