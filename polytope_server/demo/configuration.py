"""What the demo's server is configured with, besides the embedded back-ends."""

from collections.abc import Mapping
from typing import Any, Final

REALM: Final = "demo"
FORECASTS: Final = "forecasts"
DEBUG: Final = "debug"
"""The collections: fields of the sample archive, and an echo."""


def demo_configuration(
    fdb_config: Mapping[str, Any], *, username: str, password: str
) -> dict[str, Any]:
    """Realm, datasources and collections as an operator would write them."""
    everybody = {REALM: ["default"]}
    tree = {
        "authentication": {
            REALM: {
                "authenticators": {
                    "local": {"type": "plain", "users": [{"uid": username, "password": password}]}
                }
            }
        },
        "api-keys": {"enabled": True},
        "datasources": {
            FORECASTS: {
                "type": "fdb",
                "repr": "sample forecasts",
                "defaults": {"class": "od", "expver": "0001", "domain": "g"},
                "match": {"class": ["od"], "expver": ["0001"], "stream": ["oper", "enfo"]},
                "fdb_config": dict(fdb_config),
            },
            DEBUG: {"type": "echo"},
        },
        "collections": {
            name: {"roles": everybody, "datasources": [name]} for name in (FORECASTS, DEBUG)
        },
    }
    return {key: _literal(value) for key, value in tree.items()}


def _literal(value: Any) -> Any:
    """The same, with no text in which a variable of the environment would be put."""
    match value:
        case str():
            return value.replace("$", "$$")
        case Mapping():
            return {key: _literal(item) for key, item in value.items()}
        case list() | tuple():
            return [_literal(item) for item in value]
    return value
