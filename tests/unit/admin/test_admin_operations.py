"""What operators do to requests, collections and workers, over real back-ends, and against everybody else."""

import logging
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from polytope_server.admin.deployment import Deployment
from polytope_server.admin.operations import Operations
from polytope_server.admin.steps import FROM, PAST, USUAL, Command
from polytope_server.errors import RequestNotFound, StepLost
from polytope_server.queue import Topic
from polytope_server.request import Lease, Request, Status, Step, Verb
from polytope_server.request_store import Mark, RequestStore, Wanted
from polytope_server.testing.request_store import (
    ANN,
    an_object,
    enqueue,
    finish,
    new_request,
    start,
    uploaded,
)


def standing_in(store: RequestStore, status: Status) -> Request:
    """A request that has come as far as that."""
    if status is Status.UPLOADING:
        return store.add(new_request(status=status, verb=Verb.ARCHIVE))
    request = store.add(new_request())
    match status:
        case Status.QUEUED:
            return enqueue(store, request)
        case Status.PROCESSING:
            return start(store, request)
        case Status.PROCESSED | Status.FAILED:
            return finish(store, start(store, request), target=status)
    return request


@pytest.fixture
def store(deployment: Deployment) -> RequestStore:
    return deployment.store


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("command", Command)
def test_each_command_works_where_it_may_and_is_refused_in_words_elsewhere(
    store: RequestStore, operations: Operations, command: Command, status: Status
) -> None:
    before = standing_in(store, status)
    outcome = operations.one(command, before.id, reason="because")
    (entry,) = store.noted(target=before.id)
    assert (entry.command, entry.user, entry.sudo_user, entry.host) == (
        *(command, "op", "alice"),
        "desk",
    )
    assert entry.reason == "because"
    if status not in FROM[command]:
        assert outcome.is_refused
        assert f"is {status}" in outcome.text
        assert entry.outcome == f"refused: {outcome.text}"
        assert store.get(before.id) == before
        return
    assert (outcome.is_done, outcome.text, entry.outcome) == (True, PAST[command], "done")
    assert entry.before["status"] == status
    assert entry.before["status_history"] == before.status_history
    if command is Command.REVOKE:
        with pytest.raises(RequestNotFound):
            store.get(before.id)
    else:
        wanted = Status.FAILED if command is Command.FAIL else Status.WAITING
        assert store.get(before.id).status is wanted


def test_usual_targets_are_possible_ones() -> None:
    assert all(set(USUAL[command]) <= set(FROM[command]) for command in Command)


def test_users_are_told_why_their_request_was_ended(
    store: RequestStore, operations: Operations
) -> None:
    request = standing_in(store, Status.WAITING)
    operations.one(Command.FAIL, request.id, reason="the tape robot is broken")
    assert store.get(request.id).message == (
        "The operators of this server ended this request: the tape robot is broken"
    )


@pytest.mark.parametrize("command", Command)
def test_what_is_not_there_is_refused_and_noted(
    store: RequestStore, operations: Operations, command: Command
) -> None:
    assert operations.one(command, "nobody", reason="").is_refused
    assert [entry.outcome for entry in store.noted()] == ["refused: is not stored here"]


def test_an_archive_without_its_data_is_not_requeued(
    store: RequestStore, operations: Operations
) -> None:
    never = standing_in(store, Status.UPLOADING)
    operations.one(Command.FAIL, never.id, reason="r")
    assert "never came" in operations.one(Command.REQUEUE, never.id, reason="").text
    data = an_object("i")
    gone = uploaded(store, data)
    finish(store, start(store, gone), target=Status.FAILED)
    store.forget_input(gone.id, data)
    assert "are gone" in operations.one(Command.REQUEUE, gone.id, reason="").text
    whole = uploaded(store, data)
    finish(store, start(store, whole), target=Status.FAILED)
    assert operations.one(Command.REQUEUE, whole.id, reason="").is_done


def test_everybody_whom_it_concerns_is_woken(
    deployment: Deployment, store: RequestStore, operations: Operations
) -> None:
    def hints(action: Callable[[], object]) -> set[Topic]:
        with deployment.queue.listen(*Topic) as listener:
            action()
            return {hint.topic for hint in listener.wait(0.2)}

    running, waiting = standing_in(store, Status.PROCESSING), standing_in(store, Status.WAITING)
    assert hints(lambda: operations.one(Command.REQUEUE, running.id, reason="")) == {
        *(Topic.REVOKED, Topic.CHANGED, Topic.SUBMITTED)
    }
    assert hints(lambda: operations.one(Command.FAIL, waiting.id, reason="")) == {Topic.CHANGED}
    assert hints(lambda: operations.one(Command.REVOKE, running.id, reason="")) == {Topic.CHANGED}
    store.attend("w", slots=1, busy=0)
    for action in (operations.pause, operations.resume):
        assert hints(lambda action=action: action("c1", reason="")) == {Topic.MARKED}
    for action in (operations.drain, operations.undrain):
        assert hints(lambda action=action: action("w", reason="")) == {Topic.MARKED}


