"""S3 servers of tests, and clients of them."""

import itertools
import uuid
from collections.abc import Mapping
from typing import Any

from polytope_server.config.staging import S3Section
from polytope_server.staging.s3 import S3Staging

_numbers = itertools.count()


def new_bucket() -> str:
    """A name that no other test has used, whatever has been left behind."""
    return f"test-{next(_numbers)}-{uuid.uuid4().hex[:12]}"


def section(options: Mapping[str, Any], **more: Any) -> S3Section:
    """A section for a server of `services`; small parts, so that tests are quick."""
    small = {"buffer_size": "5M", "max_threads": 2, "timeout": 10}
    return S3Section.read({**small, **options, **more}, where="staging.s3")


def opened(server: Any, **more: Any) -> S3Staging:
    """Staging on a server of `services`, in a bucket of its own unless it is given one."""
    return S3Staging(section(server.options, **{"bucket": new_bucket(), **more}))
