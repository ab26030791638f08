"""Staging in a directory."""

import errno
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polytope_server.config.staging import LocalStagingSection
from polytope_server.errors import (
    BackendUnavailable,
    ConfigurationError,
    ObjectNotFound,
    StorageFull,
)
from polytope_server.registry import open_backend
from polytope_server.staging import CHUNK_BYTES, Staging
from polytope_server.staging.local import LocalStaging
from polytope_server.testing.staging import MEDIA_TYPE, StagingContract, StorageFullContract, put


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "staging"


@pytest.fixture
def staging(root: Path) -> Staging:
    made: Staging = open_backend("staging", "local", {"root_dir": str(root)})
    return made


@pytest.fixture
def again(root: Path) -> Staging:
    return LocalStaging(LocalStagingSection(root_dir=root))


@pytest.fixture
def full(staging: Staging) -> Iterator[Staging]:
    """A limit on the size of files stands in for a full disk: the same path, another error number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield staging
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestLocalStaging(StagingContract, StorageFullContract):
    """The contract, kept by `LocalStaging`."""


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_nobody_else_may_look_into_the_directory(root: Path, staging: Staging) -> None:
    put(staging, "a")
    for path in (root, *root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_directory_that_is_open_to_others_is_closed_inside(tmp_path: Path) -> None:
    for name in ("", "objects", "uploads"):
        (tmp_path / name).mkdir(mode=0o755, exist_ok=True)
    LocalStaging(LocalStagingSection(root_dir=tmp_path))
    assert {stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("objects", "uploads")} == {0o700}


def test_a_root_that_is_a_file_is_the_operators_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="root_dir"):
        LocalStaging(LocalStagingSection(root_dir=tmp_path / "file"))


def test_ping_notices_that_the_directory_has_gone(root: Path, staging: Staging) -> None:
    for directory in ("objects", "uploads"):
        (root / directory).rmdir()
    with pytest.raises(BackendUnavailable):
        staging.ping()


def test_what_somebody_else_has_put_there_is_not_listed(root: Path, staging: Staging) -> None:
    put(staging, "abc")
    (root / "objects" / ".DS_Store").touch()
    (root / "objects" / "ab" / ".hidden").touch()
    (root / "objects" / "ab" / "elsewhere").touch()
    (root / "objects" / "ab" / "ab directory").mkdir()
    (root / "objects" / "ab" / "abdirectory").mkdir()
    (root / "objects" / "ab" / "ablink").symlink_to("abc")
    assert [each.name for each in staging.list("")] == ["abc"]


def test_links_are_the_frontends_business(staging: Staging) -> None:
    put(staging, "a")
    link = staging.url("a", download_name="a", media_type=MEDIA_TYPE, sha256="0" * 64, expires_s=60)
    assert link is None


def test_a_killed_writer_leaves_one_file_that_is_removed_when_it_is_stale(
    root: Path, staging: Staging
) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from polytope_server.staging.local import LocalStaging\n"
        "staging = LocalStaging(LocalStaging.Config(root_dir=Path(sys.argv[1])))\n"
        "with staging.create('a', media_type='') as upload:\n"
        "    upload.write(b'x' * 3000000)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(root)], check=False)
    assert ended.returncode == -9
    (left,) = files(root)
    assert staging.list("") == []
    assert staging.remove_stale_uploads(age_s=60) == 0
    os.utime(left, (0, 0))
    assert staging.remove_stale_uploads(age_s=60) == 1
    assert files(root) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_no_space_left_is_storage_full() -> None:
    from polytope_server.staging.local import our_errors, write_all

    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(StorageFull, match=os.strerror(errno.ENOSPC)),
        our_errors(),
    ):
        write_all(full.fileno(), b"x" * CHUNK_BYTES)


def test_an_upload_may_be_left_while_another_thread_writes(root: Path, staging: Staging) -> None:
    import threading

    refused = threading.Event()

    def write() -> None:
        try:
            while True:
                upload.write(b"x" * CHUNK_BYTES)
        except BackendUnavailable:
            refused.set()

    writer = threading.Thread(target=write)
    with staging.create("a", media_type=MEDIA_TYPE) as upload:
        writer.start()
    writer.join(20)
    assert refused.is_set()
    assert files(root) == []


def test_stray_files_among_the_uploads_do_no_harm(root: Path, staging: Staging) -> None:
    (root / "uploads" / "stray").touch()
    put(staging, "a")
    assert [each.name for each in staging.list("")] == ["a"]


def test_a_directory_that_is_away_is_no_missing_object(root: Path, staging: Staging) -> None:
    aside = root.with_name("aside")
    with staging.create("a.bin", media_type=MEDIA_TYPE) as upload:
        upload.write(b"a")
        upload.commit()
    root.rename(aside)
    for call in (staging.read, staging.stat):
        with pytest.raises(BackendUnavailable):
            call("a.bin")
    aside.rename(root)
    assert b"".join(staging.read("a.bin")) == b"a"
    with pytest.raises(ObjectNotFound):
        staging.stat("b.bin")
