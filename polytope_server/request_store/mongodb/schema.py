"""What is kept where: the collections, their indexes, and which version of all this there is."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pymongo
from bson import SON
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from pymongo import ASCENDING, DESCENDING, IndexModel, MongoClient
from pymongo.collection import Collection
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from polytope_server.config.mongodb import MongoStoreSection
from polytope_server.request_store.mongodb.connection import Document, NeedsOperator

logger = logging.getLogger(__name__)

VERSION: Final = 1
"""Of the documents and indexes, kept in the document `schema` of the collection ``.meta``. Each version only
adds to the one before, so that processes of two neighbouring ones can run side by side."""
OLDEST_SERVER: Final = (6, 0)
EPOCH: Final = DatetimeMS(0)

_INDEXING_S: Final = 600.0
_INDEX_CONFLICTS: Final = frozenset({67, 85, 86, 11000})

_DURABLE: Final = WriteConcern("majority", j=True)
"""On the disks of a majority of the servers before it is acknowledged."""
_HINT: Final = WriteConcern(1)
CODEC: Final[CodecOptions[Document]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_MS
)


@dataclass(frozen=True, slots=True)
class Collections:
    """Where the store keeps things.

    `requests` is read as a majority of the servers has it, so that nobody is told what may be undone when
    another server takes over. `latest` is the same collection as the primary has it, to see whether one of
    our own writes has arrived; `hints` the same again, for writes that may be undone.
    """

    requests: Collection[Document]
    latest: Collection[Document]
    hints: Collection[Document]
    dispatched: Collection[Document]
    positions: Collection[Document]
    posts: Collection[Document]
    secrets: Collection[Document]
    marks: Collection[Document]
    workers: Collection[Document]
    audit: Collection[Document]
    keys: Collection[Document]
    meta: Collection[Document]

    @classmethod
    def of(
        cls, client: MongoClient[Document], config: MongoStoreSection, *, in_replica_set: bool
    ) -> "Collections":
        database = client.get_database(config.database, codec_options=CODEC)

        def named(
            name: str, *, read: str = "local", write: WriteConcern = _DURABLE
        ) -> Collection[Document]:
            return database.get_collection(
                name, read_concern=ReadConcern(read), write_concern=write
            )

        def beside(name: str, *, write: WriteConcern = _DURABLE) -> Collection[Document]:
            return named(f"{config.collection}.{name}", write=write)

        return cls(
            # what a server that is alone has, its majority has
            requests=named(config.collection, read="majority" if in_replica_set else "local"),
            latest=named(config.collection),
            hints=named(config.collection, write=_HINT),
            dispatched=beside("dispatched", write=_HINT),
            positions=beside("positions", write=_HINT),
            posts=beside("posts"),
            secrets=beside("secrets"),
            marks=beside("marks"),
            workers=beside("workers", write=_HINT),
            audit=beside("audit"),
            keys=beside("keys"),
            meta=beside("meta"),
        )


def _index(name: str, *fields: str, **options: Any) -> IndexModel:
    """On these fields in this order; a minus means descending."""
    keys = [(field.lstrip("-"), DESCENDING if field[0] == "-" else ASCENDING) for field in fields]
    return IndexModel(keys, name=name, **options)


def _with(field: str, least: Any) -> Mapping[str, Any]:
    """Only documents that have a field; queries must ask for values of it, and all of these are not less."""
    return {"partialFilterExpression": {field: {"$gte": least}}}


# What stands in a field is said in documents.py. Fields that only some requests have (`line`, `active`,
# `seat`, ...) keep the rest out of their indexes: a step then changes few of them, and the questions of the
# scheduler never meet a request that is finished.
REQUESTS: Final[Sequence[IndexModel]] = (
    _index("by_user", "user_id", "created_at", "_id"),
    _index("by_realm", "user.realm", "created_at", "_id"),
    _index("by_place", "state", "collection", "created_at", "_id"),
    _index("by_age", "state", "created_at", "_id"),
    _index("by_id", "state", "_id", "modified_at", "begun_at"),
    _index("line", "line", "turn", "created_at", "_id"),
    _index("line_of_user", "line", "user_id", "turn", "created_at", "_id"),
    _index("oldest_in_line", "line", "modified_at"),
    _index("active", "active", "user_id", **_with("active", "")),
    _index("lease", "lease_expires_at", sparse=True),
    _index("staged", "staged_at", "_id", **_with("staged_at", EPOCH)),
    _index("usage", "usage_at", "_id", **_with("usage_at", EPOCH)),
    _index("further_usage", "usage_more_at", sparse=True),
    # one request for each, however many frontends are at it: see admission.py
    _index("one_idempotency_key", "idempotency_key", unique=True, sparse=True),
    _index("one_seat", "seat", unique=True, sparse=True),
    _index("one_claim", "claim", unique=True, sparse=True),
)
MARKS: Final[Sequence[IndexModel]] = (_index("on", "kind", "on", "name"),)
AUDIT: Final[Sequence[IndexModel]] = (
    _index("latest", "-at", "-_id"),
    _index("by_target", "target", "-at", "-_id"),
)
KEYS: Final[Sequence[IndexModel]] = (
    _index("one_digest", "digest", unique=True),
    _index("one_seat", "seat", unique=True),
    _index("by_user", "user_id", "created_at", "_id"),
    _index("by_expiry", "expires_at"),
)


def prepare(
    client: MongoClient[Document], collections: Collections, *, where: str, timeout_s: float
) -> bool:
    """See that the server can hold the requests, and make the indexes that are missing.

    Returns whether it is one of a replica set, or a way to one. May be cut off anywhere, and be done by
    several processes at once.

    Raises:
        NeedsOperator: it cannot.
    """
    with pymongo.timeout(timeout_s):
        _check_server(client.admin.command("buildInfo"), where)
        hello = client.admin.command("hello")
        found = collections.meta.find_one({"_id": "schema"})
        version = int(found["version"]) if found else 0
        if version > VERSION + 1:
            raise NeedsOperator(
                f"{where}: {collections.requests.full_name} has schema version {version}, this server "
                f"reads {VERSION}"
            )
        missing = [
            (collection, index)
            for collection, indexes in (
                (collections.latest, REQUESTS),
                (collections.marks, MARKS),
                (collections.audit, AUDIT),
                (collections.keys, KEYS),
            )
            for index in _missing(collection, indexes)
        ]
    with pymongo.timeout(_INDEXING_S):  # what others keep in our collection may be much
        for collection, index in missing:
            _make(collection, index, where)
    with pymongo.timeout(timeout_s):
        if version < VERSION:  # last, so that whoever finds the version finds the indexes
            collections.meta.update_one(
                {"_id": "schema"}, {"$max": {"version": VERSION}}, upsert=True
            )
        _tell_of_strangers(collections.latest)
    return "setName" in hello or hello.get("msg") == "isdbgrid"


def is_whole(collections: Collections) -> bool:
    """Whether what `prepare` has made is there. It writes, but nothing new, and so fails if we may not."""
    written = collections.meta.update_one({"_id": "schema"}, {"$max": {"version": VERSION}})
    return bool(written.matched_count) and not _missing(collections.latest, REQUESTS)


def _missing(
    collection: Collection[Document], indexes: Sequence[IndexModel]
) -> Sequence[IndexModel]:
    there = {index["name"]: dict(index["key"]) for index in collection.list_indexes()}
    return [
        index
        for index in indexes
        if there.get(index.document["name"]) != dict(index.document["key"])
    ]


def _make(collection: Collection[Document], index: IndexModel, where: str) -> None:
    try:
        collection.create_indexes([index])
    except OperationFailure as exc:
        if exc.code not in _INDEX_CONFLICTS:
            raise
        raise NeedsOperator(
            f"{where}: the index {index.document['name']} of {collection.full_name} cannot be made beside "
            f"what is there: {(exc.details or {}).get('errmsg', exc)}"
        ) from exc


def _check_server(build: Document, where: str) -> None:
    ferret = str(build.get("ferretdbVersion") or _inner(build.get("ferretdb"), "version") or "")
    if re.match(r"v?[01]\.", ferret):
        raise NeedsOperator(
            f"{where} is FerretDB {ferret}, which cannot hold the requests: it changes a document without "
            "making sure that nobody else does at the same time, and so would give one request to two "
            "workers. Use MongoDB 6.0 or later"
        )
    if ferret:
        logger.warning("FerretDB has not been tried with this server", extra={"version": ferret})
    version = tuple(int(part) for part in build.get("versionArray", ())[:2])
    if version < OLDEST_SERVER:
        raise NeedsOperator(
            f"{where} is MongoDB {build.get('version', 'of an unknown version')}, which is too old to hold "
            "the requests. Use MongoDB 6.0 or later"
        )


def _inner(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict | SON) else None


def _tell_of_strangers(requests: Collection[Document]) -> None:
    """Count what others keep in our collection. No question of ours asks for such documents."""
    strangers = requests.count_documents({"user_id": None})
    if strangers:
        logger.warning(
            "The collection has records of another schema, of an older server perhaps; they are left alone",
            extra={"collection": requests.full_name, "records": strangers},
        )
