"""The contract of staging, kept by a directory that has equal results once, and what is its own."""

import hashlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from polytope_dedup import DedupSection, DedupStaging
from polytope_server.errors import BackendUnavailable, ConfigurationError, ObjectNotFound
from polytope_server.staging import CHUNK_BYTES, Staging
from polytope_server.testing.staging import (
    MEDIA_TYPE,
    StagingContract,
    StorageFullContract,
    get,
    put,
)

DIGEST_BYTES = hashlib.sha256().digest_size


def opened(root: Path) -> DedupStaging:
    return DedupStaging(DedupSection.read({"root_dir": str(root)}, where="staging.dedup"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "staging"


@pytest.fixture
def staging(root: Path) -> Staging:
    return opened(root)


class TestDedup(StagingContract, StorageFullContract):
    @pytest.fixture
    def again(self, root: Path) -> Staging:
        return opened(root)

    @pytest.fixture
    def full(self, staging: Staging) -> Iterator[Staging]:
        """A limit on the size of files stands in for a full disk."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
        yield staging
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(root: Path) -> list[bytes]:
    return sorted(file.read_bytes()[:-DIGEST_BYTES] for file in (root / "contents").iterdir())


def test_equal_results_take_room_once_until_the_last_is_gone(root: Path, staging: Staging) -> None:
    for name in ("a", "b", "c"):
        put(staging, name, b"same")
    put(staging, "d", b"other")
    assert contents(root) == [b"other", b"same"]
    assert len({(root / "objects" / name).stat().st_ino for name in ("a", "b", "c")}) == 1
    staging.delete("a")
    staging.delete("b")
    assert get(staging, "c") == b"same"
    assert contents(root) == [b"other", b"same"]
    staging.delete("c")
    assert contents(root) == [b"other"]


def test_an_equal_object_is_as_young_as_it_is_new(root: Path, staging: Staging) -> None:
    put(staging, "a", b"same")
    os.utime(root / "objects" / "a", (0, 0))
    put(staging, "b", b"same")
    assert staging.stat("b").modified_at > 1.7e9


def test_an_object_may_be_replaced_by_its_like(root: Path, staging: Staging) -> None:
    put(staging, "a", b"same")
    put(staging, "a", b"same")
    assert get(staging, "a") == b"same"
    assert list((root / "uploads").iterdir()) == []


def test_what_a_replaced_object_held_is_removed_with_stale_uploads(
    root: Path, staging: Staging
) -> None:
    put(staging, "a", b"old")
    put(staging, "a", b"new")
    assert staging.remove_stale_uploads(age_s=3600) == 0
    assert contents(root) == [b"new"]


def test_whoever_comes_while_the_last_goes_gets_all_bytes(root: Path) -> None:
    """Many take and give up the same content at once, while others clean up."""
    surprises: list[object] = []

    def work(number: int) -> None:
        staging, name = opened(root), f"n{number}"
        try:
            for _ in range(50):
                put(staging, name, b"same")
                if get(staging, name) != b"same":
                    surprises.append(name)
                staging.delete(name)
                staging.remove_stale_uploads(age_s=3600)
        except (BackendUnavailable, ObjectNotFound) as exc:
            surprises.append(exc)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert surprises == []
    opened(root).remove_stale_uploads(age_s=3600)
    assert [file for file in root.rglob("*") if file.is_file()] == []


KILLED = """
import os, sys
from pathlib import Path
from polytope_dedup import DedupSection, DedupStaging

def kill(*_):
    os.kill(os.getpid(), 9)

staging = DedupStaging(DedupSection(root_dir=Path(sys.argv[1])))
with staging.create("a", media_type="") as upload:
    upload.write(sys.argv[2].encode())
    if sys.argv[3] == "write":
        kill()
    Path.replace = kill  # has a name among the contents, or one in place of its own
    upload.commit()
"""


@pytest.mark.parametrize(
    ("data", "moment", "left"), [("lost", "write", 1), ("lost", "commit", 1), ("kept", "commit", 2)]
)
def test_what_a_killed_writer_left_is_removed_when_it_is_stale(
    root: Path, staging: Staging, data: str, moment: str, left: int
) -> None:
    put(staging, "kept", b"kept")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(root), data, moment], check=False)
    assert ended.returncode == -9
    assert [each.name for each in staging.list("")] == ["kept"]
    assert staging.remove_stale_uploads(age_s=3600) == 0
    assert staging.remove_stale_uploads(age_s=0) == left
    assert contents(root) == [b"kept"]
    assert list((root / "uploads").iterdir()) == []


def test_an_object_that_is_cut_off_while_it_is_read_is_noticed(
    root: Path, staging: Staging
) -> None:
    put(staging, "a", b"x" * (2 * CHUNK_BYTES))
    chunks = staging.read("a")
    next(chunks)
    os.truncate(root / "objects" / "a", CHUNK_BYTES)
    with pytest.raises(BackendUnavailable, match="cut off"):
        next(chunks)


def test_a_root_that_is_a_file_is_the_operators_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"staging\.dedup\.root_dir"):
        opened(tmp_path / "file")


def test_a_directory_that_has_gone_is_unavailable(root: Path, staging: Staging) -> None:
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(BackendUnavailable):
        staging.ping()
    with (
        pytest.raises(BackendUnavailable),
        staging.create("a", media_type=MEDIA_TYPE),
    ):
        pass
