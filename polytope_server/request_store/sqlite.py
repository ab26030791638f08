"""The embedded request store: one SQLite file for all processes of one machine."""

import heapq
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from polytope_server.audit import AuditEntry
from polytope_server.config.embedded import SqliteStoreSection
from polytope_server.errors import KeyNotFound, LimitReached, RequestNotFound, StepLost
from polytope_server.request import ACTIVE, DataObject, Lease, Request, Status, Step, Verb
from polytope_server.request_store import (
    FORGOTTEN_AFTER_S,
    ApiKey,
    Attendance,
    Forgotten,
    Mark,
    Staged,
    Usage,
    UsageKey,
    Waiting,
    Wanted,
)
from polytope_server.sqlite import Database, our_errors
from polytope_server.user import User

_REQUESTS = """
CREATE TABLE requests (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    user_id TEXT NOT NULL,
    user TEXT NOT NULL,
    verb TEXT NOT NULL,
    collection TEXT NOT NULL,
    datasource TEXT NOT NULL,
    user_request TEXT NOT NULL,
    coerced_request TEXT NOT NULL,
    status TEXT NOT NULL,
    message TEXT NOT NULL,
    created_at REAL NOT NULL,
    modified_at REAL NOT NULL,
    status_history TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    holder TEXT,
    lease_expires_at REAL,
    bytes_staged INTEGER NOT NULL DEFAULT 0,
    result TEXT,
    input TEXT,
    input_name TEXT,
    turn INTEGER NOT NULL DEFAULT 0,
    idempotency_key TEXT
);
CREATE INDEX by_user ON requests (user_id, created_at, id);
CREATE UNIQUE INDEX by_idempotency_key ON requests (user_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX unfinished ON requests (user_id)
    WHERE status IN ('uploading', 'waiting', 'queued', 'processing');
CREATE INDEX waiting ON requests (collection, user_id, turn, seq) WHERE status = 'waiting';
CREATE INDEX active ON requests (collection, user_id) WHERE status IN ('queued', 'processing');
CREATE INDEX queued ON requests (modified_at) WHERE status = 'queued';
CREATE INDEX leased ON requests (lease_expires_at) WHERE status = 'processing';
CREATE INDEX by_status ON requests (status, id)
    WHERE status IN ('uploading', 'waiting', 'queued', 'processing');
CREATE INDEX finished ON requests (modified_at, id) WHERE status IN ('processed', 'failed');
CREATE INDEX finished_by_id ON requests (id, modified_at) WHERE status IN ('processed', 'failed');
CREATE TABLE dispatched (collection TEXT PRIMARY KEY, turn INTEGER NOT NULL);
CREATE TABLE positions (collection TEXT PRIMARY KEY, ids TEXT NOT NULL);
CREATE TABLE posts (post TEXT PRIMARY KEY, holder TEXT NOT NULL, expires_at REAL NOT NULL);
CREATE TABLE secrets (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

# Records of use come by a trigger, so that a process of the version before leaves them, too. OR IGNORE, for
# two records with one key must not keep a request from its end. The condition of `by_place`, always true,
# keeps SQLite from taking this large index for questions that the small ones are made for: only those that
# repeat the condition may use it.
_USAGE_AND_OPERATIONS = """
ALTER TABLE requests ADD COLUMN first_attempt INTEGER NOT NULL DEFAULT 1;
ALTER TABLE requests ADD COLUMN started_over_at REAL;
CREATE INDEX by_place ON requests (status, collection, created_at, id) WHERE seq > 0;
CREATE TABLE usage (
    seq INTEGER PRIMARY KEY,
    finished_at REAL NOT NULL,
    id TEXT NOT NULL,
    record TEXT NOT NULL,
    UNIQUE (finished_at, id)
);
CREATE TRIGGER finished AFTER UPDATE OF status ON requests
WHEN NEW.status IN ('processed', 'failed') AND OLD.status <> NEW.status
BEGIN
    INSERT OR IGNORE INTO usage (finished_at, id, record) VALUES (NEW.modified_at, NEW.id, json_object(
        'user', json(NEW.user),
        'verb', NEW.verb,
        'collection', NEW.collection,
        'datasource', NEW.datasource,
        'status', NEW.status,
        'attempt', NEW.attempt,
        'size_bytes', coalesce(json_extract(NEW.result, '$.size_bytes'),
                               json_extract(NEW.input, '$.size_bytes'), 0),
        'submitted_at', coalesce(NEW.started_over_at, NEW.created_at),
        'started_at', json_extract(NEW.status_history, '$.processing')));
