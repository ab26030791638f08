"""Which values of a configuration are not to be shown, by the names of their keys and by their shape."""

import functools
import re
from typing import Final

HIDDEN: Final = "***"

NAMES_OF_SECRETS: Final = (
    "password|passwd|passphrase|secret|token|api[-_.]?key|credential|authorization|signature"
)
"""A pattern, for any case: what names of secrets have in them."""

PLAIN_NAMES: Final = frozenset(
    {
        "bind_to",
        "bucket",
        "collection",
        "command",
        "database",
        "db",
        "host",
        "keep_alive_interval",
        "log_level",
        "max_threads",
        "name",
        "path",
        "port",
        "region",
        "root_dir",
        "search_base",
        "timeout",
        "tmp_dir",
        "type",
        "uri",
        "url",
        "use_ssl",
    }
)
"""Keys of back-ends that are not there yet, whose values are known to be no secrets."""

_NAME: Final = re.compile(
    rf"{NAMES_OF_SECRETS}|(?<![a-z])(?:keys?|pwd|pass|auth|jwt|bearer|cookie)(?![a-z])",
    re.IGNORECASE,
)
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# up to the last @ before a blank: a password may hold slashes and other @
_USER_INFO: Final = re.compile(r"(?<=://)[^\s'\"<>]*@")
_ASSIGNMENT: Final = re.compile(r"([\w.-]+)(=)([^\s&;,'\"]+)", re.ASCII)


@functools.lru_cache(maxsize=1024)
def looks_secret(name: str) -> bool:
    """Whether a value under that key is not to be shown: ``ecmwf-apikey``, ``secretKey``, ``token``."""
    return _NAME.search(_CAMEL.sub("_", name)) is not None


def masked(text: str) -> str:
    """The same without user-info in URLs and without what is assigned to secret names, as in queries."""
    return _ASSIGNMENT.sub(_masked_assignment, _USER_INFO.sub(f"{HIDDEN}@", text))


def _masked_assignment(match: re.Match[str]) -> str:
    return f"{match[1]}={HIDDEN}" if looks_secret(match[1]) else match[0]
