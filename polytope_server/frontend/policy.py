"""What a frontend works by, as far as it may change while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from polytope_server.authentication.identity import Identity
from polytope_server.collection import Collection
from polytope_server.config.api_keys import ApiKeysSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Who is let in, and what there is to be had. Each HTTP request is answered by one of them."""

    identity: Identity
    collections: Mapping[str, Collection]
    api_keys: ApiKeysSection = field(default_factory=ApiKeysSection)