END;
CREATE TABLE marks (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (kind, name)
);
CREATE TABLE workers (
    name TEXT PRIMARY KEY,
    slots INTEGER NOT NULL,
    busy INTEGER NOT NULL,
    seen_at REAL NOT NULL
);
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    target TEXT NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX by_target ON audit (target, seq);
"""

_API_KEYS = """
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    user_id TEXT NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX keys_by_user ON api_keys (user_id, created_at, id);
CREATE INDEX keys_by_expiry ON api_keys (expires_at);
"""

SCHEMA = [_REQUESTS, _USAGE_AND_OPERATIONS, _API_KEYS]

_APPLY = """
UPDATE requests SET
    status = :target,
    modified_at = :now,
    status_history = CASE WHEN :starts_over
        THEN json_remove(json_set(status_history, '$.waiting', :now),
                         '$.queued', '$.processing', '$.processed', '$.failed')
        ELSE json_insert(status_history, '$.' || :target, :now) END,
    message = coalesce(:message, CASE WHEN :starts_over THEN '' ELSE message END),
    attempt = attempt + (:count_attempt OR :starts_over),
    first_attempt = CASE WHEN :starts_over THEN attempt + 1 ELSE first_attempt END,
    started_over_at = CASE WHEN :starts_over THEN :now ELSE started_over_at END,
    holder = CASE WHEN :target = 'processing' THEN :holder END,
    lease_expires_at = CASE WHEN :target = 'processing' THEN :lease_expires_at END,
    bytes_staged = CASE WHEN :target = 'processing' THEN 0 ELSE bytes_staged END,
    result = CASE WHEN :starts_over THEN NULL ELSE coalesce(:result, result) END,
    input = coalesce(:input, input),
    input_name = coalesce(:input_name, input_name)
WHERE id = :id AND status = :source
    AND (:target <> 'processing' OR attempt = :attempt)
    AND (:source <> 'processing' OR (holder = :holder AND attempt = :attempt))
    AND (NOT :only_if_expired OR lease_expires_at < :now)
    AND (NOT :starts_over OR verb <> 'archive' OR input_name IS NOT NULL)
RETURNING *
"""

_GIVE_TURN = """
UPDATE requests SET turn = max(
    coalesce((SELECT turn FROM dispatched WHERE collection = requests.collection), 0),
    coalesce((SELECT max(other.turn) + 1 FROM requests AS other
              WHERE other.status = 'waiting' AND other.collection = requests.collection
                AND other.user_id = requests.user_id AND other.seq <> requests.seq), 0))
WHERE id = ?
"""

_NOTE_DISPATCH = """
INSERT INTO dispatched SELECT collection, turn FROM requests WHERE id = ?
ON CONFLICT (collection) DO UPDATE SET turn = max(turn, excluded.turn)
"""

# A "loose index scan": one step of the index for each user, whatever the users' backlogs.
_WAITING_USERS = """
WITH RECURSIVE users (user_id) AS (
    SELECT min(user_id) FROM requests WHERE status = 'waiting' AND collection = :collection
    UNION ALL
    SELECT (SELECT min(user_id) FROM requests
            WHERE status = 'waiting' AND collection = :collection AND user_id > users.user_id)
    FROM users WHERE users.user_id IS NOT NULL)
SELECT user_id, (SELECT min(turn) FROM requests
                 WHERE status = 'waiting' AND collection = :collection
                   AND requests.user_id = users.user_id) AS head
FROM users WHERE user_id IS NOT NULL
"""

_WAITING_COLLECTIONS = """
WITH RECURSIVE names (name) AS (
    SELECT min(collection) FROM requests WHERE status = 'waiting'
    UNION ALL
    SELECT (SELECT min(collection) FROM requests
            WHERE status = 'waiting' AND collection > names.name)
    FROM names WHERE names.name IS NOT NULL)
SELECT name FROM names WHERE name IS NOT NULL
"""

_COLLECTIONS = """
WITH RECURSIVE names (name) AS (
    SELECT min(collection) FROM requests WHERE seq > 0 AND status = :status
    UNION ALL
    SELECT (SELECT min(collection) FROM requests
            WHERE seq > 0 AND status = :status AND collection > names.name)
    FROM names WHERE names.name IS NOT NULL)
SELECT name FROM names WHERE name IS NOT NULL
"""

_USERS_OF = """
WITH RECURSIVE users (user_id) AS (
    SELECT min(user_id) FROM requests
    UNION ALL
    SELECT (SELECT min(user_id) FROM requests WHERE user_id > users.user_id)
    FROM users WHERE users.user_id IS NOT NULL)
SELECT user_id FROM (
    SELECT user_id,
           (SELECT user FROM requests WHERE requests.user_id = users.user_id LIMIT 1) AS user
    FROM users WHERE user_id IS NOT NULL)
WHERE (:username IS NULL OR json_extract(user, '$.username') = :username)
  AND (:realm IS NULL OR json_extract(user, '$.realm') = :realm)
