"""No question of the store on MongoDB scans a collection, however many requests there are.

Every method is called on a store with many requests, and every command that this has led to is looked at in
two ways. The server explains it: it uses an index. And an index is there that has what the command asks for
in one piece, in the order that it is asked for in, so that MongoDB reads no more than it gives: for what the
server of the tests says of this is that it reads all of the piece before it sorts and cuts it.

``make explain`` does the same with 100,000 requests.
"""

import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pymongo
import pytest
from asked import Command, Key, Question, Recorder, heard_by, questions, serving, stages
from bson.datetime_ms import DatetimeMS
from pymongo.collection import Collection
from services.mongodb import MongoDb

from polytope_server.config.mongodb import MongoStoreSection
from polytope_server.request import DataObject, Lease, Status, Step, Verb
from polytope_server.request_store import Mark, RequestStore, Wanted
from polytope_server.request_store.mongodb import MongoRequestStore
from polytope_server.request_store.mongodb.documents import document_of
from polytope_server.testing.request_store import (
    ANN,
    an_entry,
    an_object,
    finish,
    new_key,
    new_request,
    start,
    uploaded,
)
from polytope_server.user import User

REQUESTS = int(os.environ.get("POLYTOPE_EXPLAIN_REQUESTS", "5000"))
USERS = 100
COLLECTIONS = 5
ACTIVE = 60
FEW = 500
"""More than any question may read that is about what is going on now, or about one user."""
SMALL = frozenset({"requests.workers", "requests.marks"})
"""As large as the deployment; they are read as they are."""


@dataclass(frozen=True, slots=True)
class Loaded:
    store: MongoRequestStore
    recorder: Recorder
    requests: "Collection[dict[str, Any]]"


@pytest.fixture(scope="module")
def loaded(mongodb: MongoDb) -> Iterator[Loaded]:
    database = mongodb.database()
    recorder = Recorder(database)
    with mongodb.client() as client:
        with heard_by(recorder):
            store = MongoRequestStore(
                MongoStoreSection(uri=mongodb.uri, database=database, timeout=30)
            )
        requests = client[database]["requests"]
        documents: list[dict[str, Any]] = []
        for number in range(REQUESTS):
            documents.append(_document(number))
            if len(documents) == 1000 or number == REQUESTS - 1:
                with pymongo.timeout(120):
                    requests.insert_many(documents)
                documents.clear()
        yield Loaded(store, recorder, requests)
        store.close()
        with pymongo.timeout(120):
            client.drop_database(database)


def _document(number: int) -> dict[str, Any]:
    """One as the store itself would have left it: a third waits, a few are active, the others are done."""
    user = User(username=f"user{number % USERS}", realm=f"realm{number % 2}")
    collection = f"c{number % COLLECTIONS}"
    request = new_request(user=user, collection=collection, request_id=f"{number:08}")
    document = document_of(request, now=1_700_000_000 + number, call="0")
    at = document["created_at"]
    document["turn"] = number // USERS
    if number < ACTIVE:
        status = Status.QUEUED if number % 2 else Status.PROCESSING
        document |= {"active": collection, "seat": f"{user.id}/{number:09}"}
        if status is Status.PROCESSING:
            document |= {"holder": f"w{number % 3}/0", "lease_expires_at": DatetimeMS(2**42)}
    elif number % 3 == 0:
        status = Status.WAITING
        document |= {"line": collection, "seat": f"{user.id}/{number:09}"}
    else:
        status = Status.FAILED if number % 5 == 0 else Status.PROCESSED
        record = {
            "status": str(status),
            "attempt": 1,
            "size_bytes": 10,
            "submitted_at": at,
            "started_at": at,
            "finished_at": at,
        }
        document |= {"usage": [record], "usage_at": at}
        if status is Status.PROCESSED:
            document |= {"result": an_object(f"o{number}").as_json(), "staged_at": at}
    return document | {"state": str(status)}


