"""The bytes of one run: from the slot into staging, or from staging to the slot."""

import contextlib
import hashlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from io import RawIOBase
from pathlib import Path

from polytope_server.errors import DatasourceFailed, ObjectNotFound, StorageFull
from polytope_server.request import (
    BINARY,
    EXTENSIONS,
    DataObject,
    result_name,
)
from polytope_server.staging import Staging
from polytope_server.worker.frames import VALID_FOR, Job, Kind
from polytope_server.worker.run import Run
from polytope_server.worker.slot_process import SlotProcess

_LARGE_BYTES = 1 << 18

Frames = Generator[tuple[Kind, memoryview], None, None]


def retrieve(
    run: Run,
    job: Job,
    process: SlotProcess,
    staging: Staging,
    *,
    max_bytes: int,
    staged: Callable[[int], None],
) -> DataObject:
    """Stage what the slot sends, hashing it on the way; holds a few frames at a time.

    Args:
        staged: told how many bytes were written, each time.

    Raises:
        DatasourceFailed: with a text for the user; nothing was staged.
        SlotDied: the process ended; nothing was staged.
        StorageFull, BackendUnavailable: staging could not take it; nothing was staged.
    """
    with run.parts.part("slot"), contextlib.closing(_frames(process, job)) as frames:
        media_type = _media_type(frames)
        name = result_name("", run.request.id, run.lease.attempt, media_type)
        with (
            run.parts.part("staging"),
            staging.create(name, media_type=media_type) as upload,
            _Digest() as digest,
        ):
            run.bytes_staged = 0
            for _, payload in frames:
                run.bytes_staged += len(payload)
                if run.bytes_staged > max_bytes:
                    raise DatasourceFailed(
                        f"The result is larger than {max_bytes} bytes, the most that this server "
                        "hands out at once; ask for less in each request."
                    )
                digest.add(payload)
                upload.write(payload)
                staged(len(payload))
            upload.commit()
    return DataObject(
        name=name, media_type=media_type, size_bytes=run.bytes_staged, sha256=digest.hexdigest()
    )


class _Digest:
    """SHA-256 of what passes, taken in a thread beside the reading and writing of the next pieces."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> "_Digest":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def add(self, payload: memoryview) -> None:
        """Hash *payload*, which must stay as it is until `VALID_FOR` - 1 more have been added."""
        if self._pool is None:
            if len(payload) < _LARGE_BYTES:
                self._digest.update(payload)
                return
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest")
        self._pending.append(self._pool.submit(self._digest.update, payload))
        if len(self._pending) >= VALID_FOR:
            self._pending.popleft().result()

    def hexdigest(self) -> str:
        """Of all that was added."""
        while self._pending:
            self._pending.popleft().result()
        return self._digest.hexdigest()


def archive(
    run: Run, job: Job, process: SlotProcess, staging: Staging, *, directory: Path | None
) -> None:
    """Let the slot archive what the user uploaded, from a file that has no name and so is never left.

    Raises:
        DatasourceFailed: with a text for the user; also if the data are gone, or damaged.
        SlotDied: the process ended.
        StorageFull: *directory* has no room, or cannot be used.
        BackendUnavailable: staging is away.
    """
    with contextlib.ExitStack() as stack:
        with _our_errors():
            # without a buffer: what does not fit must not come up again when the file is closed
            file = stack.enter_context(tempfile.TemporaryFile(buffering=0, dir=directory))
        with run.parts.part("staging"):
            _fetch_input(run, staging, file)
        path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        with run.parts.part("slot"):
            for _ in _frames(process, replace(job, data=path)):
                pass


def _fetch_input(run: Run, staging: Staging, file: RawIOBase) -> None:
    data = run.request.input
    if data is None or not data.name:
        raise DatasourceFailed("The uploaded data of this request are gone; submit it again.")
    digest = hashlib.sha256()
    try:
        for chunk in staging.read(data.name):
            digest.update(chunk)
            _write(file, chunk)
    except ObjectNotFound as exc:
        raise DatasourceFailed(
            "The uploaded data of this request are gone; submit it again."
        ) from exc
    if digest.hexdigest() != data.sha256:
        raise DatasourceFailed("The uploaded data were damaged in storage; submit them again.")


def _write(file: RawIOBase, chunk: bytes) -> None:
    left = memoryview(chunk)
    with _our_errors():
        while left:
            left = left[file.write(left) :]


@contextlib.contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StorageFull(f"the worker's temporary directory: {exc.strerror}") from exc


def _frames(process: SlotProcess, job: Job) -> Frames:
    """STARTED and DATA frames; FAILED as an exception."""
    for kind, payload in process.run(job):
        if kind is Kind.FAILED:
            raise DatasourceFailed(bytes(payload).decode(errors="replace"))
        if kind is not Kind.DONE:
            yield kind, payload


def _media_type(frames: Frames) -> str:
    kind, payload = next(frames)
    media_type = bytes(payload).decode(errors="replace")
    if kind is Kind.STARTED and media_type in EXTENSIONS:
        return media_type
    return BINARY
