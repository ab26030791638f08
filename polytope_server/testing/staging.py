"""What every staging back-end must do.

Subclass `StagingContract`, and `StorageFullContract` if a test can fill the storage, and give them the
fixtures that they name.
"""

import hashlib
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import ClassVar, Final, ParamSpec, TypeVar

import pytest
import requests

from polytope_server.errors import BackendUnavailable, ObjectNotFound, StorageFull
from polytope_server.staging import CHUNK_BYTES, Staging, StoredObject, repr_digest

MEDIA_TYPE: Final = "application/octet-stream"
HOSTILE_NAMES: Final = (
    "",
    ".",
    "..",
    "../escape",
    "..\\escape",
    "/etc/passwd",
    "a/b",
    ".hidden",
    "a\x00b",
    "a\n",
    "a b",
    "a?x=1",
    "a%2fb",
    "ä",
    "x" * 201,
)

_MANY: Final = 2500
_LARGE_BYTES: Final = 64 * CHUNK_BYTES

P = ParamSpec("P")
T = TypeVar("T")


def put(staging: Staging, name: str, data: bytes = b"data") -> None:
    """Store an object."""
    with staging.create(name, media_type=MEDIA_TYPE) as upload:
        upload.write(data)
        upload.commit()


def get(staging: Staging, name: str) -> bytes:
    """All bytes of an object."""
    return b"".join(staging.read(name))


def everything(staging: Staging, prefix: str = "", *, limit: int = 1000) -> list[StoredObject]:
    """All pages of a listing."""
    found: list[StoredObject] = []
    while page := staging.list(prefix, after=found[-1].name if found else "", limit=limit):
        assert len(page) <= limit
        found += page
    return found


