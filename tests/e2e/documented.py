"""Whether an answer is what the API document says: its status, its type, and each of its headers."""

from collections.abc import Mapping
from typing import Any

TRANSPORT = frozenset(
    {"connection", "content-length", "content-type", "date", "server", "transfer-encoding"}
)
"""Not about the answer, or, as OpenAPI has it, not told among its headers."""


def faults(
    document: Mapping[str, Any], path: str, method: str, status: int, headers: Mapping[str, str]
) -> list[str]:
    """What is not as the document says; *path* is its own, with parameters, *headers* in lower case."""
    operation = document["paths"][path].get(method.lower())
    if operation is None:
        if status == 405 and headers.get("allow"):
            return []
        return [] if status == 401 else [f"{method} is not documented, and answered with {status}"]
    response = operation["responses"].get(str(status))
    if response is None:
        return [f"the status {status} is not documented"]
    found = []
    known = {name.lower(): header for name, header in response["headers"].items()}
    found += [
        f"the header {name} is not documented" for name in headers.keys() - known.keys() - TRANSPORT
    ]
    for name, header in known.items():
        if "$ref" in header:
            header = document["components"]["headers"][header["$ref"].rpartition("/")[2]]
        if header["required"] and name not in headers:
            found.append(f"the header {name} is missing")
    types = response.get("content")
    if types is not None and headers.get("content-type") not in types:
        found.append(f"the type {headers.get('content-type')} is not documented")
    return found
