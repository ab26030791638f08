"""Real slot processes: what they deliver, how they die, and what they may not touch."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polytope_server.request import Verb
from polytope_server.user import User
from polytope_server.worker.frames import Job, Kind
from polytope_server.worker.slot_process import SlotDied, SlotProcess

JOE = User(username="joe", realm="r")
Spawn = Callable[..., SlotProcess]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    made: list[SlotProcess] = []

    def spawn(*, memory_limit: int = 4 << 30, **environment: str) -> SlotProcess:
        process = SlotProcess(
            environment=environment,
            memory_limit=memory_limit,
            log_level="INFO",
            context=contextlib.nullcontext,
        )
        made.append(process)
        return process

    yield spawn
    for process in made:
        process.close()


def job(datasource: str, text: str = "", **options: object) -> Job:
    return Job(
        id="r1",
        user=JOE,
        verb=Verb.RETRIEVE,
        datasource=datasource,
        options={"type": datasource, **options},
        request={},
        text=text,
    )


def answer(process: SlotProcess, job_: Job) -> list[tuple[Kind, bytes]]:
    return [(kind, bytes(payload)) for kind, payload in process.run(job_)]


def test_a_job_is_answered_with_its_media_type_and_data(spawn: Spawn) -> None:
    frames = answer(spawn(), job("echo", "hello"))
    assert frames == [
        (Kind.STARTED, b"application/octet-stream"),
        (Kind.DATA, b"hello"),
        (Kind.DONE, b""),
    ]


def test_one_process_does_many_jobs(spawn: Spawn) -> None:
    process = spawn()
    pid = process.pid
    for size in (0, 5, 3_000_000):
        data = b"".join(p for k, p in answer(process, job("dummy", str(size))) if k is Kind.DATA)
        assert data == b"x" * size
    assert (process.pid, process.jobs_done, process.is_idle) == (pid, 3, True)


def test_a_failure_has_the_text_for_the_user(spawn: Spawn) -> None:
    frames = answer(spawn(), job("raise", error_message="the tape is broken"))
    assert frames[-1] == (Kind.FAILED, b"the tape is broken")


def test_a_wrong_option_is_not_shown_to_the_user(spawn: Spawn) -> None:
    (last,) = [
        f for f in answer(spawn(), job("dummy", "1", max_bytes="hush")) if f[0] is Kind.FAILED
    ]
    assert b"hush" not in last[1]
    assert b"quote r1" in last[1]


@pytest.mark.parametrize(("mode", "how"), [("crash", "SIGSEGV"), ("exit", "exit status 3")])
def test_a_death_is_told_with_its_cause(spawn: Spawn, mode: str, how: str) -> None:
    process = spawn()
    with pytest.raises(SlotDied, match=how):
        answer(process, job("raise", mode=mode))
    assert not process.is_alive()


def test_memory_has_a_hard_limit(spawn: Spawn) -> None:
    frames = answer(spawn(memory_limit=64 << 20), job("raise", mode="memory"))
    assert frames[-1][0] is Kind.FAILED
    assert b"memory" in frames[-1][1]


def test_a_kill_from_another_thread_ends_a_hanging_job(spawn: Spawn) -> None:
    process = spawn()
    threading.Timer(0.5, process.kill).start()
    begin = time.monotonic()
    with pytest.raises(SlotDied, match="SIGKILL"):
        answer(process, job("raise", mode="hang"))
    assert time.monotonic() - begin < 20


def test_the_environment_is_explicit(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PASSWORD", "hush")
    process = spawn(FDB_HOME="/somewhere")
    answer(process, job("echo", "x"))
    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"SOME_PASSWORD" not in environment
    assert b"FDB_HOME=/somewhere" in environment


def test_closing_gives_back_all_descriptors(spawn: Spawn) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    first = spawn()
    answer(first, job("echo"))
    first.close()
    before = descriptors()
    for _ in range(3):
        process = spawn()
        answer(process, job("echo"))
        process.close()
    assert descriptors() == before
