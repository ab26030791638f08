"""What becomes of transfers when S3 servers are killed, stopped, cut off, slow or not heard."""

import hashlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from s3_staging import new_bucket, opened
from services.fixtures import started
from services.proxy import ChaosProxy, Mode
from services.seaweedfs import SeaweedFs

from polytope_server.errors import BackendUnavailable, ObjectNotFound
from polytope_server.staging import CHUNK_BYTES
from polytope_server.staging.s3 import S3Staging
from polytope_server.testing.staging import MEDIA_TYPE, get, put

PART = 5 << 20
DATA = hashlib.shake_256(b"seed").digest(CHUNK_BYTES) * 12


@pytest.fixture(params=["radosgw", "seaweedfs"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def proxy(server: Any) -> Iterator[ChaosProxy]:
    with ChaosProxy(server.port()) as running:
        yield running


@pytest.fixture
def bucket() -> str:
    return new_bucket()


@pytest.fixture
def direct(server: Any, bucket: str) -> S3Staging:
    return opened(server, bucket=bucket)


@pytest.fixture
def through(server: Any, direct: S3Staging, bucket: str, proxy: ChaosProxy) -> S3Staging:
    return opened(server, bucket=bucket, port=proxy.port)


@pytest.fixture
def own() -> Iterator[SeaweedFs]:
    with started(SeaweedFs) as running:
        yield running


def until(condition: Callable[[], bool], *, at_most_s: float = 20) -> None:
    end = time.monotonic() + at_most_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def parts_arrived(staging: S3Staging) -> int:
    """Of all uploads that are going on."""
    client = staging._calls._client
    uploads = client.list_multipart_uploads(Bucket=staging._calls.bucket).get("Uploads", ())
    return sum(
        len(
            client.list_parts(
                Bucket=staging._calls.bucket, Key=each["Key"], UploadId=each["UploadId"]
            ).get("Parts", ())
        )
        for each in uploads
    )


def in_thread(work: Callable[[], Any]) -> Callable[[], None]:
    """Begin it; what is returned waits for it, and raises what it has raised."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as exc:  # noqa: BLE001 -- raised again
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()

    def join() -> None:
        thread.join(60)
        assert not thread.is_alive()
        if failed:
            raise failed[0]

    return join


# --- answers that are lost


def test_a_small_object_whose_answer_is_lost_is_stored(
    through: S3Staging, direct: S3Staging, proxy: ChaosProxy
) -> None:
    with through.create("a", media_type=MEDIA_TYPE) as upload:
        upload.write(b"data")
        proxy.mode = Mode.LOSE_REPLIES
        commit = in_thread(upload.commit)
        until(lambda: proxy.lost_bytes > 0)
        proxy.mode = Mode.PASS
        commit()
    assert get(direct, "a") == b"data"


def test_a_commit_whose_answer_is_lost_has_happened(
    through: S3Staging, direct: S3Staging, proxy: ChaosProxy
) -> None:
    data = DATA[: 2 * PART]  # nothing is left to be sent by the commit
    with through.create("a", media_type=MEDIA_TYPE) as upload:
        upload.write(data)
        until(lambda: parts_arrived(direct) == 2)
        proxy.mode = Mode.LOSE_REPLIES
        commit = in_thread(upload.commit)
        until(lambda: bool(direct.list("")))  # it has been done, and nobody has said so
        proxy.mode = Mode.PASS
        commit()
    assert proxy.lost_bytes > 0
    assert get(direct, "a") == data
    assert direct.remove_stale_uploads(age_s=0) == 0


def test_a_commit_that_was_removed_as_stale_meanwhile_fails(
    server: Any, direct: S3Staging, bucket: str
) -> None:
    """Though there is an object of that name: it is another one."""
    put(direct, "a", DATA[::-1])
    with opened(server, bucket=bucket, timeout=2).create("a", media_type=MEDIA_TYPE) as upload:
        upload.write(DATA[: 2 * PART])
        until(lambda: parts_arrived(direct) == 2)
        assert direct.remove_stale_uploads(age_s=0) == 1
        with pytest.raises(BackendUnavailable):
            upload.commit()
    assert get(direct, "a") == DATA[::-1]


def test_parts_whose_answers_are_lost_are_sent_again(
    through: S3Staging, direct: S3Staging, proxy: ChaosProxy
) -> None:
    with through.create("a", media_type=MEDIA_TYPE) as upload:
        upload.write(DATA[:PART])
        until(lambda: parts_arrived(direct) == 1)
        proxy.mode = Mode.LOSE_REPLIES
        rest = in_thread(lambda: upload.write(DATA[PART:]))
        until(lambda: parts_arrived(direct) == 2)
        proxy.mode = Mode.PASS
        rest()
        upload.commit()
    assert proxy.lost_bytes > 0
    assert get(direct, "a") == DATA
    assert direct.remove_stale_uploads(age_s=0) == 0


# --- connections that break


def test_a_reader_whose_connection_breaks_goes_on_where_it_was(
    through: S3Staging, direct: S3Staging, proxy: ChaosProxy
) -> None:
    put(direct, "a", DATA)
    proxy.hamper(cut_after=5 * CHUNK_BYTES + 1000)
    assert get(through, "a") == DATA
    assert (
        b"".join(through.read("a", offset=7, length=9 * CHUNK_BYTES))
        == (DATA[7 : 7 + 9 * CHUNK_BYTES])
    )


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_reader_never_goes_on_with_another_object(
    through: S3Staging, direct: S3Staging, proxy: ChaosProxy, how: str
) -> None:
    put(direct, "a", DATA)
    proxy.hamper(cut_after=5 * CHUNK_BYTES)
    chunks = through.read("a")
    next(chunks)
    if how == "removed":
        direct.delete("a")
    else:
        put(direct, "a", DATA[::-1])
    with pytest.raises(BackendUnavailable, match=how):
        for _ in chunks:
            pass


def test_an_upload_outlives_connections_that_break(
    through: S3Staging, direct: S3Staging, proxy: ChaosProxy
) -> None:
    with through.create("a", media_type=MEDIA_TYPE) as upload:
        for start in range(0, len(DATA), CHUNK_BYTES):
            upload.write(DATA[start : start + CHUNK_BYTES])
            if start == 6 * CHUNK_BYTES:
                proxy.reset_all()
        upload.commit()
    assert get(direct, "a") == DATA


def test_connections_are_used_again(
    through: S3Staging, direct: S3Staging, proxy: ChaosProxy
) -> None:
    for number in range(5):
        put(through, f"a{number}", DATA[: 2 * CHUNK_BYTES])
        assert get(through, f"a{number}") == DATA[: 2 * CHUNK_BYTES]
    assert proxy.connections == 1


# --- a server that takes nothing


def test_a_slow_server_slows_the_writer_down(
    through: S3Staging, direct: S3Staging, proxy: ChaosProxy
) -> None:
    """Two parts are on their way and one is filled: no more is taken before one of them has arrived."""
    taken: list[int] = []
    with through.create("a", media_type=MEDIA_TYPE) as upload:
        upload.write(DATA[:PART])
        until(lambda: parts_arrived(direct) == 1)
        proxy.mode = Mode.BLACKHOLE

        def write() -> None:
            for start in range(0, 8 * PART, CHUNK_BYTES):
                upload.write(DATA[:CHUNK_BYTES])
                taken.append(start)

        writing = in_thread(write)
        until(lambda: len(taken) == 3 * PART // CHUNK_BYTES - 1)
        time.sleep(0.5)
        assert len(taken) == 3 * PART // CHUNK_BYTES - 1
        proxy.mode = Mode.PASS
        writing()
        upload.commit()
    assert direct.stat("a").size_bytes == 9 * PART


def test_a_stopped_server_is_unavailable_within_its_time_out(own: SeaweedFs) -> None:
    bucket = new_bucket()
    put(opened(own, bucket=bucket), "a", DATA * 2)
    staging = opened(own, bucket=bucket, timeout=1)
    chunks = staging.read("a")
    first = next(chunks)
    upload = staging.create("b", media_type=MEDIA_TYPE)
    upload.__enter__()
    upload.write(DATA[:PART])
    until(lambda: parts_arrived(staging) == 1)
    own.pause()
    calls: dict[str, Callable[[], object]] = {
        "ping": staging.ping,
        "stat": lambda: staging.stat("a"),
        "read": lambda: staging.read("a"),
        "list": lambda: staging.list(""),
        "delete": lambda: staging.delete("z"),
        "small": lambda: put(staging, "c"),
        "stale": lambda: staging.remove_stale_uploads(age_s=0),
        "rest of a reader": lambda: [None for _ in chunks],
        "rest of an upload": lambda: (upload.write(DATA), upload.commit()),
    }
    begin = time.monotonic()
    with ThreadPoolExecutor(len(calls)) as pool:
        for name, waiting in {name: pool.submit(call) for name, call in calls.items()}.items():
            error = waiting.exception()
            assert isinstance(error, BackendUnavailable), name
            assert re.search(r"answer|too slow|broke", str(error)), name
    assert time.monotonic() - begin < 20
    own.resume()
    staging.ping()
    assert get(staging, "a") == DATA * 2
    assert first == DATA[:CHUNK_BYTES]
    upload.__exit__(None, None, None)
    assert [each.name for each in staging.list("") if each.name != "c"] == ["a"]


# --- a server that is away at the start


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.BLACKHOLE])
def test_who_starts_while_the_server_is_away_says_so_and_goes_on_when_it_is_there(
    seaweedfs: Any, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    with ChaosProxy(seaweedfs.port()) as proxy:
        proxy.mode = mode
        begin = time.monotonic()
        staging = opened(seaweedfs, port=proxy.port, timeout=20)
        assert time.monotonic() - begin < 4
        (told,) = caplog.records
        assert f"{proxy.port}" in told.__dict__["cause"]
        proxy.mode = Mode.PASS
        with ThreadPoolExecutor(8) as pool:  # all of them find the bucket made
            list(pool.map(lambda number: put(staging, f"a{number}"), range(8)))
        assert len(staging.list("")) == 8


def test_a_mistake_of_the_operator_is_told_later_if_the_server_was_away(seaweedfs: Any) -> None:
    with ChaosProxy(seaweedfs.port()) as proxy:
        proxy.mode = Mode.REFUSE
        staging = opened(seaweedfs, port=proxy.port, secret_key="wrong-secret")
        proxy.mode = Mode.PASS
        with pytest.raises(BackendUnavailable, match=r"staging\.s3\.secret_key"):
            staging.ping()


# --- a server that is killed


def test_transfers_outlive_a_crash_of_the_server(own: SeaweedFs) -> None:
    staging = opened(own)
    put(staging, "there", DATA * 4)
    chunks = staging.read("there")
    begun = [next(chunks)]
    with staging.create("a", media_type=MEDIA_TYPE) as upload:
        upload.write(DATA[:PART])
        until(lambda: parts_arrived(staging) == 1)
        own.kill()
        restart = in_thread(lambda: time.sleep(0.5))
        writing = in_thread(lambda: upload.write(DATA[PART:]))
        restart()
        own.start()
        writing()
        upload.commit()
    assert get(staging, "a") == DATA
    assert b"".join(begun + list(chunks)) == DATA * 4


def test_a_server_that_stays_away_fails_what_was_going_on(own: SeaweedFs) -> None:
    bucket = new_bucket()
    put(opened(own, bucket=bucket), "there", DATA * 4)
    staging = opened(own, bucket=bucket, timeout=2)
    chunks = staging.read("there")
    next(chunks)

    def rest() -> None:
        upload.write(DATA)
        upload.commit()

    def read_on() -> None:
        for _ in chunks:
            pass

    begin = time.monotonic()
    with staging.create("a", media_type=MEDIA_TYPE) as upload:
        upload.write(DATA[:PART])
        until(lambda: parts_arrived(staging) == 1)
        own.kill()
        reading = in_thread(read_on)
        with pytest.raises(BackendUnavailable):
            rest()
    with pytest.raises(BackendUnavailable):
        reading()
    assert time.monotonic() - begin < 30
    own.start()
    with pytest.raises(ObjectNotFound):
        staging.stat("a")
    assert staging.remove_stale_uploads(age_s=0) == 1
    assert get(staging, "there") == DATA * 4


# --- a writer that is killed


def test_what_a_killed_writer_left_goes_and_nothing_of_others(seaweedfs: Any) -> None:
    bucket = new_bucket()
    staging = opened(seaweedfs, bucket=bucket, prefix="ours/")
    client = staging._calls._client
    for key in ("theirs", "ours/deeper/theirs", "our", "ours/.hidden"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    program = (
        "import os, sys; sys.path += sys.argv[4:]\n"
        "from s3_staging import S3Section, S3Staging, section\n"
        "options = {'port': int(sys.argv[1]), 'access_key': 'testkey', 'secret_key': 'testsecret'}\n"
        "staging = S3Staging(section(options, bucket=sys.argv[2], prefix=sys.argv[3]))\n"
        "with staging.create('a', media_type='') as upload:\n"
        "    upload.write(b'x' * (11 << 20))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    tests = str(Path(__file__).parent)
    arguments = [str(seaweedfs.port()), bucket, "ours/", tests]
    ended = subprocess.run([sys.executable, "-c", program, *arguments], check=False, timeout=60)
    assert ended.returncode == -9
    assert staging.list("") == []
    assert staging.remove_stale_uploads(age_s=60) == 0
    assert staging.remove_stale_uploads(age_s=0) == 1
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert sorted(each["Key"] for each in left) == [
        "our",
        "ours/.hidden",
        "ours/deeper/theirs",
        "theirs",
    ]


def test_an_upload_that_goes_on_is_not_stale(seaweedfs: Any) -> None:
    staging = opened(seaweedfs)
    with staging.create("a", media_type=MEDIA_TYPE) as upload:
        upload.write(DATA[:PART])
        until(lambda: parts_arrived(staging) == 1)
        time.sleep(3)
        upload.write(DATA[PART : 2 * PART])
        until(lambda: parts_arrived(staging) == 2)
        assert staging.remove_stale_uploads(age_s=2.5) == 0
        upload.commit()
    assert staging.stat("a").size_bytes == 2 * PART
