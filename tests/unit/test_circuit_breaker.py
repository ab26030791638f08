"""When a server is asked, and what is said about it."""

import logging
import threading

import pytest

from polytope_server.circuit_breaker import CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("the server", pause_s=5, clock=clock)


def test_after_a_failure_nobody_asks_for_a_while_and_then_one(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    assert breaker.lets_through()
    breaker.failed(OSError("no route"))
    clock.now += 4.9
    assert not breaker.lets_through()
    clock.now += 0.1
    assert [breaker.lets_through() for _ in range(3)] == [True, False, False]
    breaker.failed(OSError("no route"))
    assert not breaker.lets_through()


def test_an_answer_lets_all_in_again(breaker: CircuitBreaker) -> None:
    breaker.failed(OSError("no route"))
    breaker.succeeded()
    assert all(breaker.lets_through() for _ in range(3))


def test_one_that_never_reports_back_does_not_shut_it_for_ever(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    breaker.failed(OSError("no route"))
    clock.now += 5
    assert breaker.lets_through()
    clock.now += 5
    assert breaker.lets_through()


def test_a_pause_may_be_longer_than_usual(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.failed(OSError("wrong password"), pause_s=30)
    clock.now += 29
    assert not breaker.lets_through()
    clock.now += 1
    assert breaker.lets_through()
    assert breaker.cause == "wrong password"


def test_it_is_logged_once_when_it_goes_and_once_when_it_is_back(
    breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def fail() -> None:
        for _ in range(50):
            breaker.failed(OSError("no route"))

    threads = [threading.Thread(target=fail) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for _ in range(3):
        breaker.succeeded()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    first = vars(caplog.records[0])
    assert (first["server"], first["cause"]) == ("the server", "no route")
