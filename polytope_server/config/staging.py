"""Sections of the staging back-ends."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints

from polytope_server.config.section import Duration, HomePath, Secret, Section, Size, Text, Whole

_MIB: Final = 1 << 20
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if (
        not usable
        or "@" in parts.netloc
        or parts.query
        or parts.fragment
        or not value.isprintable()
    ):
        raise ValueError(
            "an address such as https://objects.example.org, without user, query and fragment"
        )
    return value.rstrip("/")


def _client_host(value: str) -> str:
    """Where to connect; a host with ``http://`` or ``https://`` before it, or without for http."""
    scheme, separator, rest = value.rstrip("/").partition("://")
    host = rest if separator else scheme
    if (separator and scheme not in ("http", "https")) or not _is_host(host):
        raise ValueError("a host name or address such as object-store, with https:// for TLS")
    return value.rstrip("/")


def _is_host(host: str) -> bool:
    if _HOST_NAME.fullmatch(host):
        return True
    try:
        ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


class LocalStagingSection(Section):
    """``staging.local``"""

    root_dir: HomePath
    """Where the objects lie; made, closed to others, if it is not there."""


class ObjectStoreSection(Section):
    """``staging.polytope``: the object store itself, and how the other processes reach it."""

    host: Annotated[Text, AfterValidator(_client_host)] = "127.0.0.1"
    """Where the other processes connect; 0.0.0.0 is this machine."""
    port: Annotated[Whole, Field(ge=0, le=65535)] = 8000
    """Where the store listens and the other processes connect."""
    url: Annotated[Text, AfterValidator(_url)] | None = None
    """Where clients reach the store; if left out, the frontend passes the data on."""
    token: Annotated[Secret, Field(min_length=16)]
    """Shared by the store and its users; also signs the links."""
    timeout: Annotated[Duration, Field(ge=0.1, le=3600)] = 30.0
    """How long the store may take to answer, or to come back while something is uploaded."""
    bind_to: Annotated[Text, StringConstraints(strip_whitespace=True, min_length=1)] = "127.0.0.1"
    """Where the store listens."""
    root_dir: HomePath = Path("/data")
    """Where the store keeps the objects."""
    threads: Annotated[Whole, Field(ge=1, le=1000)] = 16
    """Of the store's process, for its disk."""
    max_connections: Annotated[Whole, Field(ge=1)] = 1000
    """Of the store's process."""
    idle_timeout: Annotated[Duration, Field(ge=0.01)] = 75.0
    """After it, a connection on which nothing moves is closed."""
    graceful_timeout: Duration = 60.0
    """What running transfers may still take after SIGTERM."""
    max_object: Annotated[Size, Field(ge=_MIB)] = 1 << 40
    """Of one object."""
    metrics_bind_to: Annotated[Text, StringConstraints(strip_whitespace=True, min_length=1)] = (
        "127.0.0.1"
    )
    """Address of the store's listener for ``/metrics``."""
    metrics_port: Annotated[Whole, Field(ge=0, le=65535)] | None = None
    """Of the store's listener for ``/metrics``; there is none if left out."""
