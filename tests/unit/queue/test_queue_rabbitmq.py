"""The queue on RabbitMQ: the contract, and what it does with the server's queues and connections."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from polytope_server.config.rabbitmq import RabbitMqSection
from polytope_server.queue import Queue
from polytope_server.queue.rabbitmq import RabbitMqQueue
from polytope_server.testing.queue import QueueContract
from services.rabbitmq import RabbitMq

Open = Callable[..., RabbitMqQueue]


@pytest.fixture
def open_queue(rabbitmq: RabbitMq) -> Iterator[Open]:
    """Makes queues on the shared server, the same one each time unless another name is given."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:

        def make(**options: Any) -> RabbitMqQueue:
            options = {"host": "127.0.0.1", "port": rabbitmq.port(), "name": name} | options
            queue = RabbitMqQueue(RabbitMqSection(**options))
            stack.callback(queue.close)
            return queue

        yield make


class TestQuorum(QueueContract):
    @pytest.fixture
    def queue(self, open_queue: Open) -> Queue:
        return open_queue()

    @pytest.fixture
    def again(self, open_queue: Open) -> Queue:
        return open_queue()


class TestClassic(QueueContract):
    @pytest.fixture
    def queue(self, open_queue: Open) -> Queue:
        return open_queue(queue_type="classic")

    @pytest.fixture
    def again(self, open_queue: Open) -> Queue:
        return open_queue(queue_type="classic")
