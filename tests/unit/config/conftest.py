"""A configuration out of texts: each is a file of its own, given in this order."""

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from polytope_server.config.loading import Loaded, load


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Loaded]:
    """Loads texts as the files 1.yaml, 2.yaml and so on; there is no system file."""

    def read_texts(
        *texts: str, environ: Mapping[str, str] | None = None, strict: bool = False
    ) -> Loaded:
        files = []
        for number, text in enumerate(texts, start=1):
            path = tmp_path / f"{number}.yaml"
            path.write_text(textwrap.dedent(text), encoding="utf-8")
            files.append(path)
        system_file = tmp_path / "no-system-file.yaml"
        return load(files, environ=environ or {}, strict=strict, system_file=system_file)

    return read_texts
