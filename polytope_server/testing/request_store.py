"""What every request store must do.

Subclass `RequestStoreContract` and give it the fixtures that it names.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest

from polytope_server.audit import AuditEntry
from polytope_server.errors import KeyNotFound, LimitReached, RequestNotFound, StepLost
from polytope_server.request import (
    DataObject,
    Lease,
    Request,
    Status,
    Step,
    Verb,
    stood_since,
)
from polytope_server.request_store import (
    ApiKey,
    Attendance,
    Mark,
    RequestStore,
    Waiting,
    Wanted,
)
from polytope_server.user import User

JOE = User(username="joe", realm="r", roles=frozenset({"default", "staff"}))
ANN = User(username="ann", realm="r")

_numbers = itertools.count()

T = TypeVar("T")


def new_request(
    *,
    user: User = JOE,
    collection: str = "c1",
    status: Status = Status.WAITING,
    verb: Verb = Verb.RETRIEVE,
    request_id: str | None = None,
) -> Request:
    """A request as a frontend makes it."""
    return Request(
        id=request_id or f"request-{next(_numbers):06}",
        user=user,
        verb=verb,
        collection=collection,
        datasource="d",
        user_request="class: od",
        coerced_request={"class": "od", "feature": {"points": [[1e-05, None]]}},
        status=status,
    )


def enqueue(store: RequestStore, request: Request) -> Request:
    """Take a waiting request to QUEUED."""
    return store.apply(Step(id=request.id, source=Status.WAITING, target=Status.QUEUED))


def start(
    store: RequestStore, request: Request, *, holder: str = "w", lease_s: float = 30.0
) -> Request:
    """Take a waiting request to PROCESSING."""
    return start_queued(store, enqueue(store, request), holder=holder, lease_s=lease_s)


def start_queued(
    store: RequestStore, queued: Request, *, holder: str = "w", lease_s: float = 30.0
) -> Request:
    """Take a queued request to PROCESSING."""
    lease = Lease(holder=holder, attempt=queued.attempt)
    return store.apply(
        Step(
            id=queued.id,
            source=Status.QUEUED,
            target=Status.PROCESSING,
            lease=lease,
            lease_s=lease_s,
        )
    )


def finish(
    store: RequestStore,
    request: Request,
    *,
    result: DataObject | None = None,
    target: Status = Status.PROCESSED,
) -> Request:
    """Take a PROCESSING request to its end."""
    return store.apply(
        Step(
            id=request.id,
            source=Status.PROCESSING,
            target=target,
            lease=request.lease,
            message="Success",
            result=result,
        )
    )


def an_object(name: str, *, size_bytes: int = 10) -> DataObject:
    return DataObject(
        name=name, media_type="application/x-grib", size_bytes=size_bytes, sha256="0" * 64
    )


def an_entry(
    target: str, *, command: str = "fail", reason: str = "", user: str = "op"
) -> AuditEntry:
    return AuditEntry(
        command=command, target=target, user=user, sudo_user=None, host="h", reason=reason
    )


def new_key(*, user: User = JOE, name: str = "laptop") -> ApiKey:
    """A key as a frontend makes it."""
    number = next(_numbers)
    return ApiKey(id=f"key-{number:06}", digest=f"{number:064x}", user=user, name=name, hint="wxyz")


def start_over(
    store: RequestStore, request: Request, *, audit: AuditEntry | None = None
) -> Request:
    """Take a FAILED or PROCESSING request back to WAITING, as an operator does."""
    return store.apply(
        Step(
            id=request.id,
            source=request.status,
            target=Status.WAITING,
            lease=request.lease,
            starts_over=True,
            audit=audit,
        )
    )


class RequestStoreContract:
    """The contract of `polytope_server.request_store.RequestStore`.

    Fixtures: `store`, with nothing in it, and `again`, the same store opened once more, as every process
    does for itself.
    """

    def test_it_answers(self, store: RequestStore) -> None:
        store.ping()
        assert abs(store.now() - time.time()) < 3600

    # --- keeping

    def test_what_was_added_comes_back(self, store: RequestStore) -> None:
        request = new_request()
        added = store.add(request)
        assert store.get(request.id) == added
        assert added.coerced_request == request.coerced_request
        assert added.user == JOE
        assert added.status is Status.WAITING
        assert added.created_at == added.modified_at > 0
        assert added.status_history == {"waiting": added.created_at}

    def test_all_processes_see_the_same_requests(
        self, store: RequestStore, again: RequestStore
    ) -> None:
        request = store.add(new_request())
        assert again.get(request.id) == request
        queued = enqueue(again, request)
        assert store.get(request.id) == queued
        with pytest.raises(StepLost):
            enqueue(store, request)

    def test_attributes_of_a_user_are_not_stored(self, store: RequestStore) -> None:
        user = User(username="joe", realm="r", attributes={"ecmwf-apikey": "hush"})
        added = store.add(new_request(user=user))
        assert dict(store.get(added.id).user.attributes) == {}

    def test_an_unknown_request_is_not_found(self, store: RequestStore) -> None:
        with pytest.raises(RequestNotFound):
            store.get("nobody")
        with pytest.raises(RequestNotFound):
            store.apply(Step(id="nobody", source=Status.WAITING, target=Status.QUEUED))

    def test_the_same_idempotency_key_gives_the_first_request_again(
        self, store: RequestStore
    ) -> None:
        first = store.add(new_request(), idempotency_key="k")
        enqueue(store, first)
        again = store.add(new_request(), idempotency_key="k")
        assert (again.id, again.status) == (first.id, Status.QUEUED)
        assert store.count(JOE.id) == 1
        assert store.add(new_request(user=ANN), idempotency_key="k").id != first.id

    def test_one_idempotency_key_used_at_once_makes_one_request(self, store: RequestStore) -> None:
        ids = _race(8, lambda _: store.add(new_request(), idempotency_key="k").id)
        assert len(set(ids)) == 1

    def test_a_user_may_not_have_more_unfinished_requests_than_allowed(
        self, store: RequestStore
    ) -> None:
        one = store.add(new_request(), max_unfinished=2)
        store.add(new_request(status=Status.UPLOADING, verb=Verb.ARCHIVE), max_unfinished=2)
        with pytest.raises(LimitReached, match="may have 2"):
            store.add(new_request(), max_unfinished=2)
        store.add(new_request(user=ANN), max_unfinished=2)
        finish(store, start(store, one))
        store.add(new_request(), max_unfinished=2)
        assert store.count(JOE.id) == 3

    # --- steps

    def test_a_whole_life(self, store: RequestStore) -> None:
        request = store.add(new_request())
        running = start(store, request, holder="w1")
        assert running.status is Status.PROCESSING
        assert running.lease == Lease(holder="w1", attempt=1)
        assert running.lease_expires_at is not None
        assert running.lease_expires_at > store.now()
        done = finish(store, running, result=an_object("o"))
        assert done == store.get(request.id)
        assert done.status is Status.PROCESSED
        assert done.result == an_object("o")
        assert done.message == "Success"
        assert (done.holder, done.lease_expires_at) == (None, None)
        assert list(done.status_history) == ["waiting", "queued", "processing", "processed"]

    def test_a_step_from_elsewhere_is_lost_and_writes_nothing(self, store: RequestStore) -> None:
        request = store.add(new_request())
        before = enqueue(store, request)
        with pytest.raises(StepLost):
            enqueue(store, request)
        assert store.get(request.id) == before

    def test_of_many_with_the_same_step_one_wins(self, store: RequestStore) -> None:
        request = store.add(new_request())

        def attempt(_: int) -> bool:
            try:
                enqueue(store, request)
            except StepLost:
                return False
            return True

        assert Counter(_race(8, attempt)) == {True: 1, False: 7}

    def test_of_many_workers_one_gets_the_lease(self, store: RequestStore) -> None:
        request = enqueue(store, store.add(new_request()))

        def take(number: int) -> bool:
            lease = Lease(holder=f"w{number}", attempt=1)
            try:
                store.apply(
                    Step(
                        id=request.id,
                        source=Status.QUEUED,
                        target=Status.PROCESSING,
                        lease=lease,
                        lease_s=10,
                    )
                )
            except StepLost:
                return False
            return True

        assert Counter(_race(8, take)) == {True: 1, False: 7}

    def test_a_message_of_an_earlier_attempt_gives_no_lease(self, store: RequestStore) -> None:
        running = start(store, store.add(new_request()))
        back = _give_back(store, running, count_attempt=True)
        assert back.attempt == 2
        enqueue(store, back)
        with pytest.raises(StepLost):
            store.apply(
                Step(
                    id=back.id,
                    source=Status.QUEUED,
                    target=Status.PROCESSING,
                    lease=Lease(holder="w", attempt=1),
                    lease_s=10,
                )
            )

    def test_a_worker_that_lost_its_lease_cannot_finish(self, store: RequestStore) -> None:
        late = start(store, store.add(new_request()), holder="a")
        _give_back(store, late, count_attempt=True)
        with pytest.raises(StepLost):
            finish(store, late)
        enqueue(store, late)
        now = store.apply(
            Step(
                id=late.id,
                source=Status.QUEUED,
                target=Status.PROCESSING,
                lease=Lease(holder="b", attempt=2),
                lease_s=10,
            )
        )
        with pytest.raises(StepLost):
            finish(store, late)
        assert store.get(late.id) == now

    def test_a_finished_request_never_changes(self, store: RequestStore) -> None:
        running = start(store, store.add(new_request()))
        done = finish(store, running, target=Status.FAILED)
        for source in (Status.WAITING, Status.QUEUED):
            with pytest.raises(StepLost):
                store.apply(Step(id=done.id, source=source, target=Status.FAILED))
        with pytest.raises(StepLost):
            finish(store, running)
        assert store.get(done.id) == done

    def test_handing_back_keeps_the_attempt_and_the_first_times(self, store: RequestStore) -> None:
        running = start(store, store.add(new_request()))
        back = _give_back(store, running, count_attempt=False)
        assert (back.status, back.attempt, back.holder) == (Status.WAITING, 1, None)
        assert back.status_history["waiting"] == running.status_history["waiting"]

    def test_each_of_several_steps_stands_alone(self, store: RequestStore) -> None:
        one, two = store.add(new_request()), store.add(new_request())
        enqueue(store, two)
        taken = store.apply_each(
            [
                Step(id=request_id, source=Status.WAITING, target=Status.QUEUED)
                for request_id in (one.id, two.id, "nobody")
            ]
        )
        assert [request and request.id for request in taken] == [one.id, None, None]
        assert store.apply_each([]) == []

    def test_uploaded_data_come_with_the_step_out_of_uploading(self, store: RequestStore) -> None:
        request = store.add(new_request(status=Status.UPLOADING, verb=Verb.ARCHIVE))
        data = DataObject(
            name="i", media_type="application/octet-stream", size_bytes=3, sha256="a", md5="b"
        )
        step = Step(id=request.id, source=Status.UPLOADING, target=Status.WAITING, input=data)
        assert store.apply(step).input == data
        assert [waiting.id for waiting in _next(store)] == [request.id]

    def test_the_input_of_a_finished_request_can_be_forgotten_and_of_no_other(
        self, store: RequestStore
    ) -> None:
        data = an_object("i")
        request = uploaded(store, data)
        assert not store.forget_input(request.id, data)
        running = start(store, request)
        assert not store.forget_input(request.id, data)
        finish(store, running)
        assert not store.forget_input(request.id, an_object("other"))
        assert store.get(request.id).input == data
        assert store.forget_input(request.id, data)
        assert store.get(request.id).input == replace(data, name="")
        assert not store.forget_input(request.id, data)
        assert not store.forget_input("nobody", data)

    # --- starting over

    def test_a_failed_request_starts_over_as_if_it_were_new(self, store: RequestStore) -> None:
        first = start(store, store.add(new_request()))
        failed = finish(store, first, result=an_object("o"), target=Status.FAILED)
        again = start_over(store, failed)
        assert (again.status, again.attempt, again.tries) == (Status.WAITING, 2, 1)
        assert (again.message, again.result, again.holder) == ("", None, None)
        assert again.created_at == first.created_at
        assert again.status_history == pytest.approx({"waiting": again.modified_at})
        assert [waiting.attempt for waiting in _next(store)] == [2]
        done = finish(store, start(store, again), result=an_object("p"))
        assert (done.attempt, done.result) == (2, an_object("p"))
        assert list(done.status_history) == ["waiting", "queued", "processing", "processed"]

    def test_the_lease_of_what_starts_over_is_lost(self, store: RequestStore) -> None:
        running = start(store, store.add(new_request()), holder="a")
        again = start_over(store, running)
        assert (again.status, again.attempt, again.tries) == (Status.WAITING, 2, 1)
        assert running.lease is not None
        assert not store.renew([(running.id, running.lease)], duration_s=10)
        with pytest.raises(StepLost):
            finish(store, running)
        with pytest.raises(StepLost):
            start_over(store, running)
        assert store.get(running.id) == again

    def test_tries_are_counted_from_the_last_start(self, store: RequestStore) -> None:
        request = store.add(new_request())
        for _ in range(2):
            request = _give_back(store, start(store, request), count_attempt=True)
        assert (request.attempt, request.tries) == (3, 3)
        again = start_over(store, finish(store, start(store, request), target=Status.FAILED))
        assert (again.attempt, again.tries) == (4, 1)
        assert _give_back(store, start(store, again), count_attempt=True).tries == 2

    def test_an_archive_starts_over_with_its_input_and_never_without(
        self, store: RequestStore
    ) -> None:
        data = an_object("i")
        kept, lost = uploaded(store, data), uploaded(store, data)
        never = store.add(new_request(status=Status.UPLOADING, verb=Verb.ARCHIVE))
        store.apply(Step(id=never.id, source=Status.UPLOADING, target=Status.FAILED))
        for request in (kept, lost):
            finish(store, start(store, request), target=Status.FAILED)
        store.forget_input(lost.id, data)
        again = start_over(store, store.get(kept.id))
        assert again.input == data
        assert list(again.status_history) == ["uploading", "waiting"]
        for request in (lost, never):
            before = store.get(request.id)
            with pytest.raises(StepLost):
                start_over(store, before)
            assert store.get(request.id) == before

    def test_of_forgetting_the_input_and_starting_over_one_wins(self, store: RequestStore) -> None:
        data = an_object("i")
        for _ in range(20):
            request = uploaded(store, data)
            failed = finish(store, start(store, request), target=Status.FAILED)

            def attempt(number: int, failed: Request = failed) -> str:
                if number == 0:
                    return "forgotten" if store.forget_input(failed.id, data) else "kept"
                try:
                    start_over(store, failed)
                except StepLost:
                    return "lost"
                return "waits"

            assert set(_race(2, attempt)) in ({"forgotten", "lost"}, {"kept", "waits"})

    def test_what_starts_over_is_too_young_to_be_collected_or_given_up(
        self, store: RequestStore
    ) -> None:
        failed = finish(store, start(store, store.add(new_request())), target=Status.FAILED)
        _until(lambda: store.now() > failed.modified_at + 0.01)
        before = store.now()
        _until(lambda: store.now() > before)
        start_over(store, failed)
        assert list(store.remove_if_finished([failed.id], not_after=store.now())) == []
        assert store.unfinished_before(before, status=Status.WAITING) == []
        assert len(store.unfinished_before(store.now() + 1, status=Status.WAITING)) == 1

    def test_many_that_start_over_do_not_delay_another_user(self, store: RequestStore) -> None:
        many = [
            finish(store, start(store, store.add(new_request())), target=Status.FAILED)
            for _ in range(10)
        ]
        for _ in range(10):  # turns go on meanwhile
            finish(store, start(store, store.add(new_request(user=ANN))))
        one = store.add(new_request(user=ANN))
        for request in many:
            start_over(store, request)
        order = [waiting.id for waiting in _next(store)]
        assert order.index(one.id) <= 1
        assert [name for name in order if name != one.id] == [request.id for request in many]

    def test_the_same_key_gives_a_request_that_started_over(self, store: RequestStore) -> None:
        first = store.add(new_request(), idempotency_key="k")
        again = start_over(store, finish(store, start(store, first), target=Status.FAILED))
        assert store.add(new_request(), idempotency_key="k") == again

    # --- leases

    def test_a_lease_expires_and_a_renewed_one_does_not(self, store: RequestStore) -> None:
        short = start(store, store.add(new_request()), lease_s=0.05)
        renewed = start(store, store.add(new_request()), lease_s=0.05)
        assert renewed.lease is not None
        held = (renewed.id, renewed.lease)
        assert set(store.renew([held], duration_s=60)) == {held}
        _until(lambda: [r.id for r in store.expired_leases(limit=10)] == [short.id])

    def test_a_lease_that_was_renewed_in_time_is_not_taken_away(self, store: RequestStore) -> None:
        running = start(store, store.add(new_request()), lease_s=60)
        take_back = Step(
            id=running.id,
            source=Status.PROCESSING,
            target=Status.WAITING,
            lease=running.lease,
            count_attempt=True,
            only_if_expired=True,
        )
        with pytest.raises(StepLost):
            store.apply(take_back)
        assert running.lease is not None
        store.renew([(running.id, running.lease)], duration_s=0.01)
        _until(lambda: bool(store.expired_leases(limit=1)))
        assert store.apply(take_back).attempt == 2

    def test_only_a_lease_that_holds_is_renewed(self, store: RequestStore) -> None:
        mine = start(store, store.add(new_request()), holder="a")
        removed = start(store, store.add(new_request()), holder="a")
        store.remove(removed.id)
        assert mine.lease is not None
        assert removed.lease is not None
        held = (mine.id, mine.lease)
        assert set(store.renew([held, (removed.id, removed.lease)], duration_s=60)) == {held}
        assert not store.renew([(mine.id, Lease(holder="b", attempt=1))], duration_s=60)
        assert not store.renew([(mine.id, Lease(holder="a", attempt=2))], duration_s=60)
        assert not store.renew([], duration_s=60)

    def test_of_two_leases_of_one_request_the_present_one_is_renewed(
        self, store: RequestStore
    ) -> None:
        first = start(store, store.add(new_request()), holder="a", lease_s=0.05)
        assert first.lease is not None
        store.apply(
            Step(
                id=first.id,
                source=Status.PROCESSING,
                target=Status.WAITING,
                lease=first.lease,
                count_attempt=True,
            )
        )
        second = start(store, store.get(first.id), holder="b", lease_s=0.05)
        assert second.lease is not None
        old, present = (first.id, first.lease), (second.id, second.lease)
        assert list(store.renew([present, old], duration_s=0.05)) == [present]
        assert list(store.renew([old, present], duration_s=60)) == [present]
        assert not store.expired_leases(limit=1)

    def test_progress_is_seen_by_polls_and_only_under_the_lease(self, store: RequestStore) -> None:
        running = start(store, store.add(new_request()), holder="a")
        assert running.lease is not None
        store.report(running.id, running.lease, bytes_staged=7)
        store.report(running.id, Lease(holder="b", attempt=1), bytes_staged=99)
        store.report("nobody", running.lease, bytes_staged=99)
        seen = store.get_many([running.id, "nobody"])
        assert set(seen) == {running.id}
        assert seen[running.id].bytes_staged == 7
        assert seen[running.id].status is Status.PROCESSING
        assert store.get(running.id).modified_at == running.modified_at

    # --- removing

    def test_removed_is_gone_whatever_it_was(self, store: RequestStore) -> None:
        waiting = store.add(new_request())
        running = start(store, store.add(new_request()))
        done = finish(store, start(store, store.add(new_request())), result=an_object("o"))
        for request in (waiting, running, done):
            assert store.remove(request.id, user_id=JOE.id) == request
            with pytest.raises(RequestNotFound):
                store.get(request.id)
            with pytest.raises(RequestNotFound):
                store.remove(request.id)
        with pytest.raises(RequestNotFound):
            finish(store, running)

    def test_only_the_unfinished_can_be_asked_for(self, store: RequestStore) -> None:
        running = start(store, store.add(new_request()))
        done = finish(store, start(store, store.add(new_request())))
        assert store.remove(running.id, only_unfinished=True) == running
        with pytest.raises(RequestNotFound):
            store.remove(done.id, only_unfinished=True)
        assert store.get(done.id) == done

    def test_anothers_request_cannot_be_removed(self, store: RequestStore) -> None:
        request = store.add(new_request())
        with pytest.raises(RequestNotFound):
            store.remove(request.id, user_id=ANN.id)
        assert store.get(request.id).status is Status.WAITING

    def test_the_collector_removes_only_what_is_finished_and_old(self, store: RequestStore) -> None:
        waiting = store.add(new_request())
        done = finish(store, start(store, store.add(new_request())), result=an_object("o"))
        _until(lambda: store.now() > done.modified_at + 0.01)
        later = finish(store, start(store, store.add(new_request())))
        ids = [waiting.id, done.id, later.id, "nobody"]
        assert list(store.remove_if_finished(ids, not_after=done.modified_at - 1)) == []
        assert list(store.remove_if_finished([], not_after=store.now())) == []
        (gone,) = store.remove_if_finished(ids, not_after=done.modified_at)
        assert (gone.id, gone.user, list(gone.objects)) == (done.id, JOE, [an_object("o")])
        assert set(store.get_many(ids)) == {waiting.id, later.id}
        assert [g.id for g in store.remove_if_finished(ids, not_after=store.now())] == [later.id]
        assert set(store.get_many(ids)) == {waiting.id}

    def test_the_collector_is_told_what_objects_the_removed_had(self, store: RequestStore) -> None:
        kept, forgotten = an_object("kept-in"), an_object("forgotten-in")
        ids = []
        for data in (kept, forgotten):
            request = store.add(new_request(status=Status.UPLOADING, verb=Verb.ARCHIVE))
            store.apply(
                Step(id=request.id, source=Status.UPLOADING, target=Status.WAITING, input=data)
            )
            finish(store, start(store, request), result=an_object(f"{data.name}-out"))
            ids.append(request.id)
        store.forget_input(ids[1], forgotten)
        others = [f"x{i}" for i in range(1500)]
        gone = store.remove_if_finished([*others, *ids], not_after=store.now())
        assert {g.id: {data.name for data in g.objects} for g in gone} == {
            ids[0]: {"kept-in", "kept-in-out"},
            ids[1]: {"forgotten-in-out"},
        }

    def test_of_many_collectors_one_removes_a_request(self, store: RequestStore) -> None:
        ids = [finish(store, start(store, store.add(new_request()))).id for _ in range(20)]
        gone = _race(6, lambda _: store.remove_if_finished(ids, not_after=store.now()))
        assert sorted(one.id for each in gone for one in each) == ids

    # --- a user's own

    def test_a_user_sees_their_own_in_order_page_by_page(self, store: RequestStore) -> None:
        mine = [store.add(new_request(collection=f"c{i % 2}")) for i in range(7)]
        store.add(new_request(user=ANN))
        pages: list[str] = []
        last: Request | None = None
        while page := store.requests_of(JOE.id, after=last, limit=3):
            pages.extend(request.id for request in page)
            last = page[-1]
            store.remove(last.id)
        assert pages == [request.id for request in mine]

    def test_a_page_of_large_requests_ends_early_but_never_empty(self, store: RequestStore) -> None:
        mine = [
            store.add(replace(new_request(), user_request="x" * size))
            for size in (900, 900, 9000, 1)
        ]
        pages: list[list[str]] = []
        last: Request | None = None
        while page := store.requests_of(JOE.id, after=last, max_bytes=1500):
            pages.append([request.id for request in page])
            last = replace(page[-1], user_request="", coerced_request={})
        assert pages == [[mine[0].id, mine[1].id], [mine[2].id], [mine[3].id]]

    def test_a_list_can_be_of_one_collection(self, store: RequestStore) -> None:
        store.add(new_request(collection="a"))
        b = store.add(new_request(collection="b"))
        assert store.requests_of(JOE.id, collection="b") == [b]
        assert store.requests_of(JOE.id, collection="c") == []
        assert store.count(JOE.id) == 2
        assert store.count(ANN.id) == 0

    def test_unfinished_ids_leave_out_what_is_finished(self, store: RequestStore) -> None:
        one, two = store.add(new_request()), store.add(new_request())
        finish(store, start(store, two))
        assert store.unfinished_ids(JOE.id) == [one.id]

    # --- scheduling

    def test_the_oldest_comes_first_for_one_user(self, store: RequestStore) -> None:
        ids = [store.add(new_request()).id for _ in range(5)]
        assert [waiting.id for waiting in _next(store)] == ids
        assert [waiting.id for waiting in _next(store, limit=2)] == ids[:2]
        assert _next(store)[0].user == JOE

    def test_a_user_with_many_does_not_delay_a_user_with_one(self, store: RequestStore) -> None:
        many = [store.add(new_request()).id for _ in range(20)]
        one = store.add(new_request(user=ANN)).id
        order = [waiting.id for waiting in _next(store, limit=30)]
        assert order.index(one) <= 1
        assert [name for name in order if name != one] == many

    def test_a_late_user_does_not_overtake_for_ever(self, store: RequestStore) -> None:
        for _ in range(10):
            store.add(new_request())
        for waiting in _next(store, limit=5):
            store.apply(Step(id=waiting.id, source=Status.WAITING, target=Status.QUEUED))
        late = [store.add(new_request(user=ANN)).id for _ in range(10)]
        users = [waiting.user.username for waiting in _next(store, limit=10)]
        assert 4 <= users.count("ann") <= 6
        assert late[0] in {waiting.id for waiting in _next(store, limit=2)}

    def test_saturated_users_are_left_out(self, store: RequestStore) -> None:
        for _ in range(50):
            store.add(new_request())
        one = store.add(new_request(user=ANN))
        assert [w.id for w in _next(store, leaving_out={JOE.id})] == [one.id]
        assert _next(store, leaving_out={JOE.id, ANN.id}) == []

    def test_what_came_back_is_next(self, store: RequestStore) -> None:
        first = start(store, store.add(new_request()))
        for _ in range(3):
            store.add(new_request())
        _give_back(store, first, count_attempt=True)
        assert _next(store)[0].id == first.id
        assert _next(store)[0].attempt == 2

    def test_collections_that_wait_are_known(self, store: RequestStore) -> None:
        assert store.waiting_collections() == []
        store.add(new_request(collection="b"))
        store.add(new_request(collection="b"))
        enqueue(store, store.add(new_request(collection="z")))
        store.add(new_request(collection="a"))
        assert store.waiting_collections() == ["a", "b"]

    def test_active_requests_are_counted_by_collection_and_user(self, store: RequestStore) -> None:
        assert store.active_counts() == {}
        store.add(new_request())
        enqueue(store, store.add(new_request()))
        start(store, store.add(new_request()))
        start(store, store.add(new_request(user=ANN, collection="c2")))
        finish(store, start(store, store.add(new_request())))
        assert store.active_counts() == {("c1", JOE.id): 2, ("c2", ANN.id): 1}
        assert store.queued_count() == 1

    def test_the_oldest_of_a_status_is_known_by_collection(self, store: RequestStore) -> None:
        assert store.oldest(Status.WAITING) == {}
        mine = [store.add(new_request()) for _ in range(3)]
        theirs = [store.add(new_request(user=ANN)) for _ in range(2)]
        other = store.add(new_request(collection="c2", user=ANN))
        since = {"c1": mine[0].modified_at, "c2": other.modified_at}
        assert store.oldest(Status.WAITING) == since
        queued = [enqueue(store, mine[0]), enqueue(store, mine[1])]
        assert store.oldest(Status.WAITING) == {**since, "c1": mine[2].modified_at}
        assert store.oldest(Status.QUEUED) == {"c1": queued[0].modified_at}
        enqueue(store, mine[2])
        assert store.oldest(Status.WAITING) == {**since, "c1": theirs[0].modified_at}
        assert store.oldest(Status.PROCESSING) == store.oldest(Status.UPLOADING) == {}

    def test_it_is_known_since_when_a_waiting_request_waits(self, store: RequestStore) -> None:
        added = store.add(new_request())
        assert [waiting.since for waiting in _next(store)] == [added.modified_at]
        back = _give_back(store, start(store, added), count_attempt=True)
        assert [waiting.since for waiting in _next(store)] == [back.modified_at]

    def test_a_history_tells_when_a_request_came_where_it_was(self, store: RequestStore) -> None:
        queued = enqueue(store, store.add(new_request()))
        started = start_queued(store, queued)
        since = stood_since(started, Status.QUEUED)
        assert since == pytest.approx(queued.modified_at, abs=0.001)
        again = start(store, _give_back(store, started, count_attempt=True))
        assert stood_since(again, Status.QUEUED) is None, "it has been there before"

    def test_queued_requests_are_found_for_publishing_again(self, store: RequestStore) -> None:
        one = enqueue(store, store.add(new_request()))
        two = enqueue(store, store.add(new_request()))
        start(store, store.add(new_request()))
        assert store.queued_since(store.now(), limit=10) == [(one.id, 1), (two.id, 1)]
        assert store.queued_since(store.now(), limit=1) == [(one.id, 1)]
        assert store.queued_since(one.modified_at - 1, limit=10) == []

    def test_positions_are_what_was_put_last(self, store: RequestStore) -> None:
        assert store.positions("c") == []
        store.put_positions("c", ["a", "b"])
        store.put_positions("c", ["b"])
        store.put_positions("d", ["x"])
        assert store.positions("c") == ["b"]

    def test_a_post_has_one_holder_until_it_ends(self, store: RequestStore) -> None:
        assert store.take_post("broker", "a", duration_s=60)
        assert not store.take_post("broker", "b", duration_s=60)
        assert store.take_post("other", "b", duration_s=60)
        assert store.take_post("broker", "a", duration_s=0.05)
        _until(lambda: store.take_post("broker", "b", duration_s=60))
        store.leave_post("broker", "a")
        assert not store.take_post("broker", "a", duration_s=60)
        store.leave_post("broker", "b")
        assert store.take_post("broker", "a", duration_s=60)

    # --- collecting

    def test_finished_requests_are_paged_by_age(self, store: RequestStore) -> None:
        done = sorted(finish(store, start(store, store.add(new_request()))).id for _ in range(5))
        store.add(new_request())
        now = store.now() + 1
        first = store.finished_before(now, limit=3)
        assert [*first, *store.finished_before(now, after=first[-1], limit=3)] == done
        assert store.finished_before(1.0) == []

    def test_unfinished_requests_are_paged_by_status_and_age(self, store: RequestStore) -> None:
        up = sorted(store.add(new_request(status=Status.UPLOADING)).id for _ in range(3))
        waiting = store.add(new_request())
        now = store.now() + 1
        found = store.unfinished_before(now, status=Status.UPLOADING, limit=2)
        found = [
            *found,
            *store.unfinished_before(now, status=Status.UPLOADING, after=found[-1].id),
        ]
        assert [request.id for request in found] == up
        assert store.unfinished_before(now, status=Status.WAITING) == [waiting]
        assert store.unfinished_before(1.0, status=Status.WAITING) == []

    def test_results_come_least_recently_modified_first(self, store: RequestStore) -> None:
        done = [
            finish(store, start(store, store.add(new_request())), result=an_object(f"o{i}"))
            for i in range(5)
        ]
        finish(store, start(store, store.add(new_request())))
        first = store.results(limit=3)
        rest = store.results(after=(first[-1].modified_at, first[-1].id))
        assert [staged.name for staged in (*first, *rest)] == [f"o{i}" for i in range(5)]
        assert first[0].id == done[0].id
        assert first[0].size_bytes == 10

    # --- the operators

    def test_requests_are_found_in_order_of_submission_page_by_page(
        self, store: RequestStore
    ) -> None:
        everything = [
            store.add(new_request(user=(JOE, ANN)[i % 2], collection=f"c{i % 3}"))
            for i in range(11)
        ]
        finish(store, start(store, everything[4]))
        ids = [request.id for request in everything]
        for newest_first in (False, True):
            found: list[str] = []
            last: Request | None = None
            while page := store.find(Wanted(), after=last, newest_first=newest_first, limit=3):
                assert len(page) <= 3
                found.extend(request.id for request in page)
                last = page[-1]
            assert found == (ids[::-1] if newest_first else ids)
        store.remove(ids[5])
        assert [r.id for r in store.find(Wanted(), after=everything[5], limit=2)] == ids[6:8]

    def test_a_page_is_what_the_store_holds(self, store: RequestStore) -> None:
        request = start(store, store.add(new_request()))
        assert list(store.find(Wanted())) == [store.get(request.id)] == [request]

    def test_requests_are_found_by_all_that_is_said_about_them(self, store: RequestStore) -> None:
        other_joe = User(username="joe", realm="other")
        a = store.add(new_request(collection="a"))
        b = start(store, store.add(new_request(user=ANN, collection="b")), holder="w1/0")
        c = start(store, store.add(new_request(user=other_joe, collection="a")), holder="w1/1")
        d = start(store, store.add(new_request(collection="a")), holder="w10/0")
        e = finish(store, start(store, store.add(new_request()), holder="w1/0"))
        middle = b.created_at
        for wanted, found in (
            (Wanted(), [a, b, c, d, e]),
            (Wanted(statuses={Status.PROCESSING, Status.WAITING}), [a, b, c, d]),
            (Wanted(statuses=()), []),
            (Wanted(collection="a"), [a, c, d]),
            (Wanted(collection="a", statuses={Status.PROCESSING}), [c, d]),
            (Wanted(collection="none"), []),
            (Wanted(username="joe"), [a, c, d, e]),
            (Wanted(username="joe", realm="r"), [a, d, e]),
            (Wanted(username="joe", statuses={Status.PROCESSED}), [e]),
            (Wanted(username="joe", collection="a"), [a, c, d]),
            (Wanted(realm="other"), [c]),
            (Wanted(username="ann", realm="other"), []),
            (Wanted(worker="w1"), [b, c]),
            (Wanted(worker="w1/0"), [b]),
            (Wanted(worker="w1", username="ann"), [b]),
            (Wanted(worker="w1", statuses={Status.WAITING}), []),
            (Wanted(worker="w_"), []),
            (Wanted(created_before=middle), [a]),
            (Wanted(created_after=middle), [c, d, e]),
            (Wanted(created_after=middle, created_before=e.created_at), [c, d]),
        ):
            ids = [request.id for request in found]
            assert [r.id for r in store.find(wanted, limit=10)] == ids, wanted
            newest_first = store.find(wanted, newest_first=True, limit=10)
            assert [r.id for r in newest_first] == ids[::-1], wanted
            counted = Counter((store.get(i).collection, store.get(i).status) for i in ids)
            assert store.counts(wanted) == counted, wanted

    def test_an_entry_is_kept_with_its_change_and_not_without(self, store: RequestStore) -> None:
        request = store.add(new_request())
        fail = Step(
            id=request.id,
            source=Status.WAITING,
            target=Status.FAILED,
            audit=an_entry(request.id, reason="because"),
        )
        begin = store.now()
        failed = store.apply(fail)
        with pytest.raises(StepLost):
            store.apply(fail)
        assert store.apply_each([fail]) == [None]
        again = start_over(store, failed, audit=an_entry(request.id, command="requeue"))
        assert store.apply_each([replace(fail, audit=an_entry(again.id, command="2"))]) != [None]
        store.remove(request.id, audit=an_entry(request.id, command="revoke"))
        with pytest.raises(RequestNotFound):
            store.remove(request.id, audit=an_entry(request.id, command="revoke"))
        noted = store.noted()
        assert [entry.command for entry in noted] == ["revoke", "2", "requeue", "fail"]
        assert all(begin <= entry.at <= store.now() for entry in noted)
        assert replace(noted[-1], at=0.0) == an_entry(request.id, reason="because")

    def test_entries_are_read_the_latest_first_and_by_target(self, store: RequestStore) -> None:
        for number in range(5):
            entry = replace(an_entry(f"t{number % 2}", command=f"{number}"), before={"a": [1, "ü"]})
            store.note(entry.ending("refused"))
        assert [entry.command for entry in store.noted(limit=3)] == ["4", "3", "2"]
        found = store.noted(target="t1")
        assert [entry.command for entry in found] == ["3", "1"]
        assert (found[0].outcome, found[0].before) == ("refused", {"a": [1, "ü"]})
        assert store.noted(target="t9") == []

    def test_a_mark_is_made_once_and_taken_away_once(self, store: RequestStore) -> None:
        assert store.marked(Mark.PAUSED) == {}
        first = an_entry("c1", command="pause", reason="tapes")
        made = _race(6, lambda _: store.mark(Mark.PAUSED, "c1", audit=first))
        assert Counter(made) == {True: 1, False: 5}
        assert store.mark(Mark.DRAINING, "c1", audit=an_entry("c1", command="drain"))
        assert set(store.marked(Mark.PAUSED)) == {"c1"}
        kept = store.marked(Mark.PAUSED)["c1"]
        assert (kept.reason, replace(kept, at=0.0)) == ("tapes", first)
        assert not store.unmark(Mark.PAUSED, "c2", audit=an_entry("c2", command="resume"))
        gone = _race(6, lambda _: store.unmark(Mark.PAUSED, "c1", audit=an_entry("c1")))
        assert Counter(gone) == {True: 1, False: 5}
        assert store.marked(Mark.PAUSED) == {}
        assert set(store.marked(Mark.DRAINING)) == {"c1"}
        assert [entry.command for entry in store.noted()] == ["fail", "drain", "pause"]

    def test_workers_are_known_until_they_leave(self, store: RequestStore) -> None:
        assert not store.attend("w2", slots=4, busy=0)
        assert not store.attend("w1", slots=2, busy=1)
        assert not store.attend("w1", slots=2, busy=2)
        one, two = store.workers()
        assert one == Attendance(name="w1", slots=2, busy=2, seen_at=one.seen_at)
        assert (two.name, two.slots, two.busy) == ("w2", 4, 0)
        assert two.seen_at <= one.seen_at <= store.now()
        store.leave("w1")
        store.leave("w1")
        assert [worker.name for worker in store.workers()] == ["w2"]

    def test_a_worker_hears_that_it_is_to_drain(self, store: RequestStore) -> None:
        store.attend("w1", slots=1, busy=0)
        store.mark(Mark.DRAINING, "w1", audit=an_entry("w1"))
        store.mark(Mark.PAUSED, "w2", audit=an_entry("w2"))
        assert store.attend("w1", slots=1, busy=0)
        assert not store.attend("w2", slots=1, busy=0)
        store.unmark(Mark.DRAINING, "w1", audit=an_entry("w1"))
        assert not store.attend("w1", slots=1, busy=0)

    def test_marks_of_workers_go_with_them(self, store: RequestStore) -> None:
        store.attend("w1", slots=1, busy=0)
        for worker in ("w1", "long gone"):
            store.mark(Mark.DRAINING, worker, audit=an_entry(worker))
        store.leave("w1")
        assert set(store.marked(Mark.DRAINING)) == {"long gone"}
        store.attend("w3", slots=1, busy=0)
        assert store.marked(Mark.DRAINING) == {}

    def test_the_holder_of_a_post_is_known_while_it_holds(self, store: RequestStore) -> None:
        assert store.holder_of("broker") is None
        store.take_post("broker", "a", duration_s=60)
        assert store.holder_of("broker") == "a"
        store.take_post("broker", "a", duration_s=0.01)
        _until(lambda: store.holder_of("broker") is None)

    # --- records of use

    def test_a_finished_request_leaves_one_record_of_use(self, store: RequestStore) -> None:
        done = finish(store, start(store, store.add(new_request())), result=an_object("o"))
        (usage,) = store.usage()
        assert (usage.id, usage.user, usage.verb) == (done.id, JOE, Verb.RETRIEVE)
        assert (usage.collection, usage.datasource) == ("c1", "d")
        assert (usage.status, usage.attempt, usage.size_bytes) == (Status.PROCESSED, 1, 10)
        assert usage.key == (done.modified_at, done.id)
        assert usage.submitted_at == pytest.approx(done.created_at, abs=0.001)
        assert usage.started_at == pytest.approx(done.status_history["processing"], abs=0.001)

    def test_steps_that_finish_nothing_leave_no_record_of_use(self, store: RequestStore) -> None:
        store.add(new_request(status=Status.UPLOADING, verb=Verb.ARCHIVE))
        _give_back(store, start(store, store.add(new_request())), count_attempt=True)
        enqueue(store, store.add(new_request()))
        done = finish(store, start(store, store.add(new_request())))
        with pytest.raises(StepLost):
            finish(store, replace(done, holder="w"))
        store.remove(store.add(new_request()).id)
        assert [usage.id for usage in store.usage()] == [done.id]

    def test_a_record_of_use_says_how_a_request_failed(self, store: RequestStore) -> None:
        never = store.add(new_request(user=ANN))
        step = Step(id=never.id, source=Status.WAITING, target=Status.FAILED)
        assert len([request for request in store.apply_each([step, step]) if request]) == 1
        data = replace(an_object("i"), size_bytes=7)
        up = store.add(new_request(status=Status.UPLOADING, verb=Verb.ARCHIVE))
        store.apply(Step(id=up.id, source=Status.UPLOADING, target=Status.WAITING, input=data))
        finish(store, start(store, up), target=Status.FAILED)
        by_id = {usage.id: usage for usage in store.usage()}
        assert set(by_id) == {never.id, up.id}
        assert (by_id[never.id].started_at, by_id[never.id].size_bytes) == (None, 0)
        assert (by_id[up.id].verb, by_id[up.id].size_bytes) == (Verb.ARCHIVE, 7)
        assert {usage.status for usage in by_id.values()} == {Status.FAILED}

    def test_a_record_of_use_outlives_its_request(self, store: RequestStore) -> None:
        removed, collected = (finish(store, start(store, store.add(new_request()))) for _ in "12")
        store.remove(removed.id, user_id=JOE.id)
        store.remove_if_finished([collected.id], not_after=store.now())
        assert store.count(JOE.id) == 0
        assert [usage.id for usage in store.usage()] == [removed.id, collected.id]

    def test_a_request_that_starts_over_and_ends_again_leaves_another_record_of_use(
        self, store: RequestStore
    ) -> None:
        failed = finish(store, start(store, store.add(new_request())), target=Status.FAILED)
        over = start_over(store, failed)
        done = finish(store, start(store, over))
        first, second = store.usage()
        assert (first.key, second.key) == (
            (failed.modified_at, failed.id),
            (done.modified_at, done.id),
        )
        assert (first.status, first.attempt) == (Status.FAILED, 1)
        assert (second.status, second.attempt) == (Status.PROCESSED, 2)
        assert second.submitted_at == pytest.approx(over.modified_at, abs=0.001)
        assert second.started_at is not None
        assert second.started_at >= second.submitted_at >= first.finished_at - 0.001

    def test_records_of_use_are_paged_in_order_and_forgotten_one_by_one(
        self, store: RequestStore
    ) -> None:
        assert (store.usage(), store.usage_count()) == ([], 0)
        done = [finish(store, start(store, store.add(new_request()))) for _ in range(5)]
        keys = [(request.modified_at, request.id) for request in done]
        first = store.usage(limit=3)
        rest = store.usage(after=first[-1].key)
        assert [usage.key for usage in (*first, *rest)] == keys
        store.forget_usage([keys[1], keys[2], (keys[3][0], "another"), (1.0, keys[3][1])])
        store.forget_usage([keys[1]])
        store.forget_usage([])
        assert [usage.key for usage in store.usage()] == [keys[0], *keys[3:]]
        assert store.usage_count() >= 3
        store.forget_usage(keys)
        assert (store.usage(), store.usage_count()) == ([], 0)

    # --- API keys

    def test_a_key_is_found_by_its_digest_with_who_made_it_and_without_roles(
        self, store: RequestStore, again: RequestStore
    ) -> None:
        user = User(
            username="Jöe/1",
            realm="r",
            roles=frozenset({"default", "staff"}),
            attributes={"site.name": "Reading", "$x": ""},
        )
        key = new_key(user=user)
        before = store.now()
        made = store.add_key(key, lifetime_s=3600, max_keys=5)
        assert before <= made.created_at <= store.now()
        assert made.expires_at == pytest.approx(made.created_at + 3600, abs=0.01)
        found = again.key(key.digest)
        assert found is not None
        assert (found.id, found.digest, found.name, found.hint) == (
            key.id,
            key.digest,
            "laptop",
            "wxyz",
        )
        assert found.created_at == pytest.approx(made.created_at, abs=0.01)
        assert found.expires_at == pytest.approx(made.expires_at, abs=0.01)
        assert (found.user.username, found.user.realm) == ("Jöe/1", "r")
        assert found.user.roles == {"default"}
        assert dict(found.user.attributes) == {"site.name": "Reading", "$x": ""}
        assert found.user.id == user.id
        assert store.key("0" * 64) is None
        assert store.key("") is None

    def test_the_digest_is_not_shown(self) -> None:
        key = new_key()
        assert key.digest not in repr(key)

    def test_a_users_keys_are_listed_in_order_and_nobody_elses(self, store: RequestStore) -> None:
        same_name = User(username=JOE.username, realm="another")
        ours = [store.add_key(new_key(), lifetime_s=60, max_keys=9) for _ in range(3)]
        others = [
            store.add_key(new_key(user=user), lifetime_s=60, max_keys=9)
            for user in (ANN, same_name)
        ]
        assert [key.id for key in store.keys_of(JOE.id)] == [key.id for key in ours]
        assert [key.id for key in store.keys_of(ANN.id)] == [others[0].id]
        assert store.keys_of("nobody") == []

    def test_everybodys_keys_are_listed_page_by_page(self, store: RequestStore) -> None:
        ids = sorted(
            store.add_key(new_key(user=user), lifetime_s=60, max_keys=9).id
            for user in (JOE, ANN, JOE)
        )
        first = store.all_keys(limit=2)
        rest = store.all_keys(after=first[-1].id, limit=2)
        assert [key.id for key in (*first, *rest)] == ids
        assert store.all_keys(after=ids[-1]) == []

    def test_a_removed_key_is_gone_at_once_for_everybody(
        self, store: RequestStore, again: RequestStore
    ) -> None:
        key, stays = (store.add_key(new_key(), lifetime_s=60, max_keys=9) for _ in range(2))
        assert again.key(key.digest) is not None
        assert store.remove_key(key.id).digest == key.digest
        assert (again.key(key.digest), store.key(key.digest)) == (None, None)
        assert [each.id for each in again.keys_of(JOE.id)] == [stays.id]
        assert [each.id for each in again.all_keys()] == [stays.id]
        with pytest.raises(KeyNotFound):
            store.remove_key(key.id)

    def test_anothers_key_cannot_be_removed(self, store: RequestStore) -> None:
        key = store.add_key(new_key(), lifetime_s=60, max_keys=9)
        with pytest.raises(KeyNotFound):
            store.remove_key(key.id, user_id=ANN.id)
        assert store.key(key.digest) is not None
        assert store.remove_key(key.id, user_id=JOE.id).id == key.id

    def test_an_entry_is_kept_with_the_removal_of_a_key_and_not_without(
        self, store: RequestStore
    ) -> None:
        key = store.add_key(new_key(), lifetime_s=60, max_keys=9)
        store.remove_key(key.id, audit=an_entry(key.id, command="revoke key"))
        with pytest.raises(KeyNotFound):
            store.remove_key(key.id, audit=an_entry(key.id, command="revoke key", reason="again"))
        assert [(each.command, each.reason) for each in store.noted(target=key.id)] == [
            ("revoke key", "")
        ]

    def test_a_key_that_has_expired_is_not_there(self, store: RequestStore) -> None:
        short = store.add_key(new_key(), lifetime_s=0.3, max_keys=1)
        assert store.key(short.digest) is not None
        deadline = time.monotonic() + 10
        while store.key(short.digest) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert store.now() >= short.expires_at
        assert store.keys_of(JOE.id) == []
        assert store.all_keys() == []
        with pytest.raises(KeyNotFound):
            store.remove_key(short.id)
        # it does not count any more either
        assert store.add_key(new_key(), lifetime_s=60, max_keys=1).id

    def test_a_user_has_no_more_keys_than_they_may(self, store: RequestStore) -> None:
        results = _race(8, lambda _: _add_key(store, max_keys=3))
        assert sorted(results) == [False] * 5 + [True] * 3
        assert len(store.keys_of(JOE.id)) == 3
        refused = new_key()
        with pytest.raises(LimitReached, match="3"):
            store.add_key(refused, lifetime_s=60, max_keys=3)
        assert store.key(refused.digest) is None
        store.add_key(new_key(user=ANN), lifetime_s=60, max_keys=3)
        store.remove_key(store.keys_of(JOE.id)[0].id)
        store.add_key(refused, lifetime_s=60, max_keys=3)

    # --- shared secrets

    def test_a_shared_secret_is_made_once(self, store: RequestStore) -> None:
        secrets = _race(8, lambda number: store.shared_secret("k", f"proposal {number}"))
        assert len(set(secrets)) == 1
        assert store.shared_secret("other", "o") == "o"


def _add_key(store: RequestStore, *, max_keys: int) -> bool:
    try:
        store.add_key(new_key(), lifetime_s=60, max_keys=max_keys)
    except LimitReached:
        return False
    return True


def uploaded(store: RequestStore, data: DataObject) -> Request:
    """An archive that waits, with its data."""
    request = store.add(new_request(status=Status.UPLOADING, verb=Verb.ARCHIVE))
    return store.apply(
        Step(id=request.id, source=Status.UPLOADING, target=Status.WAITING, input=data)
    )


def _next(
    store: RequestStore, *, leaving_out: set[str] | frozenset[str] = frozenset(), limit: int = 100
) -> list[Waiting]:
    return list(store.next_waiting("c1", leaving_out=leaving_out, limit=limit))


def _give_back(store: RequestStore, running: Request, *, count_attempt: bool) -> Request:
    return store.apply(
        Step(
            id=running.id,
            source=Status.PROCESSING,
            target=Status.WAITING,
            lease=running.lease,
            count_attempt=count_attempt,
        )
    )


def _race(number: int, action: Callable[[int], T]) -> list[T]:
    """Run *action* in so many threads at once; what each returned."""
    barrier = threading.Barrier(number)
    results: list[T] = []
    errors: list[BaseException] = []

    def run(index: int) -> None:
        barrier.wait(timeout=30)
        try:
            results.append(action(index))
        except BaseException as exc:  # noqa: BLE001 -- raised again in the test's own thread
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    if errors:
        raise errors[0]
    return results


def _until(condition: Callable[[], bool], *, deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)
