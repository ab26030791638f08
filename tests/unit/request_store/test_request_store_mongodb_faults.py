"""The store on MongoDB while its server is killed, stopped and restarted, and while answers get lost."""

import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import pytest
from asked import Listener, heard_by
from bson.datetime_ms import DatetimeMS
from pymongo.monitoring import CommandFailedEvent, CommandStartedEvent
from services.fixtures import started
from services.mongodb import MongoDb
from services.proxy import ChaosProxy, Mode

from polytope_server.config.mongodb import MongoStoreSection
from polytope_server.errors import BackendUnavailable, LimitReached, RequestNotFound, StepLost
from polytope_server.request import Lease, Status, Step
from polytope_server.request_store import Mark
from polytope_server.request_store.mongodb import MongoRequestStore
from polytope_server.request_store.mongodb.pipelines import removed
from polytope_server.testing.request_store import (
    ANN,
    JOE,
    an_entry,
    an_object,
    enqueue,
    finish,
    new_key,
    new_request,
    start,
    start_over,
    start_queued,
    uploaded,
)
from polytope_server.user import User

WAIT_S: Final = 2.0


def opened(uri: str, database: str, *, timeout: float = WAIT_S) -> MongoRequestStore:
    return MongoRequestStore(MongoStoreSection(uri=uri, database=database, timeout=timeout))


@pytest.fixture
def store(mongodb: MongoDb) -> Iterator[MongoRequestStore]:
    database = mongodb.database()
    one = opened(mongodb.uri, database, timeout=20)
    yield one
    one.close()
    with mongodb.client() as client:
        client.drop_database(database)


# --- a server that dies, or hangs


def test_what_was_acknowledged_is_there_after_a_crash_and_the_store_finds_the_server_again() -> (
    None
):
    with started(MongoDb) as server:
        store = opened(server.uri, "request_store")
        acknowledged: dict[str, Status] = {}
        finished: list[str] = []
        ended = threading.Event()

        def work(number: int) -> None:
            user = User(username=f"user{number}", realm="r")
            while not ended.is_set():
                request = new_request(user=user)
                try:
                    store.add(request)
                    acknowledged[request.id] = Status.WAITING
                    enqueue(store, request)
                    acknowledged[request.id] = Status.QUEUED
                    lease = Lease(holder=f"w{number}", attempt=1)
                    running = store.apply(
                        Step(
                            id=request.id,
                            source=Status.QUEUED,
                            target=Status.PROCESSING,
                            lease=lease,
                            lease_s=60,
                        )
                    )
                    acknowledged[request.id] = Status.PROCESSING
                    finish(store, running, result=an_object("o"))
                    acknowledged[request.id] = Status.PROCESSED
                    finished.append(request.id)
                except BackendUnavailable:
                    time.sleep(0.05)

        with ThreadPoolExecutor(4) as pool:
            done = [pool.submit(work, number) for number in range(4)]
            try:
                for _ in range(3):
                    before = len(finished)
                    _until(lambda before=before: len(finished) >= before + 8)  # type: ignore[misc]
                    server.kill()
                    server.start()
                before = len(finished)
                _until(lambda: len(finished) >= before + 8)
            finally:
                ended.set()
            for future in done:
                future.result(timeout=30)
        order = list(Status)
        for request_id, status in acknowledged.items():
            found = store.get(request_id)
            assert order.index(found.status) >= order.index(status), (found, status)
            assert sum(usage.id == request_id for usage in store.usage(limit=10_000)) == (
                found.status is Status.PROCESSED
            )
        store.close()


def test_a_server_that_hangs_is_away_within_the_time_out_and_back_afterwards() -> None:
    with started(MongoDb) as server:
        store = opened(server.uri, "request_store", timeout=1)
        request = store.add(new_request())
        server.pause()
        calls: list[Callable[[], object]] = [
            store.ping,
            lambda: store.get(request.id),
            lambda: store.add(new_request()),
            lambda: enqueue(store, request),
            lambda: store.next_waiting("c1", leaving_out=(), limit=1),
        ]
        with ThreadPoolExecutor(len(calls)) as pool:
            futures = [pool.submit(_timed, call) for call in calls]
            for future in futures:
                assert future.result(timeout=30) < 2.5
        server.resume()
        _until(lambda: _answers(store))
        assert store.get(request.id).status in (Status.WAITING, Status.QUEUED)
        store.close()


