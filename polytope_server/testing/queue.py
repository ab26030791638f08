"""What every queue must do. Subclass `QueueContract` and give it the fixtures that it names."""

import threading
import time
from collections.abc import Callable

from polytope_server.queue import Delivery, Hint, Message, Queue, Topic


def message(number: int, *, attempt: int = 1) -> Message:
    return Message(id=f"id{number}", attempt=attempt)


class QueueContract:
    """The contract of `polytope_server.queue.Queue`.

    Fixtures: `queue`, with nothing in it, and `again`, the same queue opened once more, as every process
    does for itself.
    """

    def test_it_answers(self, queue: Queue) -> None:
        queue.ping()
        assert queue.size() == 0
        assert queue.receive() is None

    def test_messages_come_in_order(self, queue: Queue) -> None:
        queue.publish([message(1), message(2)])
        queue.publish([message(3)])
        assert [_receive(queue).message for _ in range(3)] == [message(n) for n in (1, 2, 3)]

    def test_nobody_else_gets_a_delivered_message(self, queue: Queue) -> None:
        queue.publish([message(1)])
        _receive(queue)
        assert queue.receive() is None
        assert queue.size() == 1

    def test_an_acknowledged_message_is_gone(self, queue: Queue) -> None:
        queue.publish([message(1)])
        delivery = _receive(queue)
        queue.acknowledge(delivery)
        _until(lambda: queue.size() == 0)
        queue.acknowledge(delivery)
        assert queue.receive() is None

    def test_a_message_that_was_put_back_comes_again(self, queue: Queue) -> None:
        queue.publish([message(1)])
        queue.put_back(_receive(queue))
        assert _receive(queue).message == message(1)

    def test_all_processes_share_messages_and_hints(self, queue: Queue, again: Queue) -> None:
        with again.listen(Topic.PUBLISHED) as hints:
            queue.publish([message(1)])
            assert Topic.PUBLISHED in {hint.topic for hint in hints.wait(5)}
        delivery = _receive(again)
        assert delivery.message == message(1)
        assert queue.receive() is None
        again.acknowledge(delivery)
        _until(lambda: queue.size() == 0)

    def test_attempts_are_told_apart(self, queue: Queue) -> None:
        queue.publish([message(1, attempt=1), message(1, attempt=2)])
        assert {_receive(queue).message.attempt for _ in range(2)} == {1, 2}

    def test_no_message_is_delivered_to_two_of_many(self, queue: Queue) -> None:
        queue.publish([message(number) for number in range(60)])
        got: list[Message] = []

        def take() -> None:
            while delivery := queue.receive():
                got.append(delivery.message)
                queue.acknowledge(delivery)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert sorted(m.id for m in got) == sorted(f"id{n}" for n in range(60))

    def test_a_hint_reaches_all_who_want_its_topic_and_nobody_else(self, queue: Queue) -> None:
        with (
            queue.listen(Topic.CHANGED, Topic.REVOKED) as one,
            queue.listen(Topic.CHANGED) as two,
            queue.listen(Topic.SUBMITTED) as other,
        ):
            queue.hint(Topic.CHANGED, "r1")
            assert list(one.wait(5)) == [Hint(topic=Topic.CHANGED, text="r1")]
            assert list(two.wait(5)) == [Hint(topic=Topic.CHANGED, text="r1")]
            assert list(other.wait(0.05)) == []

    def test_publishing_wakes_the_workers(self, queue: Queue) -> None:
        with queue.listen(Topic.PUBLISHED) as hints:
            queue.publish([message(1)])
            assert Topic.PUBLISHED in {hint.topic for hint in hints.wait(5)}
            queue.put_back(_receive(queue))
            assert Topic.PUBLISHED in {hint.topic for hint in hints.wait(5)}

    def test_a_hint_to_nobody_is_no_error(self, queue: Queue) -> None:
        queue.hint(Topic.CHANGED, "x" * 5000)
        with queue.listen(Topic.CHANGED):
            pass
        queue.hint(Topic.CHANGED, "x")

    def test_waiting_ends_at_its_time(self, queue: Queue) -> None:
        with queue.listen(Topic.CHANGED) as hints:
            begin = time.monotonic()
            assert list(hints.wait(0.1)) == []
            assert 0.05 < time.monotonic() - begin < 5

    def test_waiting_can_be_interrupted(self, queue: Queue) -> None:
        with queue.listen(Topic.CHANGED) as hints:
            threading.Timer(0.05, hints.interrupt).start()
            begin = time.monotonic()
            assert list(hints.wait(30)) == []
            assert time.monotonic() - begin < 10


def _receive(queue: Queue) -> Delivery:
    found: list[Delivery] = []

    def look() -> bool:
        if delivery := queue.receive():
            found.append(delivery)
        return bool(found)

    _until(look)
    return found[0]


def _until(condition: Callable[[], bool], *, deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)
