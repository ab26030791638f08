"""A slot process: runs one request after another in its datasource, and is killed without regret.

Started by `polytope_server.worker.slot_process`, never by hand. Descriptors 0 and 1 are replaced before
any foreign library is loaded: C++ prints to descriptor 1, and nobody but us may read the jobs.
"""

import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import BinaryIO

from polytope_server.config.model import LoggingSection
from polytope_server.datasource import Datasource, Query
from polytope_server.errors import ConfigurationError, DatasourceFailed
from polytope_server.lifecycle import end_with_parent
from polytope_server.observability.context import log_context
from polytope_server.observability.logging import configure
from polytope_server.registry import open_backend
from polytope_server.request import Verb
from polytope_server.worker.frames import Job, Kind, write_frame

logger = logging.getLogger(__name__)


def main() -> None:
    """``python -m polytope_server.worker.slot PARENT_PID MEMORY_BYTES LOG_LEVEL``"""
    parent, memory_bytes, level = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    end_with_parent(parent, signal.SIGKILL)
    jobs, frames = _private_streams()
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever stops everything means the supervisor
        signal.signal(number, signal.SIG_IGN)
    configure(LoggingSection.model_validate({"level": level}), process="slot")
    write_frame(frames, Kind.READY)
    for line in jobs:
        job = Job.from_line(line)
        with log_context(request_id=job.id, user=job.user.username):
            _run(job, frames)
    os._exit(0)  # foreign exit handlers crash or hang


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    jobs, frames = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return os.fdopen(jobs, "rb"), os.fdopen(frames, "wb", buffering=0)


def _run(job: Job, frames: BinaryIO) -> None:
    try:
        datasource: Datasource = open_backend("datasource", job.datasource, job.options)
        query = Query(id=job.id, user=job.user, request=job.request, text=job.text)
        if job.verb is Verb.ARCHIVE and job.data is not None:
            datasource.archive(query, Path(job.data))
        else:
            write_frame(frames, Kind.STARTED, datasource.media_type.encode())
            for chunk in datasource.retrieve(query):
                write_frame(frames, Kind.DATA, chunk)
        answer, text = Kind.DONE, ""
    except DatasourceFailed as exc:
        logger.info("the datasource could not deliver", extra={"reason": str(exc)})
        answer, text = Kind.FAILED, str(exc)
    except MemoryError:
        logger.exception("out of memory")
        answer, text = Kind.FAILED, "The request needs more memory than it may have; ask for less."
    except ConfigurationError:
        logger.exception("the datasource cannot be used as it is configured")
        answer, text = Kind.FAILED, _ours(job)
    except Exception:
        logger.exception("the datasource failed unexpectedly")
        answer, text = Kind.FAILED, _ours(job)
    write_frame(frames, answer, text.encode())


def _ours(job: Job) -> str:
    return f"The datasource failed unexpectedly. This is not your fault; please quote {job.id}."


if __name__ == "__main__":
    main()
