"""Sections of the caches."""

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from polytope_server.config.section import Duration, HomePath, Secret, Section, Text, Whole

_Host = Annotated[Text, StringConstraints(strip_whitespace=True, min_length=1, max_length=255)]
_Port = Annotated[Whole, Field(ge=1, le=65535)]
_Timeout = Annotated[Duration, Field(ge=0.05, le=60)]
_Prefix = Annotated[Text, StringConstraints(pattern=r"^[!-~]{0,100}$")]


class MemoryCacheSection(Section):
    """``caching.memory``"""

    max_entries: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    """How many values are held at most; beyond it those unread for longest are forgotten."""


class RedisCacheSection(Section):
    """``caching.redis``"""

    host: _Host = "localhost"
    """Where Redis is."""
    port: _Port = 6379
    """Its port."""
    db: Annotated[Whole, Field(ge=0)] = 0
    """The number of the database."""
    username: Text | None = None
    """Of Redis 6 and newer; left out, it is the default user."""
    password: Secret | None = None
    """Left out, there is none."""
    tls: bool = False
    """Whether it speaks TLS; its certificate is checked."""
    ca_file: HomePath | None = None
    """Certificates (PEM) of those who may have issued the server's; left out, the system's."""
    timeout: _Timeout = 0.5
    """How long an answer may take; then the server counts as away."""
    prefix: _Prefix = "polytope:"
    """All keys begin with it."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.ca_file is not None and not self.tls:
            raise ValueError("with tls: true where there is a ca_file")
        if self.username is not None and self.password is None:
            raise ValueError("with a password where there is a username")
        return self


class MemcachedCacheSection(Section):
    """``caching.memcached``"""

    host: _Host = "localhost"
    """Where memcached is."""
    port: _Port = 11211
    """Its port."""
    timeout: _Timeout = 0.5
    """How long an answer may take; then the server counts as away."""
    prefix: _Prefix = "polytope:"
    """All keys begin with it."""


class MongoCacheSection(Section):
    """``caching.mongodb``"""

    uri: Annotated[Text, Field(min_length=1)] = Field("mongodb://localhost:27017", repr=False)
    """Where MongoDB is, with options such as `tls=true&tlsCAFile=/etc/ca.pem`."""
    username: Text | None = None
    """With `password`; left out, there is none, or what is in `uri`."""
    password: Secret | None = None
    """With `username`."""
    database: Annotated[Text, StringConstraints(min_length=1)] = "cache"
    """Its database."""
    collection: Annotated[Text, StringConstraints(min_length=1)] = "cache"
    """Its collection; made, with an index, if it is not there."""
    timeout: _Timeout = 1.0
    """How long an answer may take; then the server counts as away."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("with both username and password, or neither")
        return self
