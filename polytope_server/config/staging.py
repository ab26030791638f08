"""Sections of the staging back-ends."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, StringConstraints, model_validator

from polytope_server.config.section import (
    Duration,
    HomePath,
    Secret,
    Section,
    Size,
    Text,
    Whole,
    is_address,
)

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", re.ASCII)
_KEY_PREFIX: Final = re.compile(
    r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?", re.ASCII
)
_LONGEST_KEY_PREFIX: Final = 700
_LONGEST_LINK_S: Final = 7 * 86400


def _url(value: str) -> str:
    if not is_address(value):
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


def _public_url(value: str) -> str:
    """With or without a scheme; nothing is none."""
    if "://" in value:
        return _url(value)
    return _url(f"http://{value}").removeprefix("http://") if value else ""


def _bucket(value: str) -> str:
    if not _BUCKET.fullmatch(value):
        raise ValueError(
            "the name of a bucket: at least 3 characters, of a-z 0-9 . - and no dot first"
        )
    return value


def _key_prefix(value: str) -> str:
    if value and not (_KEY_PREFIX.fullmatch(value) and len(value) <= _LONGEST_KEY_PREFIX):
        raise ValueError(
            "the beginning of object names such as polytope/, of A-Z a-z 0-9 . _ - and /, "
            "without one in front, nor two together, nor a dot behind one"
        )
    return value


class S3Section(Section):
    """``staging.s3``"""

    host: Annotated[Text, AfterValidator(_client_host)] = "0.0.0.0"  # noqa: S104 -- see below
    """The S3 server, with https:// or http:// before it, or without: `use_ssl`; 0.0.0.0 is this machine."""
    port: Annotated[Whole, Field(ge=1, le=65535)] = 8333
    """Of the S3 server."""
    bucket: Annotated[Text, AfterValidator(_bucket)] = "default"
    """Where the objects are; made if it is not there."""
    prefix: Annotated[Text, AfterValidator(_key_prefix)] = ""
    """What the names of our objects begin with, so that others can share the bucket."""
    access_key: Secret = SecretStr("")
    """Who we are; without it, requests are not signed."""
    secret_key: Secret = SecretStr("")
    """What requests are signed with."""
    region: Annotated[Text, StringConstraints(pattern=r"^[A-Za-z0-9-]+$")] = "us-east-1"
    """What the server calls its region; most that are not AWS take this one."""
    addressing_style: Literal["path", "virtual"] = "path"
    """Whether the bucket is in the path of URLs, or the first part of the host."""
    use_ssl: bool = False
    """Whether `host` and `url` that do not say it themselves mean https."""
    verify: bool = True
    """Whether the server's certificate is checked."""
    ca_file: HomePath | None = None
    """Certificates of the authorities that the server's may come from, in place of the usual ones."""
    url: Annotated[Text, AfterValidator(_public_url)] | None = None
    """Where clients reach the S3 server; without this and `use_presigned_url`, the frontend serves."""
    use_presigned_url: bool = False
    """Whether links are signed; if not, everybody must be allowed to read the objects."""
    presigned_url_expiry: Annotated[Duration, Field(ge=1)] = 86400.0
    """How long a signed link is good at most; never longer than 7d."""
    should_set_policy: bool = False
    """Whether we allow everybody to read the objects, though not to list them."""
    max_threads: Annotated[Whole, Field(ge=1, le=256)] = 4
    """How many parts of `buffer_size` one process sends at a time."""
    buffer_size: Annotated[Size, Field(ge=5 * _MIB, le=_GIB)] = 10 * _MIB
    """What is sent at a time; S3 takes no parts below 5M."""
    timeout: Annotated[Duration, Field(ge=0.1, le=30)] = 20.0
    """How long the server may say nothing, or be away in the middle of an upload or download."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        has_access, has_secret = (
            bool(each.get_secret_value()) for each in (self.access_key, self.secret_key)
        )
        if has_access != has_secret:
            missing = "secret_key" if has_access else "access_key"
            raise ValueError(
                f"with both access_key and secret_key, or neither; {missing} is missing"
            )
        if self.use_presigned_url and not has_access:
            raise ValueError("with access_key and secret_key, as use_presigned_url is on")
        if self.addressing_style == "virtual" and _is_address(self.endpoint_host):
            raise ValueError(
                "with a host name as host, not an address, as addressing_style is virtual"
            )
        return self

    @property
    def endpoint_host(self) -> str:
        """Where to connect: without scheme and port, and without brackets."""
        host = self.host.rpartition("://")[2]
        return "127.0.0.1" if host == "0.0.0.0" else host.strip("[]")  # noqa: S104

    @property
    def endpoint(self) -> str:
        """Where to connect, as a URL."""
        scheme, separator, _ = self.host.rpartition("://")
        host = self.endpoint_host
        return (
            f"{scheme if separator else self._scheme}://"
            f"{f'[{host}]' if ':' in host else host}:{self.port}"
        )

    @property
    def public_url(self) -> str | None:
        """`url` with its scheme."""
        if not self.url or self.url.startswith(("http://", "https://")):
            return self.url or None
        return f"{self._scheme}://{self.url}"

    @property
    def link_expiry_s(self) -> int:
        """`presigned_url_expiry`, as far as S3 allows."""
        return min(int(self.presigned_url_expiry), _LONGEST_LINK_S)

    @property
    def _scheme(self) -> str:
        return "https" if self.use_ssl else "http"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