class StagingContract:
    """The contract of `polytope_server.staging.Staging`.

    Fixtures: `staging`, with nothing in it, and `again`, the same storage opened once more, as every
    process does for itself.
    """

    links_answer_head: ClassVar[bool] = True
    """False where a link is signed for GET alone, as of S3; clients make do with that."""

    def test_it_answers(self, staging: Staging) -> None:
        staging.ping()
        assert staging.list("") == []

    def test_what_was_committed_can_be_read(self, staging: Staging) -> None:
        with staging.create("a.grib", media_type=MEDIA_TYPE) as upload:
            upload.write(b"GRIB")
            upload.write(bytearray(b"-"))
            upload.write(memoryview(b"x7777x")[1:5])
            upload.commit()
        assert get(staging, "a.grib") == b"GRIB-7777"
        assert staging.stat("a.grib").size_bytes == 9

    def test_a_buffer_is_free_again_when_write_returns(self, staging: Staging) -> None:
        buffer = bytearray(b"first")
        with staging.create("a", media_type=MEDIA_TYPE) as upload:
            upload.write(buffer)
            buffer[:] = b"other"
            upload.write(buffer)
            buffer.clear()
            upload.commit()
        assert get(staging, "a") == b"firstother"

    def test_an_empty_object_is_an_object(self, staging: Staging) -> None:
        put(staging, "empty", b"")
        assert get(staging, "empty") == b""
        assert staging.stat("empty").size_bytes == 0
        assert [each.name for each in staging.list("")] == ["empty"]
        assert b"".join(staging.read("empty", offset=1, length=2)) == b""

    def test_nobody_sees_an_object_before_it_is_committed(self, staging: Staging) -> None:
        with staging.create("a", media_type=MEDIA_TYPE) as upload:
            for _ in range(9):
                upload.write(b"x" * CHUNK_BYTES)
            with pytest.raises(ObjectNotFound):
                staging.stat("a")
            with pytest.raises(ObjectNotFound):
                staging.read("a")
            assert staging.list("") == []
            upload.commit()
            assert staging.stat("a").size_bytes == 9 * CHUNK_BYTES

    @pytest.mark.parametrize("size", [3, 9 * CHUNK_BYTES])
    def test_leaving_without_commit_leaves_nothing(self, staging: Staging, size: int) -> None:
        with staging.create("a", media_type=MEDIA_TYPE) as upload:
            upload.write(b"x" * size)
        assert staging.list("") == []
        assert staging.remove_stale_uploads(age_s=0) == 0

    @pytest.mark.parametrize("size", [3, 9 * CHUNK_BYTES])
    def test_an_exception_leaves_nothing(self, staging: Staging, size: int) -> None:
        def fail() -> None:
            with staging.create("a", media_type=MEDIA_TYPE) as upload:
                upload.write(b"x" * size)
                raise ZeroDivisionError  # as whoever produces the bytes may

        with pytest.raises(ZeroDivisionError):
            fail()
        assert staging.list("") == []
        assert staging.remove_stale_uploads(age_s=0) == 0

    def test_an_upload_that_is_over_takes_nothing(self, staging: Staging) -> None:
        with staging.create("a", media_type=MEDIA_TYPE) as upload:
            upload.write(b"1")
        with pytest.raises(BackendUnavailable):
            upload.write(b"2")
        with pytest.raises(BackendUnavailable):
            upload.commit()
        assert staging.list("") == []

    def test_a_failed_upload_keeps_the_object_that_was_there(self, staging: Staging) -> None:
        put(staging, "a", b"old")
        with staging.create("a", media_type=MEDIA_TYPE) as upload:
            upload.write(b"new")
        assert get(staging, "a") == b"old"

    def test_an_object_is_replaced_as_a_whole(self, staging: Staging) -> None:
        put(staging, "a", b"old and longer")
        put(staging, "a", b"new")
        assert get(staging, "a") == b"new"
        assert [each.size_bytes for each in staging.list("a")] == [3]

    def test_readers_see_the_old_or_the_new_object_and_no_mixture(self, staging: Staging) -> None:
        versions = [bytes([number]) * (2 * CHUNK_BYTES + number) for number in range(1, 7)]
        put(staging, "a", versions[0])
        stop = threading.Event()
        seen: list[bytes] = []

        def read() -> None:
            while not stop.is_set():
                seen.append(hashlib.sha256(get(staging, "a")).digest())

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for version in versions:
            put(staging, "a", version)
        stop.set()
        for reader in readers:
            reader.join()
        assert seen
        assert set(seen) <= {hashlib.sha256(version).digest() for version in versions}

    def test_one_who_reads_is_not_disturbed_by_removal(self, staging: Staging) -> None:
        data = bytes(range(256)) * (12 * CHUNK_BYTES // 256)
        put(staging, "a", data)
        chunks = staging.read("a")
        first = next(chunks)
        staging.delete("a")
        assert first + b"".join(chunks) == data

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [
            (0, None, b"0123456789"),
            (3, None, b"3456789"),
            (3, 4, b"3456"),
            (0, 0, b""),
            (5, 0, b""),
            (0, 10, b"0123456789"),
            (8, 100, b"89"),
            (9, 1, b"9"),
            (10, None, b""),
            (10, 1, b""),
            (99, 3, b""),
        ],
    )
    def test_parts_can_be_read(
        self, staging: Staging, offset: int, length: int | None, expected: bytes
    ) -> None:
        put(staging, "a", b"0123456789")
        assert b"".join(staging.read("a", offset=offset, length=length)) == expected

    def test_chunks_are_no_larger_than_they_may_be(self, staging: Staging) -> None:
        put(staging, "a", b"x" * (3 * CHUNK_BYTES + 5))
        sizes = [len(chunk) for chunk in staging.read("a", offset=3)]
        assert sum(sizes) == 3 * CHUNK_BYTES + 2
        assert max(sizes) <= CHUNK_BYTES

    def test_reading_can_end_early(self, staging: Staging) -> None:
        put(staging, "a", b"x" * (8 * CHUNK_BYTES))
        for _ in range(200):  # more than any pool of connections holds
            chunks = staging.read("a")
            next(chunks)
            chunks.close()  # type: ignore[attr-defined]
            assert next(chunks, None) is None

    def test_a_missing_object_is_known_at_the_call(self, staging: Staging) -> None:
        with pytest.raises(ObjectNotFound):
            staging.read("missing")
        with pytest.raises(ObjectNotFound):
            staging.read("missing", offset=0, length=0)
        with pytest.raises(ObjectNotFound):
            staging.stat("missing")

    def test_deleting_twice_is_no_error(self, staging: Staging) -> None:
        put(staging, "a")
        staging.delete("a")
        staging.delete("a")
        staging.delete("never-was")
        with pytest.raises(ObjectNotFound):
            staging.stat("a")

    def test_listing_and_stat_agree(self, staging: Staging) -> None:
        put(staging, "a.bin", b"12345")
        (listed,) = staging.list("a")
        assert listed == staging.stat("a.bin")
        assert listed.modified_at > 1.7e9

    def test_names_are_listed_in_order_by_prefix(self, staging: Staging) -> None:
        names = ["a", "a-1", "a.b", "aa", "ab-1.grib", "ab-2.grib", "abc", "b", "B", "_", "-", "0"]
        for name in names:
            put(staging, name)
        assert [each.name for each in staging.list("")] == sorted(names)
        for prefix in ("a", "ab", "ab-", "abc", "abcd", "B", "zz", "..", "/", "a/"):
            expected = sorted(name for name in names if name.startswith(prefix))
            assert [each.name for each in staging.list(prefix)] == expected

    def test_listing_goes_on_behind_a_name_that_is_there_or_not(self, staging: Staging) -> None:
        for name in ("a1", "a3", "b1"):
            put(staging, name)
        assert [each.name for each in staging.list("", after="a1")] == ["a3", "b1"]
        assert [each.name for each in staging.list("", after="a2")] == ["a3", "b1"]
        assert [each.name for each in staging.list("a", after="a1")] == ["a3"]
        assert staging.list("", after="b1") == []
        assert staging.list("", limit=0) == []

    def test_thousands_of_objects_are_listed_in_pages(self, staging: Staging) -> None:
        names = [
            f"{hashlib.sha256(str(number).encode()).hexdigest()[:20]}-1.grib"
            if number % 2
            else f"same-{number:05}.bin"
            for number in range(_MANY)
        ]
        _in_threads(names, lambda name: put(staging, name, b"x"))
        assert [each.name for each in everything(staging)] == sorted(names)
        same = [name for name in sorted(names) if name.startswith("same-")]
        assert [each.name for each in everything(staging, "same-", limit=333)] == same

    def test_large_objects_flow_through_bounded_memory(self, staging: Staging) -> None:
        piece = hashlib.shake_256(b"seed").digest(CHUNK_BYTES)
        written, read = hashlib.sha256(), hashlib.sha256()
        tracemalloc.start()
        try:
            with staging.create("large", media_type=MEDIA_TYPE) as upload:
                for number in range(_LARGE_BYTES // CHUNK_BYTES):
                    data = number.to_bytes(4) + piece[4:]
                    written.update(data)
                    upload.write(data)
                upload.commit()
            for chunk in staging.read("large"):
                read.update(chunk)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert staging.stat("large").size_bytes == _LARGE_BYTES
        assert read.digest() == written.digest()
        assert peak_bytes < 24 * CHUNK_BYTES

    def test_all_processes_see_the_same_objects(self, staging: Staging, again: Staging) -> None:
        with staging.create("a", media_type=MEDIA_TYPE) as upload:
            upload.write(b"data")
            assert again.list("") == []
            upload.commit()
        assert get(again, "a") == b"data"
        assert again.list("") == [staging.stat("a")]
        again.delete("a")
        with pytest.raises(ObjectNotFound):
            staging.read("a")

    def test_calls_may_come_from_any_threads(self, staging: Staging) -> None:
        data = b"x" * (3 * CHUNK_BYTES)
        context = _elsewhere(staging.create, "a", media_type=MEDIA_TYPE)
        upload = _elsewhere(context.__enter__)
        _elsewhere(upload.write, data)
        _elsewhere(upload.write, data)
        _elsewhere(upload.commit)
        _elsewhere(context.__exit__, None, None, None)
        chunks = _elsewhere(staging.read, "a")
        assert len(_elsewhere(next, chunks)) > 0
        assert len(_elsewhere(next, chunks)) > 0
        _elsewhere(chunks.close)  # type: ignore[attr-defined]
        assert staging.stat("a").size_bytes == 2 * len(data)

    def test_one_write_may_be_larger_than_any_buffer(self, staging: Staging) -> None:
        data = hashlib.shake_256(b"seed").digest(1 << 16) * 320
        put(staging, "a", data)
        assert get(staging, "a") == data

    def test_many_write_and_read_at_once(self, staging: Staging) -> None:
        names = [f"n{number}" for number in range(24)]

        def work(name: str) -> None:
            data = name.encode() * (CHUNK_BYTES // 2)
            put(staging, name, data)
            assert get(staging, name) == data

        _in_threads(names, work)
        assert len(staging.list("n")) == len(names)

    @pytest.mark.parametrize("name", HOSTILE_NAMES)
    def test_names_that_cannot_be_are_refused(self, staging: Staging, name: str) -> None:
        with (
            pytest.raises(ValueError, match="cannot be the name"),
            staging.create(name, media_type=MEDIA_TYPE),
        ):
            pass
        for call in (staging.read, staging.stat, staging.delete):
            with pytest.raises(ValueError, match="cannot be the name"):
                call(name)

    def test_the_longest_name_is_a_name(self, staging: Staging) -> None:
        name = "-_.Az09" + "x" * 193
        put(staging, name)
        assert [each.name for each in staging.list("")] == [name]

    def test_what_killed_writers_left_is_removed(self, staging: Staging) -> None:
        with ExitStack() as never_left:
            for number in range(3):
                upload = never_left.enter_context(
                    staging.create(f"a{number}", media_type=MEDIA_TYPE)
                )
                for _ in range(9):
                    upload.write(b"x" * CHUNK_BYTES)
            put(staging, "kept", b"kept")
            assert staging.remove_stale_uploads(age_s=3600) == 0
            assert staging.remove_stale_uploads(age_s=0) == 3
            assert staging.remove_stale_uploads(age_s=0) == 0
            with pytest.raises(BackendUnavailable):
                upload.commit()
        assert [each.name for each in staging.list("")] == ["kept"]
        assert get(staging, "kept") == b"kept"

    def test_a_link_is_enough_and_says_what_clients_go_by(self, staging: Staging) -> None:
        data = b"GRIB7777"
        put(staging, "id-1.grib", data)
        sha256 = hashlib.sha256(data).hexdigest()
        link = staging.url(
            "id-1.grib",
            download_name="id.grib",
            media_type=MEDIA_TYPE,
            sha256=sha256,
            expires_s=60,
        )
        if link is None:  # the frontend serves it
            return
        methods = {"GET": data, **({"HEAD": b""} if self.links_answer_head else {})}
        for method, content in methods.items():
            answer = requests.request(method, link, timeout=10)
            assert (answer.status_code, answer.content) == (200, content)
            assert answer.headers["Content-Type"] == MEDIA_TYPE
            assert answer.headers["Content-Length"] == "8"
            assert answer.headers["Content-Disposition"] == 'attachment; filename="id.grib"'
            # not every storage can say it
            assert answer.headers.get("Repr-Digest") in (None, repr_digest(sha256))
        part = requests.get(link, headers={"Range": "bytes=4-5"}, timeout=10)
        assert (part.status_code, part.content) == (206, b"77")

    def test_the_room_left_is_a_number_or_unknown(self, staging: Staging) -> None:
        free = staging.free_bytes()
        assert free is None or free > 0


class StorageFullContract:
    """For storages that can be made to have no room.

    Fixture: `full`, with nothing in it, and room for small objects, but not for one of 64 MiB.
    """

    def test_no_room_is_said_to_be_no_room_and_nothing_is_left(self, full: Staging) -> None:
        put(full, "small")
        with pytest.raises(StorageFull):
            put(full, "large", b"x" * _LARGE_BYTES)
        assert [each.name for each in full.list("")] == ["small"]
        assert full.remove_stale_uploads(age_s=0) == 0
        put(full, "other")
        assert get(full, "other") == b"data"


def _elsewhere(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The call's result, in a thread of its own."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(call, *args, **kwargs).result()


def _in_threads(names: Sequence[str], work: Callable[[str], None]) -> None:
    """Do the work for each name, in a few threads; the first error is raised."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(work, names))