def test_revoking_removes_the_data(deployment: Deployment, operations: Operations) -> None:
    staging, store = deployment.staging, deployment.store
    done = start(store, store.add(new_request()))
    name = f"{done.id}-1.grib"
    with staging.create(name, media_type="application/x-grib") as upload:
        upload.write(b"x")
        upload.commit()
    finish(store, done, result=an_object(name))
    operations.one(Command.REVOKE, done.id, reason="")
    assert list(staging.list("")) == []


# --- many at once


def test_all_that_are_chosen_are_failed_page_by_page_and_no_others(
    store: RequestStore, operations: Operations
) -> None:
    chosen = [store.add(new_request(collection="c1")) for _ in range(60)]
    others = [
        store.add(new_request(collection="c2")),
        enqueue(store, store.add(new_request())),
        store.add(new_request(user=ANN)),
    ]
    wanted = Wanted(statuses={Status.WAITING}, collection="c1", username="joe")
    outcomes = list(operations.all(Command.FAIL, wanted, reason="closed"))
    assert [outcome.target for outcome in outcomes] == [request.id for request in chosen]
    assert all(outcome.is_done for outcome in outcomes)
    assert {store.get(request.id).status for request in chosen} == {Status.FAILED}
    assert [store.get(request.id) for request in others] == others
    entries = store.noted(limit=1000)
    assert sorted(entry.target for entry in entries) == [request.id for request in chosen]
    again = list(operations.all(Command.REQUEUE, Wanted(statuses={Status.FAILED}), reason=""))
    assert len(again) == 60
    waits = Wanted(statuses={Status.WAITING})
    assert sum(store.counts(waits).values()) == 62
    assert len(list(operations.all(Command.REVOKE, waits, reason=""))) == 62
    assert sum(store.counts(Wanted()).values()) == 1


def test_of_many_those_that_cannot_be_requeued_are_told_of(
    store: RequestStore, operations: Operations
) -> None:
    good = standing_in(store, Status.FAILED)
    bad = standing_in(store, Status.UPLOADING)
    operations.one(Command.FAIL, bad.id, reason="r")
    outcomes = {
        outcome.target: outcome
        for outcome in operations.all(Command.REQUEUE, Wanted(statuses={Status.FAILED}), reason="")
    }
    assert outcomes[good.id].is_done
    assert outcomes[bad.id].is_refused


