"""Section of the traces."""

import re
from collections.abc import Mapping
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from polytope_server.config.section import Secret, Section, Text

TRACES_PATH: Final = "/v1/traces"

_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e]*")


def _endpoint(url: str) -> str:
    try:
        parts = urlsplit(url)
        # reading the port checks it
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or parts.fragment or not url.isprintable():
        raise ValueError(
            "an address such as http://collector:4318, without user and fragment; credentials go into "
            "headers"
        )
    return url if parts.path.strip("/") else f"{url.rstrip('/')}{TRACES_PATH}"


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("a name")
    return text.strip()


def _headers(value: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
    for name, text in value.items():
        if not _HEADER.fullmatch(name) or not _VALUE.fullmatch(text.get_secret_value()):
            raise ValueError("a mapping of names of HTTP headers to texts of one line, in ASCII")
    return value


class TracingSection(Section):
    """``tracing``"""

    endpoint: Annotated[Text, AfterValidator(_endpoint)] | None = None
    """Where traces are sent by OTLP over HTTP; none are made if it is left out."""
    headers: Annotated[Mapping[str, Secret], AfterValidator(_headers)] = Field(
        default_factory=dict, repr=False
    )
    """Sent along, such as credentials."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of the requests, how many are traced; 1 is all."""
    service_name: Annotated[Text, AfterValidator(_name)] = "polytope-server"
    """What the processes are called, each with its own name behind it."""
