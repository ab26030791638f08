"""Data on their way to an archive, and a temporary directory that takes none of them."""

import contextlib
import hashlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from polytope_server.config.staging import LocalStagingSection
from polytope_server.errors import StorageFull
from polytope_server.request import BINARY, DataObject, Lease, Request, Status, Verb
from polytope_server.staging.local import LocalStaging
from polytope_server.user import User
from polytope_server.worker import transfer
from polytope_server.worker.frames import Job
from polytope_server.worker.run import Run
from polytope_server.worker.slot_process import SlotProcess

DATA = b"y" * 3_000_001
JOE = User(username="joe", realm="r")
INPUT = DataObject(
    name="r1-in-1.bin",
    media_type=BINARY,
    size_bytes=len(DATA),
    sha256=hashlib.sha256(DATA).hexdigest(),
)
REQUEST = Request(
    id="r1",
    user=JOE,
    verb=Verb.ARCHIVE,
    collection="c1",
    datasource="d",
    user_request="",
    coerced_request={},
    status=Status.PROCESSING,
    input=INPUT,
)


@pytest.fixture
def staging(tmp_path: Path) -> LocalStaging:
    staging = LocalStaging(LocalStagingSection(root_dir=tmp_path / "staging"))
    with staging.create(INPUT.name, media_type=BINARY) as upload:
        upload.write(DATA)
        upload.commit()
    return staging


@pytest.fixture
def process() -> Iterator[SlotProcess]:
    with contextlib.closing(
        SlotProcess(
            environment={},
            memory_limit=4 << 30,
            log_level="INFO",
            context=contextlib.nullcontext,
        )
    ) as process:
        yield process


@contextlib.contextmanager
def full_disk(*, size_bytes: int) -> Iterator[None]:
    """Files grow to this size and no further; as for a disk, what is left of a write still fits."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def archive(staging: LocalStaging, process: SlotProcess, directory: Path) -> None:
    job = Job(
        id="r1",
        user=JOE,
        verb=Verb.ARCHIVE,
        datasource="echo",
        options={"type": "echo"},
        request={},
        text="",
    )
    run = Run(REQUEST, Lease(holder="w", attempt=1))
    transfer.archive(run, job, process, staging, directory=directory)


@pytest.mark.parametrize("size", [0, 1_000_000, 3_000_000])
def test_a_full_temporary_directory_says_that_it_is_full(
    tmp_path: Path, staging: LocalStaging, process: SlotProcess, size: int
) -> None:
    with full_disk(size_bytes=size), pytest.raises(StorageFull, match="temporary directory"):
        archive(staging, process, tmp_path)


def test_a_temporary_directory_that_is_missing_is_as_good_as_full(
    tmp_path: Path, staging: LocalStaging, process: SlotProcess
) -> None:
    with pytest.raises(StorageFull, match="temporary directory"):
        archive(staging, process, tmp_path / "missing")