def _timed(call: Callable[[], object]) -> float:
    begin = time.monotonic()
    with pytest.raises(BackendUnavailable, match="does not answer"):
        call()
    return time.monotonic() - begin


def _answers(store: MongoRequestStore) -> bool:
    try:
        store.ping()
    except BackendUnavailable:
        return False
    return True


# --- answers that get lost


class Loser(Listener):
    """Loses the answer to the next command of one name, once the server has done what it says.

    The connection is reset then, and the driver sends the command once more. Or it stays, and nothing comes
    back on it; then nothing does until the driver has given up.
    """

    def __init__(self, proxy: ChaosProxy) -> None:
        self._proxy = proxy
        self._name: str | None = None
        self._stays = False
        self.sent: Counter[str] = Counter()
        """What was sent since the answer was lost, that command included."""

    def lose(self, name: str, *, stays: bool) -> None:
        self._name, self._stays, self.sent = name, stays, Counter()

    def started(self, event: CommandStartedEvent) -> None:
        if self.sent or event.command_name == self._name:
            self.sent[event.command_name] += 1
        if event.command_name != self._name or self.sent.total() > 1:
            return
        before = self._proxy.lost_bytes
        self._proxy.mode = Mode.LOSE_REPLIES
        if not self._stays:
            threading.Thread(target=self._reset, args=(before,), daemon=True).start()

    def _reset(self, before: int) -> None:
        _until(lambda: self._proxy.lost_bytes > before)
        time.sleep(0.05)  # that of the command, not only that of a heartbeat
        self._proxy.mode = Mode.PASS

    def failed(self, event: CommandFailedEvent) -> None:
        if event.command_name == self._name and self._stays:
            self._proxy.mode = Mode.PASS


class Lossy:
    """A store behind a proxy that loses answers, and the same store without."""

    def __init__(self, store: MongoRequestStore, direct: MongoRequestStore, loser: Loser) -> None:
        self.store, self.direct, self._loser = store, direct, loser

    @contextmanager
    def losing(self, name: str, *, stays: bool = False, again: str | None = None) -> Iterator[None]:
        """The answer to the next command of this name, which must then be sent a second time.

        Args:
            again: what is sent instead.
        """
        self._loser.lose(name, stays=stays)
        yield
        assert self._loser.sent[name] > (again is None), f"no answer to {name} was lost"
        assert again is None or self._loser.sent[again], f"no answer to {name} was lost"
        self._loser.lose("nothing", stays=False)


@pytest.fixture(scope="module")
def lossy(mongodb: MongoDb) -> Iterator[Lossy]:
    database = mongodb.database()
    with ChaosProxy(mongodb.port()) as proxy:
        loser = Loser(proxy)
        with heard_by(loser):
            store = opened(mongodb.uri_at(proxy.port), database)
        direct = opened(mongodb.uri, database)
        yield Lossy(store, direct, loser)
        store.close()
        direct.close()
    with mongodb.client() as client:
        client.drop_database(database)


STAYS: Final = pytest.mark.parametrize("stays", [False, True], ids=["reset", "silent"])


@STAYS
def test_a_request_that_was_added_is_not_added_again(lossy: Lossy, stays: bool) -> None:
    request = new_request(user=User(username=f"add{stays}", realm="r"))
    with lossy.losing("insert", stays=stays, again="find" if stays else "insert"):
        added = lossy.store.add(request, max_unfinished=1)
    assert lossy.direct.get(request.id) == added
    assert lossy.direct.count(request.user.id) == 1
    with pytest.raises(LimitReached):
        lossy.direct.add(new_request(user=request.user), max_unfinished=1)