def _lives(loaded: Loaded) -> None:
    """Everything that a request may go through."""
    store = loaded.store
    running = start(store, store.add(new_request(), idempotency_key="k", max_unfinished=400))
    store.add(new_request(), idempotency_key="k", max_unfinished=400)
    assert running.lease is not None
    store.report(running.id, running.lease, bytes_staged=1)
    store.renew([(running.id, running.lease), ("x", Lease(holder="w", attempt=1))], duration_s=60)
    failed = finish(store, running, target=Status.FAILED)
    again = Step(
        id=failed.id,
        source=Status.FAILED,
        target=Status.WAITING,
        starts_over=True,
        audit=an_entry(failed.id),
    )
    finish(store, start(store, store.apply(again)), result=an_object("o"))
    with pytest.raises(Exception, match="stand"):
        store.apply(again)
    data = DataObject(name="i", media_type="application/octet-stream", size_bytes=1, sha256="0")
    archive = uploaded(store, data)
    finish(store, start(store, archive))
    store.forget_input(archive.id, data)
    many = [store.add(new_request(verb=Verb.RETRIEVE)) for _ in range(3)]
    store.apply_each([Step(id=one.id, source=Status.WAITING, target=Status.QUEUED) for one in many])
    store.remove(many[0].id, user_id=many[0].user.id, audit=an_entry("x"))
    store.remove(failed.id)
    store.remove_if_finished([archive.id, many[1].id], not_after=store.now())


def _keys(store: RequestStore) -> None:
    key = store.add_key(new_key(user=ANN), lifetime_s=60, max_keys=3)
    store.key(key.digest)
    store.keys_of(ANN.id)
    store.all_keys()
    store.remove_key(key.id)


USER = User(username="user7", realm="realm1")
CALLS: Mapping[str, Callable[[Loaded], object]] = {
    "ping now": lambda it: (it.store.ping(), it.store.now()),
    "add get apply apply_each remove remove_if_finished renew report forget_input": _lives,
    "get_many": lambda it: it.store.get_many([f"{n:08}" for n in range(40)]),
    "unfinished_ids": lambda it: it.store.unfinished_ids(USER.id),
    "requests_of": lambda it: [
        it.store.requests_of(USER.id, limit=10),
        it.store.requests_of(USER.id, limit=10, collection="c2"),
        it.store.requests_of(USER.id, limit=10, after=it.store.get(f"{507:08}")),
    ],
    "count": lambda it: it.store.count(USER.id),
    "active_counts queued_count": lambda it: (
        it.store.active_counts(),
        it.store.queued_count(),
    ),
    "waiting_collections": lambda it: it.store.waiting_collections(),
    "next_waiting": lambda it: [
        it.store.next_waiting("c1", leaving_out=(), limit=40),
        it.store.next_waiting("c1", leaving_out={USER.id, ANN.id}, limit=40),
    ],
    "queued_since": lambda it: it.store.queued_since(time.time(), limit=10),
    "expired_leases": lambda it: it.store.expired_leases(limit=10),
    "put_positions positions": lambda it: (
        it.store.put_positions("c1", ["a"]),
        it.store.positions("c1"),
    ),
    "take_post holder_of leave_post": lambda it: (
        it.store.take_post("broker", "a", duration_s=1),
        it.store.holder_of("broker"),
        it.store.leave_post("broker", "a"),
    ),
    "finished_before": lambda it: [
        it.store.finished_before(time.time(), limit=20),
        it.store.finished_before(time.time(), after=f"{300:08}", limit=20),
    ],
    "unfinished_before": lambda it: [
        it.store.unfinished_before(time.time(), status=status, limit=20)
        for status in (Status.UPLOADING, Status.WAITING, Status.QUEUED)
    ],
    "results": lambda it: [
        it.store.results(limit=20),
        it.store.results(after=(1_700_000_100.0, "x"), limit=20),
    ],
    "find": lambda it: [
        it.store.find(wanted, limit=5, after=after, newest_first=after is not None)
        for after in (None, it.store.get(f"{600:08}"))
        for wanted in WANTED
    ],
    "counts": lambda it: [it.store.counts(wanted) for wanted in WANTED],
    "oldest": lambda it: [it.store.oldest(s) for s in (Status.WAITING, Status.QUEUED)],
    "mark unmark marked": lambda it: (
        it.store.mark(Mark.PAUSED, "c1", audit=an_entry("c1")),
        it.store.marked(Mark.PAUSED),
        it.store.unmark(Mark.PAUSED, "c1", audit=an_entry("c1")),
    ),
    "attend workers leave": lambda it: (
        it.store.attend("w", slots=1, busy=0),
        it.store.workers(),
        it.store.leave("w"),
    ),
    "note noted": lambda it: (
        it.store.note(an_entry("t")),
        it.store.noted(),
        it.store.noted(target="t"),
    ),
    "usage usage_count forget_usage": lambda it: (
        it.store.usage(limit=20),
        it.store.forget_usage(
            [u.key for u in it.store.usage(after=(1_700_000_100.0, "x"), limit=5)]
        ),
        it.store.usage_count(),
    ),
    "add_key key keys_of all_keys remove_key": lambda it: _keys(it.store),
    "shared_secret": lambda it: it.store.shared_secret("s", "x"),
}
"""Methods, and calls of them in all the ways that lead to other commands."""
WANTED = (
    Wanted(),
    Wanted(statuses={Status.FAILED}, collection="c1"),
    Wanted(worker="w1"),
    Wanted(username="user7", realm="realm1"),
    Wanted(username="user7", collection="c2"),
    Wanted(realm="realm1", statuses={Status.WAITING}),
    Wanted(created_after=1_700_000_050.0, created_before=1_700_000_900.0),
)


