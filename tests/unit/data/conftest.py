"""A server's data for every test."""

from pathlib import Path

import pytest
from data_directory import Data


@pytest.fixture
def data(tmp_path: Path) -> Data:
    found = Data(tmp_path / "server")
    found.store.ping()
    (found.directory / "password").write_text("hush")
    (found.directory / "usage.jsonl").write_bytes(b"")
    return found
