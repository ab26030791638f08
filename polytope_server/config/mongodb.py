"""Section of the request store on MongoDB."""

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from polytope_server.config.section import Duration, HomePath, Secret, Section, Text, Whole

_DATABASE: Final = re.compile(r"[^/\\. \"$*<>:|?\x00]{1,63}")
_COLLECTION: Final = re.compile(r"(?!system\.)[^$\x00]{1,120}")


def _uri(value: str) -> str:
    scheme, separator, rest = value.strip().partition("://")
    if scheme not in ("mongodb", "mongodb+srv") or not separator or not rest.rpartition("@")[2]:
        raise ValueError(
            "an address such as mongodb://db1.example.org:27017,db2.example.org:27017/?replicaSet=rs0"
        )
    return value.strip()


def _database(value: str) -> str:
    if not _DATABASE.fullmatch(value):
        raise ValueError('a name of at most 63 characters, without blanks and any of /\\."$*<>:|?')
    return value


def _collection(value: str) -> str:
    if not _COLLECTION.fullmatch(value) or value.startswith(".") or value.endswith("."):
        raise ValueError(
            "a name of at most 120 characters, without $ and without a dot at its ends, that does not "
            "begin with system."
        )
    return value


class MongoStoreSection(Section):
    """``request_store.mongodb``"""

    uri: Annotated[Text, AfterValidator(_uri)] = Field("mongodb://localhost:27017", repr=False)
    """Where the servers are: all members of a replica set, with options such as `replicaSet=rs0&tls=true`."""
    username: Text | None = None
    """Of whoever may read and write the database; used only with `password`, and then in place of what
    `uri` says."""
    password: Secret | None = None
    """Of the user."""
    auth_source: Annotated[Text, AfterValidator(_database)] | None = None
    """The database that knows the user; what `uri` says, or `admin`, if left out."""
    database: Annotated[Text, AfterValidator(_database)] = "request_store"
    """Where everything lies."""
    collection: Annotated[Text, AfterValidator(_collection)] = "requests"
    """Of the requests. What else we keep is in collections whose names begin with this one and a dot."""
    timeout: Annotated[Duration, Field(ge=1, le=30)] = 10.0
    """How long the server may take over one thing that is asked of the store, before it counts as away."""
    max_pool_size: Annotated[Whole, Field(ge=1, le=10_000)] = 100
    """Connections of each process to each server, at most."""
    tls_ca_file: HomePath | None = None
    """Authorities, as PEM, that may vouch for the servers, in place of the system's; turns TLS on."""
    tls_cert_file: HomePath | None = None
    """Our certificate and its key, as PEM, for servers that want one; turns TLS on."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "WARNING"
    """Of the driver's own log. DEBUG shows commands, and so what users have asked for."""