def test_one_line_is_logged_for_each_command(
    store: RequestStore, operations: Operations, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        standing_in(store, Status.WAITING)
    with caplog.at_level(logging.INFO, logger="polytope_server.admin"):
        list(operations.all(Command.FAIL, Wanted(), reason="closed"))
        operations.one(Command.FAIL, "nobody", reason="x")
        operations.pause("c1", reason="tapes")
    said = [
        (r.__dict__["command"], r.__dict__["target"], r.__dict__["outcome"]) for r in caplog.records
    ]
    assert said == [
        ("fail", "3 requests", "done"),
        ("fail", "nobody", "refused: is not stored here"),
        ("pause", "c1", "done"),
    ]


# --- collections and workers


def test_a_collection_is_paused_and_resumed_once(
    store: RequestStore, operations: Operations
) -> None:
    assert operations.pause("c1", reason="tapes").is_done
    again = operations.pause("c1", reason="more")
    assert (again.is_done, again.is_refused, again.text) == (False, False, "is paused already")
    assert store.marked(Mark.PAUSED)["c1"].reason == "tapes"
    assert operations.resume("c1", reason="").is_done
    assert operations.resume("c1", reason="").text == "is not paused"
    refused = operations.pause("c9", reason="")
    assert refused.is_refused
    assert "configured: c1, c2" in refused.text
    assert [entry.outcome for entry in reversed(store.noted())] == [
        *("done", "is paused already", "done", "is not paused"),
        "refused: is not a collection; configured: c1, c2",
    ]


def test_only_a_worker_that_is_known_drains(store: RequestStore, operations: Operations) -> None:
    store.attend("w1", slots=1, busy=0)
    assert operations.drain("w2", reason="").text == "is not a worker; known: w1"
    assert operations.drain("w1", reason="").is_done
    assert store.attend("w1", slots=1, busy=0)
    assert operations.undrain("w1", reason="").is_done
    assert not store.attend("w1", slots=1, busy=0)


# --- races


def at_once(*actions: Callable[[], object]) -> list[object]:
    """What each of the actions, begun at the same moment, returned or raised."""
    barrier = threading.Barrier(len(actions))
    results: list[object] = [None] * len(actions)

    def run(index: int, action: Callable[[], object]) -> None:
        barrier.wait(timeout=30)
        try:
            results[index] = action()
        except (StepLost, RequestNotFound) as exc:
            results[index] = exc

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


@pytest.mark.parametrize("command", Command)
def test_an_operator_and_a_worker_that_finishes_cannot_both_win(
    store: RequestStore, operations: Operations, command: Command
) -> None:
    seen: Counter[str] = Counter()
    for _ in range(15):
        running = standing_in(store, Status.PROCESSING)
        operator, worker = at_once(
            lambda r=running: operations.one(command, r.id, reason="r"),
            lambda r=running: finish(store, r, result=an_object("o")),
        )
        worker_won = isinstance(worker, Request)
        try:
            now = store.get(running.id)
        except RequestNotFound:
            assert command is Command.REVOKE  # which may come after the end as well
            continue
        assert (now.status is Status.PROCESSED) == worker_won
        assert operator.is_refused == worker_won  # type: ignore[attr-defined]
        assert bool(now.result) == worker_won
        seen[now.status] += 1
    for entry in store.noted(limit=100):
        assert entry.outcome == "done" or "is processed" in entry.outcome


def test_an_operator_follows_a_request_that_moves(
    store: RequestStore, operations: Operations
) -> None:
    for _ in range(15):
        waiting = standing_in(store, Status.WAITING)
        outcome, moved = at_once(
            lambda w=waiting: operations.one(Command.FAIL, w.id, reason="r"),
            lambda w=waiting: enqueue(store, w),
        )
        assert outcome.is_done  # type: ignore[attr-defined]
        now = store.get(waiting.id)
        assert now.status is Status.FAILED
        assert ("queued" in now.status_history) == isinstance(moved, Request)


def test_everybody_at_once_leaves_every_request_somewhere_with_a_whole_story(
    store: RequestStore, operations: Operations
) -> None:
    """Two operators, a user who revokes, a broker, a worker and a collector over the same requests."""
    ids = [store.add(new_request()).id for _ in range(20)]
    revoked = set(ids[::7])
    done: list[str] = []

    def broker() -> None:
        for _ in range(4):
            for waiting in store.next_waiting("c1", leaving_out=(), limit=30):
                store.apply_each([Step(id=waiting.id, source=Status.WAITING, target=Status.QUEUED)])

    def worker() -> None:
        for request_id in ids * 2:
            for queued in store.get_many([request_id]).values():
                if queued.status is Status.QUEUED:
                    try:
                        step = start_queued(store, queued)
                        done.append(finish(store, step).id)
                    except (StepLost, RequestNotFound):
                        continue

    def operator(command: Command) -> Callable[[], object]:
        return lambda: [operations.one(command, i, reason="r") for i in ids[::2]]

    def user() -> None:
        for request_id in revoked:
            store.remove(request_id)

    def collector() -> None:
        for request_id in ids:
            store.forget_input(request_id, an_object("i"))

    at_once(broker, worker, operator(Command.FAIL), operator(Command.REQUEUE), user, collector)
    stored = store.get_many(ids)
    assert set(ids) - set(stored) == revoked
    assert len(done) == len(set(done)), "a request was processed twice"
    by_target: dict[str, list[str]] = {}
    for entry in reversed(store.noted(limit=1000)):
        if entry.outcome == "done":
            by_target.setdefault(entry.target, []).append(entry.command)
    for request in stored.values():
        commands = by_target.get(request.id, [])
        assert request.attempt == 1 + commands.count("requeue")
        if request.status is Status.FAILED:
            assert commands[-1] == "fail"


def start_queued(store: RequestStore, queued: Request) -> Request:
    return store.apply(
        Step(
            id=queued.id,
            source=Status.QUEUED,
            target=Status.PROCESSING,
            lease=Lease(holder="w", attempt=queued.attempt),
            lease_s=30,
        )
    )
