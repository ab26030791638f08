"""A slot process as its supervisor sees it: started, given jobs, read from, killed."""

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

from polytope_server.observability.logging import relay
from polytope_server.worker.frames import FrameReader, Job, Kind

logger = logging.getLogger(__name__)

PIPE_BYTES = 1 << 20
_LINE_BYTES = 1 << 16
_DATA_LIMIT_SLACK_BYTES = 512 << 20
"""Threads and libraries reserve what they never use: resident memory is what the limit is about."""

_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")


class SlotDied(Exception):
    """The process ended in the middle of a job; the text says how."""


class SlotProcess:
    """One child process that runs one job at a time.

    Only `kill` may be called from another thread.

    Args:
        environment: added to the few variables that a slot inherits.
        memory_limit: bytes of resident memory; a hard limit on data lies somewhat above it.
        context: called in the thread that reads the process's log, for the context of each line.
    """

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        memory_limit: int,
        log_level: str,
        context: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._context = context
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        data_limit = memory_limit + _DATA_LIMIT_SLACK_BYTES
        self._process = subprocess.Popen(  # noqa: S603 -- our own module, no shell
            [
                sys.executable,
                "-m",
                "polytope_server.worker.slot",
                str(os.getpid()),
                str(data_limit),
                log_level,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={**inherited, **environment},
            start_new_session=True,
        )
        with contextlib.suppress(OSError):  # more is only faster
            fcntl.fcntl(self._out, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._frames = FrameReader(self._out)
        self.jobs_done = 0
        self.is_idle = True
        """Whether the last job has been answered to its end."""
        self._ready = False
        self._log = threading.Thread(target=self._relay_log, name="slot log", daemon=True)
        self._log.start()

    @property
    def _out(self) -> BinaryIO:
        return cast(BinaryIO, self._process.stdout)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def resident_bytes(self) -> int:
        """Memory that is really in use; 0 if the process is gone."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def run(self, job: Job) -> Iterator[tuple[Kind, memoryview]]:
        """The frames that answer *job*, to DONE or FAILED. For how long payloads are valid: `VALID_FOR`.

        Raises:
            SlotDied: the process ended instead.
        """
        self._await_ready()
        self.is_idle = False
        try:
            cast(BinaryIO, self._process.stdin).write(job.line())
        except OSError as exc:
            raise SlotDied(self._how_it_ended()) from exc
        while True:
            frame = self._frames.read()
            if frame is None:
                raise SlotDied(self._how_it_ended())
            last = frame[0] in (Kind.DONE, Kind.FAILED)
            if last:
                self.is_idle = True
                self.jobs_done += 1
            yield frame
            if last:
                return

    def _await_ready(self) -> None:
        if not self._ready:
            frame = self._frames.read()
            if frame is None or frame[0] is not Kind.READY:
                raise SlotDied(self._how_it_ended())
            self._ready = True

    def _how_it_ended(self) -> str:
        self.kill()
        code = self._process.wait()
        if code < 0:
            return signal.Signals(-code).name
        return f"exit status {code}"

    def kill(self) -> None:
        """End the process and all that it has started, at once."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill, reap, and give back the descriptors."""
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._log.join(timeout=5)

    def _relay_log(self) -> None:
        stderr = self._process.stderr
        if stderr is None:
            return
        with os.fdopen(os.dup(stderr.fileno()), "rb") as lines:
            stderr.close()
            while line := lines.readline(_LINE_BYTES):
                with self._context():
                    relay(line.decode(errors="replace").rstrip("\n"))
