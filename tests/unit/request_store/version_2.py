"""A process of the version before of the embedded store, as its file sees it: the statements that it sends.

They are the text of that version and must not follow ours. Nothing of this server is imported. As a program,
it opens the file, says so, waits for a line, and then submits, queues, takes and finishes requests, together
with whoever else does::

    python version_2.py FILE NAME COUNT
"""

import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

VERSION = 2

SCHEMA = (
    """
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
""",
    """
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
""",
)

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


INSERT = """
INSERT INTO requests (id, user_id, user, verb, collection, datasource, user_request,
    coerced_request, status, message, created_at, modified_at, status_history, attempt,
    idempotency_key, input, input_name)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

USER = {"username": "old", "realm": "r", "roles": ["default"]}
RESULT = {
    "name": "o",
    "media_type": "application/x-grib",
    "size_bytes": 7,
    "sha256": "",
    "md5": None,
}


def open_file(path: Path) -> sqlite3.Connection:
    """As a process does that starts: makes the file, or refuses what it does not know."""
    db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA foreign_keys=ON")
    _use_wal(db)
    db.execute("BEGIN IMMEDIATE")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == 0:
        for statement in _statements():
            db.execute(statement)
        db.execute(f"PRAGMA user_version={VERSION}")
    elif abs(version - VERSION) > 1:
        raise SystemExit(f"has schema version {version}, this server reads {VERSION}")
    db.execute("COMMIT")
    return db


def _use_wal(db: sqlite3.Connection) -> None:
    """Who turns a file to WAL while another does is not made to wait by SQLite, but refused."""
    deadline = time.monotonic() + 30
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _statements() -> Iterator[str]:
    statement = ""
    for line in "".join(SCHEMA).splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def add(db: sqlite3.Connection, request_id: str) -> None:
    now = time.time()
    db.execute("BEGIN IMMEDIATE")
    db.execute(
        INSERT,
        (
            request_id,
            "old-id",
            json.dumps(USER),
            "retrieve",
            "c1",
            "d",
            "class: od",
            "{}",
            "waiting",
            "",
            now,
            now,
            json.dumps({"waiting": now}),
            1,
            None,
            None,
            None,
        ),
    )
    db.execute(_GIVE_TURN, (request_id,))
    db.execute("COMMIT")


def apply(
    db: sqlite3.Connection, request_id: str, source: str, target: str, *, attempt: int = 1
) -> bool:
    """Whether the step could be taken."""
    now = time.time()
    parameters = {
        "id": request_id,
        "source": source,
        "target": target,
        "now": now,
        "message": None,
        "count_attempt": 0,
        "only_if_expired": 0,
        "starts_over": 0,
        "holder": "old worker",
        "attempt": attempt,
        "lease_expires_at": now + 30,
        "result": json.dumps(RESULT) if target == "processed" else None,
        "input": None,
        "input_name": None,
    }
    db.execute("BEGIN IMMEDIATE")
    row = db.execute(_APPLY, parameters).fetchone()
    if row is not None and target == "queued":
        db.execute(_NOTE_DISPATCH, (request_id,))
    db.execute("COMMIT")
    return row is not None


def remove(db: sqlite3.Connection, request_id: str) -> bool:
    row = db.execute(
        "DELETE FROM requests WHERE id = ?1 AND (?2 IS NULL OR user_id = ?2)"
        " AND NOT (?3 AND status IN ('processed', 'failed')) RETURNING *",
        (request_id, None, False),
    ).fetchone()
    return row is not None


def work(db: sqlite3.Connection, name: str, count: int) -> list[str]:
    """Add requests, and finish whatever is there; the ids that it has finished."""
    done = []
    for number in range(count):
        add(db, f"{name}-{number}")
        for status, target in (("waiting", "queued"), ("queued", "processing")):
            rows = db.execute(
                "SELECT id FROM requests WHERE status = ? LIMIT 3", (status,)
            ).fetchall()
            for row in rows:
                if apply(db, row["id"], status, target) and target == "processing":
                    assert apply(db, row["id"], "processing", "processed")
                    done.append(row["id"])
    return done


if __name__ == "__main__":
    file = open_file(Path(sys.argv[1]))
    print("open", flush=True)
    sys.stdin.readline()
    print(json.dumps(work(file, sys.argv[2], int(sys.argv[3]))))