def test_every_method_of_the_store_is_asked() -> None:
    methods = {name for name, _ in inspect.getmembers(RequestStore, inspect.isfunction)}
    called = {name for names in CALLS for name in names.split()}
    assert called == {name for name in methods if not name.startswith("_")}


@pytest.mark.parametrize("names", CALLS)
def test_no_question_scans_a_collection(loaded: Loaded, names: str) -> None:
    with loaded.recorder.recording() as commands:
        CALLS[names](loaded)
    asked = [
        question
        for command in list(commands)
        for question in questions(command)
        if question.collection not in SMALL
    ]
    for question in _distinct(asked):
        _must_be_answered_by_an_index(loaded, question)


def _distinct(asked: list[Question]) -> list[Question]:
    """One of each shape."""
    shapes = {
        (
            one.collection,
            str(sorted((name, _shape(value)) for name, value in one.filter.items())),
            one.sort,
            one.groups,
        ): one
        for one in asked
    }
    return list(shapes.values())


def _shape(value: Any) -> str:
    return str(sorted(value)) if isinstance(value, Mapping) else "equal"


def _must_be_answered_by_an_index(loaded: Loaded, question: Question) -> None:
    database = loaded.requests.database
    indexes: dict[str, Key] = {
        name: [(field, int(way)) for field, way in index["key"]]
        for name, index in database[question.collection].index_information().items()
    }
    assert serving(question, indexes) or _is_of_few(loaded, question), question
    if serving(question, indexes) == ["_id_"]:
        return  # the server of the tests has no plan for ranges of ids
    explained = database.command({"explain": _explicable(question), "verbosity": "executionStats"})
    used = list(stages(explained))
    read = explained.get("executionStats", {}).get("totalDocsExamined", 0)
    if question.filter:
        assert "COLLSCAN" not in used, (question, used)
        # MongoDB leaps from one value to the next
        assert "distinct" in question.command or read < REQUESTS * 0.9, (question, read)
    assert question.limit or question.groups or read < FEW, (question, read)


def _is_of_few(loaded: Loaded, question: Question) -> bool:
    """Whether what is to be sorted by the server is what a deployment has going at one moment."""
    return question.filter.get("state") == str(Status.QUEUED) and (
        loaded.requests.count_documents({"state": str(Status.QUEUED)}) < FEW
    )


def _explicable(question: Question) -> Command:
    """The question as a command that the server of the tests explains as it does it.

    It does not explain which index it uses for a condition on several fields that are not equal, so that
    those conditions are left out that only go over what an index finds.
    """
    stages_ = question.command.get("pipeline", ())
    bounds = [stage["$match"] for stage in stages_ if "$match" in stage]
    command: dict[str, Any] = {"find": question.collection}
    command["filter"] = bounds[0] if bounds else question.filter
    if question.sort:
        command["sort"] = dict(question.sort)
    return command
