"""How far a long command is."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TaskID

Progress = Callable[[str, int, int], None]
"""What is done, how many of it, of how many."""


@contextmanager
def shown() -> Iterator[Progress]:
    """Bars on a terminal's standard error, else nothing."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None  # noqa: ARG005
        return
    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield progress