@STAYS
def test_a_step_whose_answer_was_lost_is_ours(lossy: Lossy, stays: bool) -> None:
    request = lossy.direct.add(new_request())
    with lossy.losing("update", stays=stays):
        assert enqueue(lossy.store, request).status is Status.QUEUED
    lease = Lease(holder="w", attempt=1)
    take = Step(
        id=request.id, source=Status.QUEUED, target=Status.PROCESSING, lease=lease, lease_s=60
    )
    with lossy.losing("update", stays=stays):
        running = lossy.store.apply(take)
    assert running.lease == lease
    with lossy.losing("update", stays=stays):
        done = finish(lossy.store, running, result=an_object("o"))
    assert lossy.direct.get(request.id) == done
    assert [u.id for u in lossy.direct.usage(limit=1000)].count(request.id) == 1
    with pytest.raises(StepLost):
        lossy.store.apply(take)


class Meddler(Listener):
    """Does something between the change of a request and the look at what has become of it."""

    def __init__(self) -> None:
        self.action: Callable[[], object] | None = None

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name == "find" and self.action is not None:
            action, self.action = self.action, None
            action()


def test_a_step_is_ours_also_if_others_have_gone_on_before_we_see_it(
    mongodb: MongoDb, store: MongoRequestStore
) -> None:
    meddler = Meddler()
    with heard_by(meddler):
        watched = opened(mongodb.uri, store._db.requests.database.name)
    request = store.add(new_request())
    meddler.action = lambda: start_queued(store, request, holder="quick")
    queued = enqueue(watched, request)
    assert (queued.id, queued.status, queued.lease) == (request.id, Status.QUEUED, None)
    running = store.get(request.id)
    assert running.holder == "quick"
    other = store.add(new_request())
    enqueue(store, other)
    meddler.action = lambda: start_over(store, store.get(other.id))
    started_over = start_queued(watched, other, holder="slow")
    assert started_over.lease == Lease(holder="slow", attempt=1)
    assert store.get(other.id).status is Status.WAITING
    meddler.action = lambda: store.remove(running.id)
    with pytest.raises(RequestNotFound):
        finish(watched, running)
    watched.close()


def test_several_steps_whose_answer_was_lost_are_each_told_rightly(lossy: Lossy) -> None:
    mine, theirs = lossy.direct.add(new_request()), lossy.direct.add(new_request())
    enqueue(lossy.direct, theirs)
    steps = [
        Step(id=request_id, source=Status.WAITING, target=Status.QUEUED)
        for request_id in (mine.id, theirs.id, "nobody")
    ]
    with lossy.losing("update"):
        taken = lossy.store.apply_each(steps)
    assert [request and request.id for request in taken] == [mine.id, None, None]


def test_what_starts_over_and_its_entry_are_there_once(lossy: Lossy) -> None:
    failed = finish(
        lossy.direct, start(lossy.direct, lossy.direct.add(new_request())), target=Status.FAILED
    )
    with lossy.losing("update"):
        again = start_over(lossy.store, failed, audit=an_entry(failed.id, command="requeue"))
    assert (again.status, again.attempt) == (Status.WAITING, 2)
    with lossy.losing("insert"):
        enqueued = Step(
            id=again.id,
            source=Status.WAITING,
            target=Status.QUEUED,
            audit=an_entry(again.id, command="second"),
        )
        lossy.store.apply(enqueued)
    noted = lossy.direct.noted(target=failed.id)
    assert [entry.command for entry in noted] == ["second", "requeue"]


@STAYS
def test_who_has_removed_a_request_is_told_so(lossy: Lossy, stays: bool) -> None:
    request = finish(
        lossy.direct,
        start(lossy.direct, lossy.direct.add(new_request())),
        result=an_object("o"),
    )
    with lossy.losing("update", stays=stays):
        removed = lossy.store.remove(request.id, user_id=JOE.id, audit=an_entry(request.id))
    assert removed == request
    with pytest.raises(RequestNotFound):
        lossy.store.remove(request.id)
    assert len(lossy.direct.noted(target=request.id)) == 1
    assert [u.id for u in lossy.direct.usage(limit=1000)].count(request.id) == 1


def test_a_collector_is_told_of_all_that_it_has_removed(lossy: Lossy) -> None:
    ids = [
        finish(lossy.direct, start(lossy.direct, lossy.direct.add(new_request()))).id
        for _ in range(3)
    ]
    with lossy.losing("update", stays=True):  # the driver does not send such a command again
        gone = lossy.store.remove_if_finished(ids, not_after=lossy.direct.now())
    assert sorted(one.id for one in gone) == sorted(ids)


