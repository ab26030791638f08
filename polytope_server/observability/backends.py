"""Back-ends with every call timed and every failure counted, whatever their interface.

The one place for it: who opens a back-end puts `observed` around it, and its callers see no difference. It
adds some microseconds to a call.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from inspect import isfunction
from time import perf_counter
from types import MappingProxyType, TracebackType
from typing import Any, Final, ParamSpec, TypeVar

from prometheus_client import Histogram

from polytope_server.errors import BackendUnavailable, PolytopeError, StorageFull
from polytope_server.observability.metrics import Metrics

P = ParamSpec("P")
T = TypeVar("T")

_OPERATIONS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {"authentication": frozenset({"authenticate"}), "authorization": frozenset({"grant"})}
)
"""Of these abstractions only the methods that may have to ask somebody."""


def observed(backend: Any, *, abstraction: str, name: str, metrics: Metrics) -> Any:
    """The same back-end, whose public methods are timed; everything else is handed through.

    An object that is written or read in pieces is followed to its end: `create` of staging gives
    ``begin``, ``write`` and ``commit`` besides, and `read` gives ``read_chunk``.

    Args:
        name: of the back-end, as the configuration has it.
    """
    calls = _Calls(metrics, abstraction=abstraction, backend=name)
    wanted = _OPERATIONS.get(abstraction)
    kind = type(backend)
    timed = {
        operation: calls.timed(operation, getattr(backend, operation))
        for operation in dir(kind)
        if not operation.startswith("_")
        and isfunction(getattr(kind, operation))
        and (wanted is None or operation in wanted)
    }
    if abstraction == "staging":
        timed |= {
            "create": calls.followed(timed["create"], _Upload),
            "read": calls.followed(timed["read"], _Chunks),
        }
    return _Observed(backend, timed)


class _Observed:
    """Stands in for a back-end."""

    def __init__(self, backend: Any, timed: Mapping[str, Callable[..., Any]]) -> None:
        self._backend = backend
        self.__dict__.update(timed)  # found before `__getattr__` is asked, and as fast as a method

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


class _Calls:
    """The calls of one back-end, by operation."""

    def __init__(self, metrics: Metrics, *, abstraction: str, backend: str) -> None:
        self._metrics, self._abstraction, self._backend = metrics, abstraction, backend
        self._seconds: dict[str, Histogram] = {}

    def timed(self, operation: str, call: Callable[P, T]) -> Callable[P, T]:
        """The same call, whose time and failures are told."""

        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            begin = perf_counter()
            try:
                return call(*args, **kwargs)
            except Exception as exc:
                self._count(operation, exc)
                raise
            finally:
                self._histogram(operation).observe(perf_counter() - begin)

        return timed

    def followed(
        self, call: Callable[P, T], follow: Callable[[T, "_Calls"], Any]
    ) -> Callable[P, Any]:
        """The same call, and what it returns followed on."""

        def followed(*args: P.args, **kwargs: P.kwargs) -> Any:
            return follow(call(*args, **kwargs), self)

        return followed

    def _histogram(self, operation: str) -> Histogram:
        histogram = self._seconds.get(operation)
        if histogram is None:
            histogram = self._seconds[operation] = self._metrics.backend_call(
                abstraction=self._abstraction, backend=self._backend, operation=operation
            )
        return histogram

    def _count(self, operation: str, error: Exception) -> None:
        match error:
            case StorageFull():
                reason = "full"
            case BackendUnavailable():
                reason = "away"
            case PolytopeError() | StopIteration():
                return  # an answer like any other
            case _:
                reason = "broken"
        self._metrics.backend_failed(
            abstraction=self._abstraction,
            backend=self._backend,
            operation=operation,
            reason=reason,
        )


class _Upload:
    """See `polytope_server.staging.Upload`."""

    def __init__(self, context: AbstractContextManager[Any], calls: _Calls) -> None:
        self._context, self._calls = context, calls

    def __enter__(self) -> "_Upload":
        upload = self._calls.timed("begin", self._context.__enter__)()
        self.write = self._calls.timed("write", upload.write)
        self.commit = self._calls.timed("commit", upload.commit)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._context.__exit__(kind, error, traceback)


class _Chunks:
    """The bytes of an object; `close` it to stop early."""

    def __init__(self, chunks: Iterator[bytes], calls: _Calls) -> None:
        self._chunks = chunks
        self._next = calls.timed("read_chunk", chunks.__next__)

    def __iter__(self) -> "_Chunks":
        return self

    def __next__(self) -> bytes:
        return self._next()

    def close(self) -> None:
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()
