"""The embedded queue: the contract, its files, and what happens when they vanish."""

import os
from pathlib import Path

import pytest

from polytope_server.config.embedded import SqliteQueueSection
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
