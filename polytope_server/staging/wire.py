"""What the object store and its client have to agree on."""

from typing import Final

from polytope_server.signatures import derived_key
from polytope_server.staging import CHUNK_BYTES

PART_BYTES: Final = 4 * CHUNK_BYTES
"""Larger objects come in parts of this size."""
MODIFIED_AT: Final = "X-Modified-At"
"""Header with Unix seconds and their fraction."""
DOWNLOAD_NAME: Final = "name"
"""Parameter of a signed link: what the client's file is to be called."""
MEDIA_TYPE: Final = "type"
"""Parameter of a signed link: the object's Content-Type."""
SHA256: Final = "sha256"
"""Parameter of a signed link: the object's digest, in hexadecimal."""
RESERVED: Final = frozenset({"healthz", "readyz"})
"""Names of the store's own pages, which no object can have."""


def signing_key(token: str) -> bytes:
    """The key of signed links, which gives away nothing of the token."""
    return derived_key(token.encode(), purpose="polytope object store links")
