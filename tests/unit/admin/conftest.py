"""A deployment without processes: its configuration, its back-ends, and the command line."""

import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from admin_command_line import CommandLine

from polytope_server.admin.deployment import Deployment
from polytope_server.admin.operations import Operations
from polytope_server.admin.operator import Operator
from polytope_server.config.loading import load


def tree(directory: Path) -> dict[str, Any]:
    return {
        "request_store": {"sqlite": {"path": str(directory / "r.sqlite")}},
        "queue": {"sqlite": {"path": str(directory / "q.sqlite")}},
        "staging": {"local": {"root_dir": str(directory / "staging")}},
        "datasources": {"echo": {"type": "echo"}},
        "collections": {
            "c1": {
                "roles": ["default"],
                "limits": {"total": 20, "per-user": 4},
                "datasources": ["echo"],
            },
            "c2": {"roles": ["default"], "datasources": ["echo"]},
        },
    }


@pytest.fixture
def run(tmp_path: Path) -> Iterator[CommandLine]:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(tree(tmp_path)))
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook, threading.excepthook, sys.unraisablehook
    yield CommandLine(file)
    root.handlers[:], level, sys.excepthook, threading.excepthook, sys.unraisablehook = before
    root.setLevel(level)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(tree(tmp_path)))
    config = load([file], strict=True, environ={}, system_file=tmp_path / "none").config
    return Deployment(
        config, Operator(user="op", groups=frozenset(), sudo_user="alice", host="desk")
    )


@pytest.fixture
def operations(deployment: Deployment) -> Operations:
    return Operations(deployment)
