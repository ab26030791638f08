"""What a frontend works by, as far as it may change while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass

from polytope_server.authentication.identity import Identity
from polytope_server.collection import Collection


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Who is let in, and what there is to be had. Each HTTP request is answered by one of them."""

    identity: Identity
    collections: Mapping[str, Collection]