def test_an_input_is_forgotten_once_and_by_whom_is_known(lossy: Lossy) -> None:
    data = an_object("i")
    request = uploaded(lossy.direct, data)
    finish(lossy.direct, start(lossy.direct, request))
    with lossy.losing("update"):
        assert lossy.store.forget_input(request.id, data)
    assert not lossy.store.forget_input(request.id, data)


def test_a_lease_is_still_ours(lossy: Lossy) -> None:
    running = start(lossy.direct, lossy.direct.add(new_request()))
    assert running.lease is not None
    held = (running.id, running.lease)
    with lossy.losing("update"):
        assert set(lossy.store.renew([held], duration_s=60)) == {held}


def test_a_mark_is_ours_to_make_and_to_take_away(lossy: Lossy) -> None:
    entry = an_entry("c9")
    with lossy.losing("update"):
        assert lossy.store.mark(Mark.PAUSED, "c9", audit=entry)
    assert not lossy.store.mark(Mark.PAUSED, "c9", audit=entry)
    with lossy.losing("update"):
        assert lossy.store.unmark(Mark.PAUSED, "c9", audit=entry)
    assert not lossy.store.unmark(Mark.PAUSED, "c9", audit=entry)
    assert len(lossy.direct.noted(target="c9")) == 2


def test_a_key_is_made_and_removed_once(lossy: Lossy) -> None:
    key = new_key(user=ANN)
    with lossy.losing("insert"):
        made = lossy.store.add_key(key, lifetime_s=60, max_keys=1)
    assert lossy.direct.keys_of(ANN.id) == [made]
    with lossy.losing("update"):
        assert lossy.store.remove_key(key.id, audit=an_entry(key.id)).digest == key.digest
    assert lossy.direct.key(key.digest) is None
    assert len(lossy.direct.noted(target=key.id)) == 1


def test_a_post_is_ours(lossy: Lossy) -> None:
    with lossy.losing("findAndModify"):
        assert lossy.store.take_post("p", "a", duration_s=60)
    assert not lossy.store.take_post("p", "b", duration_s=60)
    with lossy.losing("delete"):
        lossy.store.leave_post("p", "a")
    assert lossy.store.take_post("p", "b", duration_s=60)


def test_records_of_use_are_forgotten_once(lossy: Lossy) -> None:
    request = finish(lossy.direct, start(lossy.direct, lossy.direct.add(new_request())))
    with lossy.losing("update"):
        lossy.store.forget_usage([(request.modified_at, request.id)])
    assert request.id not in {usage.id for usage in lossy.direct.usage(limit=1000)}


# --- who dies in between


def test_what_a_remover_left_who_died_is_not_there_and_is_tidied_up_with_its_use_kept(
    mongodb: MongoDb, store: MongoRequestStore
) -> None:
    waiting = store.add(new_request(), idempotency_key="k", max_unfinished=1)
    done = finish(store, start(store, store.add(new_request(user=ANN))), result=an_object("o"))
    requests = store._db.requests
    for request in (waiting, done):
        requests.update_one({"_id": request.id}, removed("somebody who died"))
    for request in (waiting, done):
        with pytest.raises(RequestNotFound):
            store.get(request.id)
        with pytest.raises(RequestNotFound):
            store.remove(request.id)
    assert store.get_many([waiting.id, done.id]) == {}
    assert (store.count(JOE.id), store.count(ANN.id)) == (0, 0)
    assert store.results() == []
    assert store.next_waiting("c1", leaving_out=(), limit=9) == []
    assert store.add(new_request(), idempotency_key="k", max_unfinished=1).id != waiting.id
    assert [usage.id for usage in store.usage()] == [done.id]
    store.remove_if_finished(["x"], not_after=store.now())
    assert requests.count_documents({"state": "removed"}) == 2, "they may be about to tidy up"
    requests.update_many({"state": "removed"}, {"$set": {"removed.at": DatetimeMS(0)}})
    store._swept_at = -1000.0
    store.remove_if_finished(["x"], not_after=store.now())
    left = list(requests.find({"_id": {"$in": [waiting.id, done.id]}}))
    assert [document["_id"] for document in left] == [done.id]
    assert "user_request" not in left[0]
    assert [usage.id for usage in store.usage()] == [done.id]
    store.forget_usage([usage.key for usage in store.usage()])
    assert requests.find_one({"_id": done.id}) is None


