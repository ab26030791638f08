"""The embedded queue: the contract, its files, and what happens when they vanish."""

import contextlib
import gc
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from polytope_server.config.embedded import SqliteQueueSection
from polytope_server.errors import BackendUnavailable
from polytope_server.queue import Message, Queue, Topic
from polytope_server.queue import sqlite as module
from polytope_server.queue.sqlite import SqliteQueue
from polytope_server.testing.queue import QueueContract, message


def open_queue(path: Path) -> SqliteQueue:
    return SqliteQueue(SqliteQueueSection(path=path))


class TestSqlite(QueueContract):
    @pytest.fixture
    def queue(self, tmp_path: Path) -> Queue:
        return open_queue(tmp_path / "queue.sqlite")

    @pytest.fixture
    def again(self, tmp_path: Path) -> Queue:
        return open_queue(tmp_path / "queue.sqlite")


def test_a_message_twice_is_there_once(tmp_path: Path) -> None:
    queue = open_queue(tmp_path / "q.sqlite")
    queue.publish([message(1)])
    queue.publish([message(1), message(2)])
    assert queue.size() == 2


def test_a_message_whose_receiver_died_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HIDDEN_S", 0.0)
    queue = open_queue(tmp_path / "q.sqlite")
    queue.publish([message(1)])
    late = queue.receive()
    again = queue.receive()
    assert late is not None
    assert again is not None
    assert again.message == message(1)
    queue.acknowledge(late)
    assert queue.size() == 1, "a late acknowledgement took the message from its second receiver"


def test_a_removed_file_is_made_again_and_shared_by_all(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    one, two = open_queue(path), open_queue(path)
    one.publish([message(1)])
    assert two.size() == 1
    for file in tmp_path.glob("q.sqlite*"):
        if file.is_file():
            file.unlink()
    one.publish([message(2)])
    delivery = two.receive()
    assert delivery is not None
    assert delivery.message == Message(id="id2", attempt=1)


def test_a_file_that_a_process_of_the_version_before_uses_is_shared_with_it(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    open_queue(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        assert old.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
        new = open_queue(path)
        new.publish([message(1)])
        assert old.execute("SELECT id FROM messages").fetchall() == [("id1",)]
        old.execute("INSERT INTO messages (id, attempt, visible_at) VALUES ('id2', 1, 0)")
        assert new.size() == 2
        assert open_queue(path).size() == 2
    del new
    gc.collect()
    open_queue(path)
    with closing(sqlite3.connect(path)) as last:
        assert last.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert last.execute("SELECT count(*) FROM messages").fetchone() == (2,)


@pytest.mark.parametrize("harm", ["remove", "empty", "damage"])
def test_a_file_that_comes_to_harm_while_it_is_used_is_made_again(
    tmp_path: Path, harm: str
) -> None:
    path = tmp_path / "q.sqlite"
    queues = [open_queue(path) for _ in range(3)]
    for round_ in range(4):
        for queue in queues:
            queue.publish([message(round_)])
        match harm:
            case "remove":
                path.unlink()
            case "empty":
                os.truncate(path, 0)
            case "damage":
                path.write_bytes(b"no database any more" * 500)
        for _ in range(2):  # who finds the harm is told that the queue was away
            for queue in queues:
                with contextlib.suppress(BackendUnavailable):
                    queue.ping()
        queues[0].publish([message(round_)])
        for queue in queues:
            queue.ping()
            assert queue.size() == 1
        assert queues[1].receive() is not None


def test_sockets_of_dead_listeners_are_removed(tmp_path: Path) -> None:
    queue = open_queue(tmp_path / "q.sqlite")
    hints = tmp_path / "q.sqlite.hints"
    pid = os.fork()
    if pid == 0:  # a process that dies without cleaning up
        context = queue.listen(Topic.CHANGED)
        context.__enter__()
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(list(hints.iterdir())) == 1
    queue.hint(Topic.CHANGED, "x")
    assert list(hints.iterdir()) == []


def test_hints_work_from_a_very_long_path(tmp_path: Path) -> None:
    queue = open_queue(tmp_path.joinpath(*["d" * 60] * 3) / "q.sqlite")
    with queue.listen(Topic.TAKEN) as hints:
        queue.hint(Topic.TAKEN, "x")
        assert [hint.text for hint in hints.wait(5)] == ["x"]
