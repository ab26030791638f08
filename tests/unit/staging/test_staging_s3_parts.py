"""Sizes of parts, and how many of them are on their way."""

import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3_staging import section

from polytope_server.errors import BackendUnavailable, ConfigurationError
from polytope_server.staging.s3.parts import LARGEST_OBJECT, MOST_PARTS, Body, Parts, part_bytes

MIB = 1 << 20


@given(st.integers(min_value=5 * MIB, max_value=1 << 30))
def test_the_largest_object_fits_into_the_most_parts(first_bytes: int) -> None:
    sizes = [part_bytes(number, first_bytes=first_bytes) for number in range(1, MOST_PARTS + 1)]
    assert sum(sizes) >= LARGEST_OBJECT
    assert sizes == sorted(sizes)
    assert set(sizes[:1000]) == {first_bytes}
    assert max(sizes) < 5 << 30  # the largest part there may be


def test_parts_are_no_larger_than_they_must_be() -> None:
    sizes = [part_bytes(number, first_bytes=10 * MIB) for number in range(1, MOST_PARTS + 1)]
    assert sum(sizes) < LARGEST_OBJECT * 1.05
    for total_bytes, largest in ((100 << 30, 160 * MIB), (1 << 40, 520 * MIB)):
        sent, number = 0, 0
        while sent < total_bytes:
            sent, number = sent + sizes[number], number + 1
        assert sizes[number - 1] <= largest


def test_a_body_is_sent_whole_and_again_without_a_copy() -> None:
    buffer = bytearray(range(256)) * 8192
    body = Body(buffer, MIB + 3, threading.Event())
    for _ in range(2):
        body.seek(0)
        pieces = []
        while piece := body.read(16384):
            pieces.append(piece)
        assert b"".join(pieces) == buffer[: MIB + 3]
        assert max(map(len, pieces)) < MIB
    assert (len(body), body.tell()) == (MIB + 3, MIB + 3)


def test_a_body_fails_once_its_upload_has_ended() -> None:
    cancelled = threading.Event()
    body = Body(bytearray(10), 10, cancelled)
    cancelled.set()
    with pytest.raises(BackendUnavailable):
        body.read(1)


def in_flight(parts: Parts, sizes: list[int]) -> int:
    """The most bytes that were on their way at once while parts of these sizes were sent by two uploads."""
    lock, now, most = threading.Lock(), 0, 0

    def send(buffer: bytearray) -> Any:
        def work() -> None:
            nonlocal now, most
            with lock:
                now += len(buffer)
                most = max(most, now)
            time.sleep(0.002)
            with lock:
                now -= len(buffer)

        return parts.send(buffer, work, patience_s=10)

    def upload() -> None:
        parts.open()
        for future in [send(parts.buffer(size)) for size in sizes]:
            future.result()
        parts.close()

    uploads = [threading.Thread(target=upload) for _ in range(2)]
    for each in uploads:
        each.start()
    for each in uploads:
        each.join(20)
    return most


def test_all_uploads_together_have_no_more_on_the_way_than_they_may() -> None:
    assert in_flight(Parts(threads=3, first_bytes=100), [100] * 50) == 300


def test_a_part_larger_than_all_that_may_be_on_the_way_goes_alone() -> None:
    assert in_flight(Parts(threads=3, first_bytes=100), [100, 100, 500] * 10) == 500


def test_buffers_are_used_again_and_let_go_in_the_end() -> None:
    parts = Parts(threads=1, first_bytes=100)
    parts.open()
    first = parts.buffer(100)
    parts.send(first, lambda: None, patience_s=5).result()
    again: list[bytearray] = []
    while not again or again[-1] is not first:  # the thread gives it back right after its result
        again.append(parts.buffer(100))
        assert len(again) < 10_000
    parts.close()
    assert parts._idle == []


def test_no_room_on_the_way_is_not_waited_for_without_end() -> None:
    parts = Parts(threads=1, first_bytes=100)
    go_on = threading.Event()
    stuck = parts.send(bytearray(100), go_on.wait, patience_s=1)
    with pytest.raises(BackendUnavailable, match="taken nothing"):
        parts.send(bytearray(100), lambda: None, patience_s=0.1)
    go_on.set()
    stuck.result(5)
    parts.send(bytearray(100), lambda: None, patience_s=5).result()


# --- what the configuration may say


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"buffer_size": "4M"}, "buffer_size"),
        ({"buffer_size": "2G"}, "buffer_size"),
        ({"max_threads": 0}, "max_threads"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "5m"}, "timeout"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"bucket": "a"}, "bucket"),
        ({"bucket": "a/b"}, "bucket"),
        ({"bucket": "../x"}, "bucket"),
        ({"host": "host/path"}, "host"),
        ({"host": "ftp://host"}, "host"),
        ({"host": "host:99"}, "host"),
        ({"url": "ftp://host"}, "url"),
        ({"url": "https://user:pw@host"}, "url"),
        ({"url": "https://host?x=1"}, "url"),
        ({"prefix": "/x"}, "prefix"),
        ({"prefix": "x//"}, "prefix"),
        ({"prefix": "../x/"}, "prefix"),
        ({"prefix": "x/./"}, "prefix"),
        ({"prefix": "ä/"}, "prefix"),
        ({"region": "a b"}, "region"),
        ({"addressing_style": "auto"}, "addressing_style"),
        ({"presigned_url_expiry": 0}, "presigned_url_expiry"),
        ({"access_key": "a"}, "secret_key is missing"),
        ({"secret_key": "a"}, "access_key is missing"),
        ({"use_presigned_url": True}, "use_presigned_url"),
        ({"addressing_style": "virtual", "host": "127.0.0.1"}, "addressing_style"),
        ({"addressing_style": "virtual"}, "addressing_style"),
    ],
)
def test_values_that_cannot_be_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"staging\.s3.*{key}") as caught:
        section({}, **options)
    assert "user:pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "endpoint"),
    [
        ({}, "http://127.0.0.1:8333"),
        ({"host": "http://minio", "port": 9000}, "http://minio:9000"),
        ({"host": "minio", "port": "9000"}, "http://minio:9000"),
        ({"host": "minio", "port": 443, "use_ssl": True}, "https://minio:443"),
        ({"host": "http://minio/", "use_ssl": True}, "http://minio:8333"),
        ({"host": "https://0.0.0.0"}, "https://127.0.0.1:8333"),
        ({"host": "::1"}, "http://[::1]:8333"),
        ({"host": "https://[fe80::1]"}, "https://[fe80::1]:8333"),
    ],
)
def test_hosts_are_written_in_several_ways(options: dict[str, Any], endpoint: str) -> None:
    assert section({}, **options).endpoint == endpoint


def test_the_defaults_are_those_of_before_but_for_the_parts_at_a_time() -> None:
    # ten of them take more memory than a worker may, and are no faster
    from polytope_server.config.staging import S3Section

    made = S3Section.read({"url": ""}, where="staging.s3")
    assert (made.bucket, made.max_threads, made.buffer_size) == ("default", 4, 10 * MIB)
    assert (made.public_url, made.link_expiry_s, made.should_set_policy) == (None, 86400, False)


def test_keys_are_in_no_representation() -> None:
    assert "hunter2" not in repr(section({}, access_key="hunter2", secret_key="hunter2"))
