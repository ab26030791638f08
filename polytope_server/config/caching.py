"""Section of the cache that lives in the process."""

from typing import Annotated

from pydantic import Field

from polytope_server.config.section import Section


class MemoryCacheSection(Section):
    """``caching.memory``"""

    max_entries: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    """How many values are held at most; beyond it those unread for longest are forgotten."""
