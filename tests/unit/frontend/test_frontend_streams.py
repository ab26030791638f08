"""Transfers whose client goes away while a thread is still at work on them."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from polytope_server.frontend.threads import Threads, Turns, stream


@pytest.fixture
def threads() -> Iterator[Threads]:
    pool = Threads("staging", size=2, timeout_s=10)
    yield pool
    pool.close()


def test_a_generator_that_is_at_work_is_closed_when_it_is_done(threads: Threads) -> None:
    at_work, may_go_on, left = threading.Event(), threading.Event(), threading.Event()

    def chunks() -> Iterator[bytes]:
        try:
            yield b"first"
            at_work.set()
            may_go_on.wait(10)
            yield b"second"
        finally:
            left.set()

    async def client() -> None:
        async for chunk in stream(chunks(), threads):
            assert chunk == b"first"

    async def main() -> None:
        reading = asyncio.create_task(client())
        await asyncio.to_thread(at_work.wait, 10)
        asyncio.get_running_loop().call_later(0.1, may_go_on.set)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(main())
    assert left.is_set()


def test_a_stream_has_all_chunks_and_is_closed(threads: Threads) -> None:
    left = threading.Event()

    def chunks() -> Iterator[bytes]:
        try:
            yield from (b"a", b"b")
        finally:
            left.set()

    async def main() -> list[bytes]:
        return [chunk async for chunk in stream(chunks(), threads)]

    assert asyncio.run(main()) == [b"a", b"b"]
    assert left.is_set()


def test_calls_that_take_turns_never_overlap() -> None:
    turns, inside, most = Turns(), [], []

    def call() -> None:
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.001)
        inside.pop()

    callers = [threading.Thread(target=turns.taking(call)) for _ in range(20)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert most == [1] * 20
