"""``polytope-server admin`` in this process."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from polytope_server.admin.commands import admin_app


@dataclass
class CommandLine:
    """``polytope-server admin`` with one configuration."""

    file: Path

    def __call__(self, *arguments: str, answer: str | None = None) -> Result:
        return CliRunner().invoke(admin_app, [*arguments, "-f", str(self.file)], input=answer)

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    def configure(self, changes: Mapping[str, Any]) -> None:
        self.file.write_text(json.dumps({**json.loads(self.file.read_text()), **changes}))
