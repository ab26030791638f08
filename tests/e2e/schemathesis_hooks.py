"""A check for schemathesis that it does not bring itself: nothing about an answer is undocumented."""

import sys
from pathlib import Path
from typing import Any

import schemathesis

sys.path.insert(0, str(Path(__file__).parent))

from documented import faults


@schemathesis.check
def nothing_is_undocumented(_context: Any, response: Any, case: Any) -> None:
    headers = {name.lower(): ", ".join(values) for name, values in response.headers.items()}
    found = faults(
        case.operation.schema.raw_schema,
        case.operation.path,
        case.method,
        response.status_code,
        headers,
    )
    assert not found, "; ".join(found)