"""

_WAITING_OF_USER = """
SELECT turn, seq, id, user, attempt, modified_at FROM requests
WHERE status = 'waiting' AND collection = ? AND user_id = ? ORDER BY turn, seq LIMIT ?
"""

_AFTER_ALL = chr(0x10FFFF)
"""Comes after every id."""

# From the head of one user's line to that of the next user's, whatever is behind them.
_OLDEST_WAITING = """
WITH RECURSIVE heads (seq) AS (
    SELECT * FROM (SELECT seq FROM requests WHERE status = 'waiting'
                   ORDER BY collection, user_id, turn, seq LIMIT 1)
    UNION ALL
    SELECT coalesce(
        (SELECT seq FROM requests WHERE status = 'waiting'
            AND collection = here.collection AND user_id > here.user_id
         ORDER BY user_id, turn, seq LIMIT 1),
        (SELECT seq FROM requests WHERE status = 'waiting' AND collection > here.collection
         ORDER BY collection, user_id, turn, seq LIMIT 1))
    FROM heads JOIN requests AS here ON here.seq = heads.seq)
SELECT collection, min(modified_at) AS since FROM heads JOIN requests USING (seq)
GROUP BY collection
"""

_OLDEST = """
SELECT collection, min(modified_at) AS since FROM requests
WHERE status IN ('uploading', 'waiting', 'queued', 'processing') AND status = ?
GROUP BY collection
"""

_PAGE = 500
"""Most names or ids in one statement."""


class SqliteRequestStore:
    """See `polytope_server.request_store.RequestStore`."""

    Config = SqliteStoreSection

    def __init__(self, config: SqliteStoreSection) -> None:
        self._database = Database(config.path, schema=SCHEMA)

    def ping(self) -> None:
        self._database.ping()

    def now(self) -> float:
        return time.time()

    def add(
        self,
        request: Request,
        *,
        idempotency_key: str | None = None,
        max_unfinished: int | None = None,
    ) -> Request:
        now = self.now()
        user_id = request.user.id
        with self._database.transaction() as db:
            if idempotency_key is not None:
                earlier = db.execute(
                    "SELECT * FROM requests WHERE user_id = ? AND idempotency_key = ?",
                    (user_id, idempotency_key),
                ).fetchone()
                if earlier:
                    return _request(earlier)
            if max_unfinished is not None:
                (unfinished,) = db.execute(
                    "SELECT count(*) FROM requests WHERE user_id = ?"
                    " AND status IN ('uploading', 'waiting', 'queued', 'processing')",
                    (user_id,),
                ).fetchone()
                if unfinished >= max_unfinished:
                    raise LimitReached(
                        f"You have {unfinished} unfinished requests and may have {max_unfinished}; "
                        "wait for some of them, or revoke them."
                    )
            db.execute(
                "INSERT INTO requests (id, user_id, user, verb, collection, datasource, user_request,"
                " coerced_request, status, message, created_at, modified_at, status_history, attempt,"
                " idempotency_key, input, input_name)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    request.id,
                    user_id,
                    json.dumps(request.user.as_json()),
                    request.verb,
                    request.collection,
                    request.datasource,
                    request.user_request,
                    json.dumps(dict(request.coerced_request)),
                    request.status,
                    request.message,
                    now,
                    now,
                    json.dumps({request.status: now}),
                    request.attempt,
                    idempotency_key,
                    _object_text(request.input),
                    request.input.name if request.input else None,
                ),
            )
            if request.status is Status.WAITING:
                db.execute(_GIVE_TURN, (request.id,))
            return _request(_row(db, request.id))

    def get(self, request_id: str) -> Request:
        with our_errors():
            row = _row(self._database.connection(), request_id)
        if row is None:
            raise RequestNotFound(request_id)
        return _request(row)

    def get_many(self, ids: Collection[str]) -> Mapping[str, Request]:
        found: dict[str, Request] = {}
        for page in _pages(ids):
            for row in self._rows(f"SELECT * FROM requests WHERE id IN ({_marks(page)})", page):
                found[row["id"]] = _request(row)
        return found

    def apply(self, step: Step) -> Request:
        with self._database.transaction(durable=_must_last(step)) as db:
            row = self._take(db, step)
            if row is None:
                stands = _row(db, step.id)
        if row is not None:
            return _request(row)
        if stands is None:
            raise RequestNotFound(step.id)
        raise StepLost(f"{step.id} does not stand in {step.source} any more")

    def apply_each(self, steps: Sequence[Step]) -> Sequence[Request | None]:
        if not steps:
            return []
        with self._database.transaction(durable=any(map(_must_last, steps))) as db:
            rows = [self._take(db, step) for step in steps]
        return [_request(row) if row is not None else None for row in rows]

    def _take(self, db: sqlite3.Connection, step: Step) -> sqlite3.Row | None:
        now = self.now()
        lease = step.lease
        row: sqlite3.Row | None = db.execute(
            _APPLY,
            {
                "id": step.id,
                "source": step.source,
                "target": step.target,
                "now": now,
                "message": step.message,
                "count_attempt": int(step.count_attempt),
                "only_if_expired": int(step.only_if_expired),
                "starts_over": int(step.starts_over),
                "holder": lease.holder if lease else None,
                "attempt": lease.attempt if lease else None,
                "lease_expires_at": now + step.lease_s,
                "result": _object_text(step.result),
                "input": _object_text(step.input),
                "input_name": step.input.name if step.input else None,
            },
        ).fetchone()
        if row is None:
            return None
        if step.source in (Status.UPLOADING, Status.FAILED) and step.target is Status.WAITING:
            db.execute(_GIVE_TURN, (step.id,))
        if step.target is Status.QUEUED:
            db.execute(_NOTE_DISPATCH, (step.id,))
        if step.audit is not None:
            self._note(db, step.audit)
        return row

    def remove(
        self,
        request_id: str,
        *,
        user_id: str | None = None,
        only_unfinished: bool = False,
        audit: AuditEntry | None = None,
    ) -> Request:
        with self._database.transaction() as db:
            row = db.execute(
                "DELETE FROM requests WHERE id = ?1 AND (?2 IS NULL OR user_id = ?2)"
                " AND NOT (?3 AND status IN ('processed', 'failed')) RETURNING *",
                (request_id, user_id, only_unfinished),
            ).fetchone()
            if row is not None and audit is not None:
                self._note(db, audit)
        if row is None:
            raise RequestNotFound(request_id)
        return _request(row)

    def remove_if_finished(self, ids: Collection[str], *, not_after: float) -> Sequence[Forgotten]:
        gone: list[sqlite3.Row] = []
        for page in _pages(ids):
            with self._database.transaction() as db:
                # The plus signs keep SQLite from the partial indexes: the ids are quicker.
                gone += db.execute(
                    f"DELETE FROM requests WHERE id IN ({_marks(page)})"
                    " AND +status IN ('processed', 'failed') AND +modified_at <= ?"
                    " RETURNING id, user, result, input",
                    (*page, not_after),
                ).fetchall()
        return [
            Forgotten(
                id=row["id"],
                user=_user(row["user"]),
                objects=[
                    data
                    for data in (_object(row["result"]), _object(row["input"]))
                    if data is not None and data.name
                ],
            )
            for row in gone
        ]

    # --- a user's own

    def unfinished_ids(self, user_id: str) -> Sequence[str]:
        return self._column(
            "SELECT id FROM requests WHERE user_id = ?"
            " AND status IN ('uploading', 'waiting', 'queued', 'processing') ORDER BY created_at, id",
            (user_id,),
        )

    def requests_of(
        self,
        user_id: str,
        *,
        collection: str | None = None,
        after: Request | None = None,
        limit: int = 1000,
        max_bytes: int = 1 << 20,
    ) -> Sequence[Request]:
        page: list[Request] = []
        size_bytes = 0
        with (
            our_errors(),
            closing(
                self._database.connection().execute(
                    "SELECT * FROM requests WHERE user_id = ?1 AND (?2 IS NULL OR collection = ?2)"
                    " AND (created_at, id) > (?3, ?4) ORDER BY created_at, id LIMIT ?5",
                    (
                        user_id,
                        collection,
                        after.created_at if after else 0.0,
                        after.id if after else "",
                        limit,
                    ),
                )
            ) as rows,
        ):
            for row in rows:
                page.append(_request(row))
                size_bytes += len(row["user_request"]) + len(row["coerced_request"])
                if size_bytes >= max_bytes:
                    break
        return page

    def count(self, user_id: str) -> int:
        return int(
            self._rows("SELECT count(*) AS n FROM requests WHERE user_id = ?", (user_id,))[0]["n"]
        )

    # --- the broker

    def active_counts(self) -> Mapping[tuple[str, str], int]:
        rows = self._rows(
            "SELECT collection, user_id, count(*) AS n FROM requests"
            " WHERE status IN ('queued', 'processing') GROUP BY collection, user_id"
        )
        return {(row["collection"], row["user_id"]): row["n"] for row in rows}

    def queued_count(self) -> int:
        return int(self._rows("SELECT count(*) AS n FROM requests WHERE status = 'queued'")[0]["n"])

    def waiting_collections(self) -> Sequence[str]:
        return self._column(_WAITING_COLLECTIONS)

    def next_waiting(
        self, collection: str, *, leaving_out: Collection[str], limit: int
    ) -> Sequence[Waiting]:
        with our_errors():
            db = self._database.connection()
            heads = [
                (row["head"], row["user_id"])
                for row in db.execute(_WAITING_USERS, {"collection": collection})
                if row["user_id"] not in leaving_out
            ]
            # The first `limit` requests are among those of the `limit` users whose heads come first.
            lines = [
                db.execute(_WAITING_OF_USER, (collection, user_id, limit))
                for _, user_id in heapq.nsmallest(limit, heads)
            ]
            merged = heapq.merge(*lines, key=lambda row: (row["turn"], row["seq"]))
            return [
                Waiting(
                    id=row["id"],
                    user=_user(row["user"]),
                    attempt=row["attempt"],
                    since=row["modified_at"],
                )
                for row, _ in zip(merged, range(limit), strict=False)
            ]

    def queued_since(self, before: float, *, limit: int) -> Sequence[tuple[str, int]]:
        rows = self._rows(
            "SELECT id, attempt FROM requests WHERE status = 'queued' AND modified_at <= ?"
            " ORDER BY modified_at LIMIT ?",
            (before, limit),
        )
        return [(row["id"], row["attempt"]) for row in rows]

    def expired_leases(self, *, limit: int) -> Sequence[Request]:
        rows = self._rows(
            "SELECT * FROM requests WHERE status = 'processing' AND lease_expires_at < ?"
            " ORDER BY lease_expires_at LIMIT ?",
            (self.now(), limit),
        )
        return [_request(row) for row in rows]

    def put_positions(self, collection: str, ids: Sequence[str]) -> None:
        with self._database.transaction(durable=False) as db:
            db.execute(
                "INSERT INTO positions VALUES (?, ?)"
                " ON CONFLICT (collection) DO UPDATE SET ids = excluded.ids",
                (collection, json.dumps(list(ids))),
            )

    def positions(self, collection: str) -> Sequence[str]:
        rows = self._rows("SELECT ids FROM positions WHERE collection = ?", (collection,))
        return json.loads(rows[0]["ids"]) if rows else []

    def take_post(self, post: str, holder: str, *, duration_s: float) -> bool:
        now = self.now()
        with self._database.transaction(durable=False) as db:
            row = db.execute(
                "INSERT INTO posts VALUES (:post, :holder, :expires_at)"
                " ON CONFLICT (post) DO UPDATE SET holder = :holder, expires_at = :expires_at"
                " WHERE holder = :holder OR expires_at < :now RETURNING holder",
                {"post": post, "holder": holder, "expires_at": now + duration_s, "now": now},
            ).fetchone()
        return row is not None

    def leave_post(self, post: str, holder: str) -> None:
        with self._database.transaction(durable=False) as db:
            db.execute("DELETE FROM posts WHERE post = ? AND holder = ?", (post, holder))

    # --- the worker

    def renew(
        self, leases: Collection[tuple[str, Lease]], *, duration_s: float
    ) -> Collection[tuple[str, Lease]]:
        if not leases:
            return set()
        expires_at = self.now() + duration_s
        with self._database.transaction(durable=False) as db:
            return {
                (request_id, lease)
                for request_id, lease in leases
                if db.execute(
                    "UPDATE requests SET lease_expires_at = ?"
                    " WHERE id = ? AND status = 'processing' AND holder = ? AND attempt = ?",
                    (expires_at, request_id, lease.holder, lease.attempt),
                ).rowcount
            }

    def report(self, request_id: str, lease: Lease, *, bytes_staged: int) -> None:
        with self._database.transaction(durable=False) as db:
            db.execute(
                "UPDATE requests SET bytes_staged = ?"
                " WHERE id = ? AND status = 'processing' AND holder = ? AND attempt = ?",
                (bytes_staged, request_id, lease.holder, lease.attempt),
            )

    # --- the collector

    def finished_before(self, before: float, *, after: str = "", limit: int = 500) -> Sequence[str]:
        return self._column(
            "SELECT id FROM requests WHERE status IN ('processed', 'failed')"
            " AND id > ? AND modified_at < ? ORDER BY id LIMIT ?",
            (after, before, limit),
        )

    def unfinished_before(
        self, before: float, *, status: Status, after: str = "", limit: int = 500
    ) -> Sequence[Request]:
        rows = self._rows(
            "SELECT * FROM requests"
            " WHERE status IN ('uploading', 'waiting', 'queued', 'processing')"
            " AND status = ? AND id > ? AND coalesce(started_over_at, created_at) < ?"
            " ORDER BY id LIMIT ?",
            (status, after, before, limit),
        )
        return [_request(row) for row in rows]

    def results(
        self, *, after: tuple[float, str] = (0.0, ""), limit: int = 500
    ) -> Sequence[Staged]:
        rows = self._rows(
            "SELECT id, result, modified_at FROM requests WHERE status IN ('processed', 'failed')"
            " AND (modified_at, id) > (?, ?) AND result IS NOT NULL"
            " ORDER BY modified_at, id LIMIT ?",
            (*after, limit),
        )
        return [
            Staged(
                id=row["id"],
                name=data["name"],
                size_bytes=data["size_bytes"],
                modified_at=row["modified_at"],
            )
            for row in rows
            for data in (json.loads(row["result"]),)
        ]

    def forget_input(self, request_id: str, data: DataObject) -> bool:
        with self._database.transaction() as db:
            changed = db.execute(
                "UPDATE requests SET input = json_set(input, '$.name', ''), input_name = NULL"
                " WHERE id = ? AND input_name = ? AND +status IN ('processed', 'failed')",
                (request_id, data.name),
            ).rowcount
        return changed > 0

    # --- the operators

    def find(
        self,
        wanted: Wanted,
        *,
        after: Request | None = None,
        newest_first: bool = False,
        limit: int = 25,
    ) -> Sequence[Request]:
        page, bounds = _page(wanted, after, newest_first=newest_first)
        with our_errors():
            db = self._database.connection()
            lines = [
                db.execute(
                    f"SELECT * FROM requests WHERE {line} AND {page} LIMIT :limit",
                    {**parameters, **bounds, "limit": limit},
                )
                for line, parameters in _lines(db, wanted)
            ]
            merged = heapq.merge(
                *lines, key=lambda row: (row["created_at"], row["id"]), reverse=newest_first
            )
            return [_request(row) for row, _ in zip(merged, range(limit), strict=False)]

    def counts(self, wanted: Wanted) -> Mapping[tuple[str, Status], int]:
        found: Counter[tuple[str, Status]] = Counter()
        with our_errors():
            db = self._database.connection()
            for line, parameters in _lines(db, wanted):
                for row in db.execute(
                    f"SELECT collection, status, count(*) AS n FROM requests WHERE {line}"
                    " AND created_at > :created_after AND created_at < :created_before"
                    " GROUP BY collection, status",
                    {
                        **parameters,
                        "created_after": wanted.created_after,
                        "created_before": wanted.created_before,
                    },
                ):
                    found[row["collection"], Status(row["status"])] += row["n"]
        return found

    def oldest(self, status: Status) -> Mapping[str, float]:
        is_waiting = status is Status.WAITING
        rows = self._rows(_OLDEST_WAITING) if is_waiting else self._rows(_OLDEST, (status,))
        return {row["collection"]: row["since"] for row in rows}

    def holder_of(self, post: str) -> str | None:
        rows = self._rows(
            "SELECT holder FROM posts WHERE post = ? AND expires_at >= ?", (post, self.now())
        )
        return rows[0]["holder"] if rows else None

    def mark(self, mark: Mark, name: str, *, audit: AuditEntry) -> bool:
        with self._database.transaction() as db:
            made = db.execute(
                "INSERT OR IGNORE INTO marks VALUES (?, ?, ?)", (mark, name, self._entry(audit))
            ).rowcount
            if made:
                self._note(db, audit)
        return made > 0

    def unmark(self, mark: Mark, name: str, *, audit: AuditEntry) -> bool:
        with self._database.transaction() as db:
            gone = db.execute(
                "DELETE FROM marks WHERE (kind, name) = (?, ?)", (mark, name)
            ).rowcount
            if gone:
                self._note(db, audit)
        return gone > 0

    def marked(self, mark: Mark) -> Mapping[str, AuditEntry]:
        rows = self._rows("SELECT name, record FROM marks WHERE kind = ? ORDER BY name", (mark,))
        return {row["name"]: AuditEntry.from_json(json.loads(row["record"])) for row in rows}

    def attend(self, worker: str, *, slots: int, busy: int) -> bool:
        now = self.now()
        with self._database.transaction(durable=False) as db:
            known = db.execute(
                "UPDATE workers SET slots = ?, busy = ?, seen_at = ? WHERE name = ?",
                (slots, busy, now, worker),
            ).rowcount
            if not known:
                db.execute("DELETE FROM workers WHERE seen_at < ?", (now - FORGOTTEN_AFTER_S,))
                db.execute("INSERT INTO workers VALUES (?, ?, ?, ?)", (worker, slots, busy, now))
                db.execute(
                    "DELETE FROM marks WHERE kind = ? AND name NOT IN (SELECT name FROM workers)",
                    (Mark.DRAINING,),
                )
            draining = db.execute(
                "SELECT 1 FROM marks WHERE (kind, name) = (?, ?)", (Mark.DRAINING, worker)
            ).fetchone()
        return draining is not None

    def leave(self, worker: str) -> None:
        with self._database.transaction(durable=False) as db:
            db.execute("DELETE FROM workers WHERE name = ?", (worker,))
            db.execute("DELETE FROM marks WHERE (kind, name) = (?, ?)", (Mark.DRAINING, worker))

    def workers(self) -> Sequence[Attendance]:
        rows = self._rows("SELECT name, slots, busy, seen_at FROM workers ORDER BY name")
        return [Attendance(**dict(row)) for row in rows]

    def note(self, entry: AuditEntry) -> None:
        with self._database.transaction() as db:
            self._note(db, entry)

    def noted(self, *, target: str | None = None, limit: int = 50) -> Sequence[AuditEntry]:
        only = "" if target is None else "WHERE target = ?"
        rows = self._rows(
            f"SELECT record FROM audit {only} ORDER BY seq DESC LIMIT ?",
            (limit,) if target is None else (target, limit),
        )
        return [AuditEntry.from_json(json.loads(row["record"])) for row in rows]

    def _note(self, db: sqlite3.Connection, entry: AuditEntry) -> None:
        db.execute(
            "INSERT INTO audit (target, record) VALUES (?, ?)", (entry.target, self._entry(entry))
        )

    def _entry(self, entry: AuditEntry) -> str:
        return json.dumps(replace(entry, at=self.now()).as_json())

    # --- records of use

    def usage(self, *, after: UsageKey = (0.0, ""), limit: int = 500) -> Sequence[Usage]:
        rows = self._rows(
            "SELECT finished_at, id, record FROM usage WHERE (finished_at, id) > (?, ?)"
            " ORDER BY finished_at, id LIMIT ?",
            (*after, limit),
        )
        return [_usage(row) for row in rows]

    def forget_usage(self, keys: Collection[UsageKey]) -> None:
        if not keys:
            return
        with self._database.transaction() as db:
            db.executemany("DELETE FROM usage WHERE (finished_at, id) = (?, ?)", keys)

    def usage_count(self) -> int:
        (row,) = self._rows(
            "SELECT (SELECT max(seq) FROM usage) - (SELECT min(seq) FROM usage) + 1 AS n"
        )
        return int(row["n"] or 0)

    # --- API keys

    def add_key(self, key: ApiKey, *, lifetime_s: float, max_keys: int) -> ApiKey:
        now = self.now()
        timed = replace(key, created_at=now, expires_at=now + lifetime_s)
        made = ApiKey.from_json(timed.as_json())
        user_id = made.user.id
        with self._database.transaction() as db:
            db.execute("DELETE FROM api_keys WHERE expires_at <= ?", (now,))
            (count,) = db.execute(
                "SELECT count(*) FROM api_keys WHERE user_id = ?", (user_id,)
            ).fetchone()
            if count >= max_keys:
                raise LimitReached(
                    f"You have {count} API keys and may have {max_keys}; revoke one that you do not need."
                )
            db.execute(
                "INSERT INTO api_keys VALUES (?, ?, ?, ?, ?, ?)",
                (
                    made.id,
                    made.digest,
                    user_id,
                    made.created_at,
                    made.expires_at,
                    json.dumps(made.as_json()),
                ),
            )
        return made

    def key(self, digest: str) -> ApiKey | None:
        rows = self._rows(
            "SELECT record FROM api_keys WHERE digest = ? AND expires_at > ?", (digest, self.now())
        )
        return _api_key(rows[0]) if rows else None

    def keys_of(self, user_id: str) -> Sequence[ApiKey]:
        rows = self._rows(
            "SELECT record FROM api_keys WHERE user_id = ? AND expires_at > ?"
            " ORDER BY created_at, id",
            (user_id, self.now()),
        )
        return [_api_key(row) for row in rows]

    def all_keys(self, *, after: str = "", limit: int = 500) -> Sequence[ApiKey]:
        rows = self._rows(
            "SELECT record FROM api_keys WHERE id > ? AND +expires_at > ? ORDER BY id LIMIT ?",
            (after, self.now(), limit),
        )
        return [_api_key(row) for row in rows]

    def remove_key(
        self, key_id: str, *, user_id: str | None = None, audit: AuditEntry | None = None
    ) -> ApiKey:
        with self._database.transaction() as db:
            gone = db.execute(
                "DELETE FROM api_keys WHERE id = :id AND expires_at > :now"
                " AND (:user_id IS NULL OR user_id = :user_id) RETURNING record",
                {"id": key_id, "now": self.now(), "user_id": user_id},
            ).fetchone()
            if gone is None:
                raise KeyNotFound("There is no such API key of yours.")
            if audit is not None:
                self._note(db, audit)
        return _api_key(gone)

    # --- shared secrets of one deployment

    def shared_secret(self, name: str, proposal: str) -> str:
        with self._database.transaction() as db:
            db.execute("INSERT OR IGNORE INTO secrets VALUES (?, ?)", (name, proposal))
            (value,) = db.execute("SELECT value FROM secrets WHERE name = ?", (name,)).fetchone()
        return str(value)

    def _rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with our_errors():
            return self._database.connection().execute(statement, parameters).fetchall()

    def _column(self, statement: str, parameters: Sequence[Any] = ()) -> list[str]:
        return [row[0] for row in self._rows(statement, parameters)]


def _lines(db: sqlite3.Connection, wanted: Wanted) -> Iterator[tuple[str, dict[str, Any]]]:
    """Conditions with their parameters, each request of what is wanted in one of them.

    For each of them an index has the requests in order of their creation.
    """
    statuses = sorted(set(wanted.statuses))
    rest, common = "", {}
    if wanted.worker is not None:
        statuses = [status for status in statuses if status is Status.PROCESSING]
        rest = " AND (holder = :worker OR substr(holder, 1, length(:worker) + 1) = :worker || '/')"
        common = {"worker": wanted.worker}
    if wanted.username is None and wanted.realm is None:
        for status in statuses:
            for collection in _collections(db, status, only=wanted.collection):
                yield (
                    f"seq > 0 AND status = :status AND collection = :collection{rest}",
                    {**common, "status": status, "collection": collection},
                )
        return
    names = ", ".join(f"'{status}'" for status in statuses)
    for user_id in _user_ids(db, wanted):
        yield (
            f"user_id = :user_id AND +status IN ({names})"
            f" AND (:collection IS NULL OR collection = :collection){rest}",
            {**common, "user_id": user_id, "collection": wanted.collection},
        )


def _page(
    wanted: Wanted, after: Request | None, *, newest_first: bool
) -> tuple[str, dict[str, Any]]:
    """Condition and order of a page, with their parameters.

    At the end where it begins there is one bound only: SQLite looks for one place in an index, not two.
    """
    last = (after.created_at, after.id) if after else None
    if newest_first:
        begin = (wanted.created_before, "")
        begin = min(last, begin) if last else begin
        condition = "(created_at, id) < (:begin, :begin_id) AND created_at > :end"
        order, end = "created_at DESC, id DESC", wanted.created_after
    else:
        begin = (wanted.created_after, _AFTER_ALL)
        begin = max(last, begin) if last else begin
        condition = "(created_at, id) > (:begin, :begin_id) AND created_at < :end"
        order, end = "created_at, id", wanted.created_before
    bounds = {"begin": begin[0], "begin_id": begin[1], "end": end}
    return f"{condition} ORDER BY {order}", bounds


def _collections(db: sqlite3.Connection, status: Status, *, only: str | None) -> list[str]:
    if only is not None:
        return [only]
    return [row["name"] for row in db.execute(_COLLECTIONS, {"status": status})]


def _user_ids(db: sqlite3.Connection, wanted: Wanted) -> list[str]:
    if wanted.username is not None and wanted.realm is not None:
        return [User(username=wanted.username, realm=wanted.realm).id]
    names = {"username": wanted.username, "realm": wanted.realm}
    return [row["user_id"] for row in db.execute(_USERS_OF, names)]


def _must_last(step: Step) -> bool:
    """Whether a power cut must not undo a step. One that was only handed on is handed on again."""
    return step.target not in ACTIVE or step.audit is not None


def _row(db: sqlite3.Connection, request_id: str) -> Any:
    return db.execute("SELECT * FROM requests WHERE id = ?", (request_id,)).fetchone()


def _request(row: sqlite3.Row) -> Request:
    return Request(
        id=row["id"],
        user=_user(row["user"]),
        verb=Verb(row["verb"]),
        collection=row["collection"],
        datasource=row["datasource"],
        user_request=row["user_request"],
        coerced_request=json.loads(row["coerced_request"]),
        status=Status(row["status"]),
        message=row["message"],
        created_at=row["created_at"],
        modified_at=row["modified_at"],
        status_history=json.loads(row["status_history"]),
        attempt=row["attempt"],
        first_attempt=row["first_attempt"],
        holder=row["holder"],
        lease_expires_at=row["lease_expires_at"],
        bytes_staged=row["bytes_staged"],
        result=_object(row["result"]),
        input=_object(row["input"]),
    )


def _usage(row: sqlite3.Row) -> Usage:
    record = json.loads(row["record"])
    return Usage(
        id=row["id"],
        user=User.from_json(record["user"]),
        verb=Verb(record["verb"]),
        collection=record["collection"],
        datasource=record["datasource"],
        status=Status(record["status"]),
        attempt=record["attempt"],
        size_bytes=record["size_bytes"],
        submitted_at=record["submitted_at"],
        started_at=record["started_at"],
        finished_at=row["finished_at"],
    )


def _api_key(row: sqlite3.Row) -> ApiKey:
    return ApiKey.from_json(json.loads(row["record"]))


def _user(text: str) -> User:
    return User.from_json(json.loads(text))


def _object(text: str | None) -> DataObject | None:
    return DataObject(**json.loads(text)) if text is not None else None


def _object_text(data: DataObject | None) -> str | None:
    return json.dumps(data.as_json()) if data is not None else None


def _pages(items: Iterable[str]) -> Iterator[list[str]]:
    everything = list(items)
    for start in range(0, len(everything), _PAGE):
        yield everything[start : start + _PAGE]


def _marks(page: Sequence[str]) -> str:
    return ", ".join("?" * len(page))
