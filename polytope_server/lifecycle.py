"""How a long-running process starts, waits for what is away, and ends."""

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any, Final, TypeVar

from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
    wait_random_exponential,
)
from tenacity.stop import stop_base

from polytope_server.config.model import Choice
from polytope_server.config.tracing import TracingSection
from polytope_server.errors import BackendUnavailable, ConfigurationError
from polytope_server.observability.backends import observed
from polytope_server.observability.health import Checks, HealthListener, LateChecks
from polytope_server.observability.metrics import Metrics
from polytope_server.observability.tracing import NO_TRACES, Traces
from polytope_server.registry import backends, open_backend

logger = logging.getLogger(__name__)

T = TypeVar("T")

PARENT_VARIABLE: Final = "POLYTOPE_SERVER_PARENT"
"""In the environment of a process that ends when its parent, with this process id, ends."""

_PR_SET_PDEATHSIG: Final = 1


class Stop:
    """Whether the process has been asked to end, and who wants to hear of it."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._listeners: list[Callable[[], None]] = []

    @property
    def requested(self) -> bool:
        return self.event.is_set()

    def request(self) -> None:
        """Ask for the end. Safe in a signal handler, and twice."""
        self.event.set()
        for listener in tuple(self._listeners):
            listener()

    def wait(self, timeout_s: float) -> bool:
        """Sleep unless or until the end is asked for; whether it was."""
        return self.event.wait(timeout_s)

    @contextmanager
    def calling(self, listener: Callable[[], None]) -> Iterator[None]:
        """Have *listener* called when the end is asked for; at once if it has been."""
        self._listeners.append(listener)
        try:
            if self.requested:
                listener()
            yield
        finally:
            self._listeners.remove(listener)

    def on_signals(self) -> None:
        """Let SIGTERM and SIGINT ask for the end. In the main thread only."""

        def handler(_number: int, _frame: FrameType | None) -> None:
            self.request()

        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, handler)


class Hangup:
    """SIGHUP, which wishes that the configuration be read again, and waits until somebody asks for it.

    Make it in the main thread before there are others: it is held back from all of them, and from the
    processes that we start. None is lost, for none comes between two lines of somebody's work.
    """

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what is ignored never waits
        self._has_terminal = not is_ignored and _has_terminal()

    def came(self, wait_s: float | None = 0.0) -> bool:
        """Whether it came since the last call; waits so long for it, with None for ever.

        If it says that our terminal was closed, we end as by SIGTERM instead.
        """
        if wait_s is None:
            signal.sigwaitinfo({signal.SIGHUP})
        elif signal.sigtimedwait({signal.SIGHUP}, wait_s) is None:
            return False
        if self._has_terminal and not _has_terminal():
            os.kill(os.getpid(), signal.SIGTERM)
            return False
        return True


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


class Stopped(Exception):
    """The process was asked to end while it waited for something."""


def patiently(
    action: Callable[[], T],
    *,
    stop: Stop,
    what: str,
    at_most_s: float | None = None,
    longest_pause_s: float = 10.0,
) -> T:
    """The result of *action*, tried again with back-off and jitter while a back-end is away.

    Args:
        what: what it is that we wait for, for the log.
        at_most_s: then give up; None waits for ever.

    Raises:
        Stopped: the process was asked to end meanwhile.
        BackendUnavailable: it was still away after `at_most_s`.
    """

    def say(state: RetryCallState) -> None:
        logger.warning(
            "a back-end is away; trying again",
            extra={"waiting_for": what, "cause": str(state.outcome and state.outcome.exception())},
        )

    stops: list[stop_base] = [stop_when_event_set(stop.event)]
    if at_most_s is not None:
        stops.append(stop_after_delay(at_most_s))
    try:
        return Retrying(
            retry=retry_if_exception_type(BackendUnavailable),
            wait=wait_random_exponential(multiplier=0.1, max=longest_pause_s),
            stop=stop_any(*stops),
            sleep=sleep_using_event(stop.event),
            before_sleep=say,
        )(action)
    except RetryError as exc:
        if stop.requested:
            raise Stopped from exc
        raise BackendUnavailable(f"{what}: still away") from exc


def open_chosen(
    abstraction: str,
    choice: Choice | None,
    *,
    stop: Stop,
    metrics: Metrics | None = None,
    checks: LateChecks | None = None,
) -> Any:
    """The back-end that a section of the configuration names, waited for while it is away.

    Args:
        metrics: told of all its calls.
        checks: told of its ping.

    Raises:
        ConfigurationError: none is chosen, it is not here, or its options are wrong.
        Stopped: the process was asked to end meanwhile.
    """
    if choice is None:
        names = ", ".join(sorted(backends(abstraction).names))
        raise ConfigurationError(
            f"{abstraction}: this section is missing; choose one of {names}, as in "
            f"'{abstraction}: {{NAME: {{...}}}}'"
        )
    backend = patiently(
        lambda: open_backend(abstraction, choice.name, choice.options), stop=stop, what=abstraction
    )
    if metrics is not None:
        backend = observed(backend, abstraction=abstraction, name=choice.name, metrics=metrics)
    if checks is not None:
        checks.opened(abstraction, backend.ping)
    return backend


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Have the kernel send us this signal when our parent ends, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def end_now() -> None:
    """End this process, whatever its threads still wait for."""
    logging.shutdown()
    os._exit(0)


@contextmanager
def listening(bind_to: str, port: int | None, checks: Checks, metrics: Metrics) -> Iterator[None]:
    """Answer for health and metrics meanwhile; without a port, do not.

    Raises:
        ConfigurationError: that cannot be listened on.
    """
    if port is None:
        yield
        return
    listener = HealthListener(bind_to, port, checks, metrics)
    listener.start()
    try:
        yield
    finally:
        listener.close()


def open_traces(section: TracingSection, *, process: str) -> Traces:
    """Where this process tells its spans; to be closed at its end.

    Raises:
        ConfigurationError: they are wanted, and the libraries are not installed.
    """
    if section.endpoint is None:
        return NO_TRACES
    try:
        otlp = import_module("polytope_server.observability.otlp")
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("polytope_server"):
            raise  # a mistake of ours, not a missing extra
        raise ConfigurationError(
            f"tracing: needs {exc.name}: pip install 'polytope-server[tracing]'"
        ) from exc
    traces: Traces = otlp.OtlpTraces(section, endpoint=section.endpoint, process=process)
    return traces


@contextmanager
def telling_traces(section: TracingSection, *, process: str) -> Iterator[Traces]:
    """`open_traces`, closed at the end."""
    traces = open_traces(section, process=process)
    try:
        yield traces
    finally:
        traces.close()
