"""One small real archive for all tests that only read."""

from pathlib import Path
from typing import Any

import pytest

from polytope_server.demo.sample import make_fdb


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The configuration of an FDB with one date."""
    return make_fdb(Path(tmp_path_factory.mktemp("fdb")), dates=["20250101"])