def test_records_of_use_of_what_started_over_twice_are_paged_with_the_others(
    store: MongoRequestStore,
) -> None:
    keys = []
    twice = finish(store, start(store, store.add(new_request())), target=Status.FAILED)
    keys.append((twice.modified_at, twice.id))
    for _ in range(2):
        other = finish(store, start(store, store.add(new_request())))
        keys.append((other.modified_at, other.id))
        twice = finish(store, start(store, start_over(store, twice)), target=Status.FAILED)
        keys.append((twice.modified_at, twice.id))
    assert keys == sorted(keys)
    store.remove(twice.id)
    found = []
    after = (0.0, "")
    while page := store.usage(after=after, limit=2):
        found += [usage.key for usage in page]
        after = page[-1].key
    assert found == keys
    for n in (2, 0, 4):  # of the one that has three: the middle, the first, the last
        store.forget_usage([keys[n]])
        keys[n] = (0.0, "")
        left = [key for key in keys if key != (0.0, "")]
        assert [usage.key for usage in store.usage()] == left
    assert store._db.requests.find_one({"_id": twice.id}) is None


# --- many at once


ROUNDS: Final = 12
THREADS: Final = 8


def _claim(uri: str, database: str, ids: list[str], number: int) -> list[str]:
    """Take whatever of these is to be had, in many threads; those that were."""
    store = opened(uri, database, timeout=20)
    barrier = threading.Barrier(THREADS)

    def take(thread: int) -> list[str]:
        barrier.wait(timeout=60)
        got = []
        for request_id in ids:
            lease = Lease(holder=f"w{number}-{thread}", attempt=1)
            step = Step(
                id=request_id,
                source=Status.QUEUED,
                target=Status.PROCESSING,
                lease=lease,
                lease_s=60,
            )
            try:
                assert store.apply(step).lease == lease
            except StepLost:
                continue
            got.append(request_id)
        return got

    with ThreadPoolExecutor(THREADS) as pool:
        found = [request_id for got in pool.map(take, range(THREADS)) for request_id in got]
    store.close()
    return found


def _submit(uri: str, database: str, limit: int, key: str) -> Counter[str]:
    """Add requests of one user as fast as it goes, half of them with one key."""
    store = opened(uri, database, timeout=20)

    def add(number: int) -> str:
        try:
            if number % 2:
                return store.add(
                    new_request(user=ANN, request_id=f"{key}-{number}"), idempotency_key="one"
                ).id
            store.add(new_request(request_id=f"{key}-{number}"), max_unfinished=limit)
        except LimitReached:
            return "refused"
        return "added"

    with ThreadPoolExecutor(THREADS) as pool:
        counted = Counter(pool.map(add, range(2 * THREADS)))
    store.close()
    return counted


def test_of_two_processes_with_eight_threads_each_one_thread_gets_a_request(
    mongodb: MongoDb, store: MongoRequestStore
) -> None:
    database = store._db.requests.database.name
    ids = [enqueue(store, store.add(new_request())).id for _ in range(ROUNDS)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        claimed = pool.starmap(_claim, [(mongodb.uri, database, ids, n) for n in range(2)])
        assert sorted(request_id for got in claimed for request_id in got) == sorted(ids)
        limit = 5
        counts = sum(
            pool.starmap(_submit, [(mongodb.uri, database, ROUNDS + limit, k) for k in "ab"]),
            Counter[str](),
        )
    refused = 2 * THREADS - limit
    assert (counts.pop("added"), counts.pop("refused")) == (limit, refused)
    ((_, count),) = counts.items()  # one id, that of the first with the key
    assert count == 2 * THREADS
    turns = [
        document["turn"] for document in store._db.requests.find({"line": "c1", "user_id": JOE.id})
    ]
    assert len(set(turns)) == len(turns) == limit, "two requests have one turn"


def _until(condition: Callable[[], bool], *, deadline_s: float = 60.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)
