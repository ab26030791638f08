"""A change is taken up whole or not at all, and said once; SIGHUP is heard, and a closed terminal too."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from polytope_server.config.files import ConfigFiles
from polytope_server.errors import ConfigurationError
from polytope_server.lifecycle import Hangup
from polytope_server.reloading import Current, Reload, Snapshot

BASE = """
reload: {interval: 0.01}
datasources: {e: {type: echo}, d: {type: dummy}}
authentication: {r: {authenticators: {x: {type: plain, users: [{uid: joe, password: joes-secret}]}}}}
collections: {one: {roles: {r: [default]}, datasources: [e]}}
"""
OTHER = BASE.replace("one:", "other:")


@pytest.fixture
def hangup() -> Iterator[Hangup]:
    """For this thread only, as the test program has others that would be ended by the signal."""
    before = signal.getsignal(signal.SIGHUP)
    made = Hangup()
    yield made
    made.came()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    signal.signal(signal.SIGHUP, before)


def hang_up() -> None:
    signal.pthread_kill(threading.get_ident(), signal.SIGHUP)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(BASE)
    return path


Names = tuple[str, ...]


def names(snapshot: Snapshot, _before: Names | None) -> Names:
    return tuple(snapshot.collections)


MakeReload = Callable[..., Reload[Names]]


@pytest.fixture
def make(file: Path, hangup: Hangup) -> MakeReload:
    def make(build: Callable[..., Names] = names, **options: Any) -> Reload[Names]:
        files = ConfigFiles([file], environ={}, system_file=None)
        config = files.load().config
        return Reload(files, hangup, config, build, process="frontend", **options)

    return make


def taken_up(reload: Reload[Names]) -> bool:
    """Do turns until something was read; False if it was not good, or not found."""
    end = time.monotonic() + 1
    while time.monotonic() < end:
        if reload.turn():
            return True
        time.sleep(0.005)
    return False


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was logged about reloading; threads of other tests may log, too."""
    return [record for record in caplog.records if record.name == "polytope_server.reloading"]


def test_a_changed_file_is_taken_up_and_told_by_name(
    make: MakeReload, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reload = make()
    file.write_text(OTHER + "frontend: {port: 1, threads: 2}\nbrokr: {}\n")
    assert taken_up(reload)
    assert reload.current.value == ("other",)
    assert reload.config.frontend.port == 5000
    assert [record.getMessage() for record in ours(caplog)] == [
        f"configuration: {file}:7: brokr: unknown key; did you mean 'broker'?",
        "needs a restart: frontend.port, frontend.threads",
        "configuration changed",
    ]
    told = ours(caplog)[-1].__dict__
    assert (told["collections_added"], told["collections_removed"]) == (("other",), ("one",))
    assert told["users"] == 1


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("frontend: {port: many}\nbroker: 5\n", ["frontend.port", "broker"]),
        ("collections: {one: {datasources: [{name: e, match: {date: '-0x'}}]}}\n", ["match.date"]),
        ("collections: {one: {datasources: [", ["not valid YAML"]),
        ("authentication: {r: {authenticators: {x: {users: [{uid: joe}]}}}}\n", ["password"]),
    ],
)
def test_what_is_not_good_as_a_whole_is_refused_with_a_line_for_each_fault(
    make: MakeReload, file: Path, caplog: pytest.LogCaptureFixture, text: str, faults: list[str]
) -> None:
    reload = make()
    file.write_text(f"{OTHER}---\n{text}")
    assert not taken_up(reload)
    assert reload.current.value == ("one",)
    lines = [record.getMessage() for record in ours(caplog)]
    assert len(lines) == len(faults), "and not again before the next change"
    for line, fault in zip(lines, faults, strict=True):
        assert line.startswith("configuration refused, the old one stays: ")
        assert fault in line
        assert "secret" not in line
    file.write_text(OTHER)
    assert taken_up(reload)
    assert reload.current.value == ("other",)


def test_what_a_process_cannot_use_is_refused_and_nothing_is_taken_up(
    make: MakeReload, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def build(snapshot: Snapshot, _before: Names | None) -> Names:
        if "other" in snapshot.collections:
            raise ConfigurationError("this cannot be used here")
        if "third" in snapshot.collections:
            raise ZeroDivisionError
        return tuple(snapshot.collections)

    reload = make(build)
    for text, said in ((OTHER, "cannot be used here"), (BASE.replace("one:", "third:"), "read")):
        file.write_text(text)
        assert not taken_up(reload)
        assert reload.current.value == tuple(reload.config.collections) == ("one",)
        assert said in ours(caplog)[-1].getMessage()


def test_a_hangup_has_the_files_read_even_if_nobody_looks(make: MakeReload, file: Path) -> None:
    reload = make(looks=False)
    file.write_text(OTHER)
    assert not taken_up(reload)
    hang_up()
    assert reload.turn()
    assert reload.current.value == ("other",)


def test_a_hangup_before_anybody_asks_is_not_lost(make: MakeReload, file: Path) -> None:
    hang_up()
    reload = make(looks=False)
    file.write_text(OTHER)
    assert reload.turn()
    assert not reload.turn()


def test_nothing_is_made_anew_if_nothing_changes(make: MakeReload, file: Path) -> None:
    made: list[Names] = []

    def build(snapshot: Snapshot, before: Names | None) -> Names:
        made.append(names(snapshot, before))
        return made[-1]

    reload = make(build)
    value = reload.current.value
    file.write_text(f"# a remark\n{BASE}\nfrontend: {{port: 1}}")
    assert taken_up(reload)
    assert reload.current.value is value
    assert len(made) == 1


def test_a_thread_takes_changes_up_and_ends_at_once(make: MakeReload, file: Path) -> None:
    reload = make()
    changed = threading.Event()
    with reload.running(), reload.current.calling(changed.set):
        file.write_text(OTHER)
        assert changed.wait(10)
        assert reload.current.value == ("other",)
    reload = make(looks=False)
    begin = time.monotonic()
    with reload.running():
        pass
    assert time.monotonic() - begin < 5


def test_listeners_are_called_after_each_change_and_no_more_when_they_have_left() -> None:
    current = Current(1)
    seen: list[int] = []
    with current.calling(lambda: seen.append(current.value)):
        current.replace(2)
        current.replace(3)
    current.replace(4)
    assert seen == [2, 3]


_PROGRAM = """
import signal, sys
from polytope_server.lifecycle import Hangup
hangup = Hangup()
sys.stdout.write("ready\\n")
sys.stdout.flush()
while True:
    if hangup.came(None):
        sys.stdout.write("asked\\n")
        sys.stdout.flush()
"""


@pytest.mark.parametrize("is_ignored", [False, True], ids=["", "nohup"])
def test_a_closed_terminal_ends_the_process_unless_hangups_were_to_be_ignored(
    is_ignored: bool,
) -> None:
    ours, theirs = os.openpty()

    def in_child() -> None:
        os.close(os.open(os.ttyname(theirs), os.O_RDWR))  # becomes its controlling terminal
        # said in both cases: the tests themselves may run under nohup
        signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=in_child,
    )
    os.close(theirs)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "asked\n"
        os.close(ours)
        if is_ignored:
            assert process.stdout.readline() == "asked\n"
        else:
            assert process.wait(10) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
