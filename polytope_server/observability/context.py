"""Which request and whose: what every log line that belongs to one carries."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final

_bound: Final[ContextVar[Mapping[str, str]]] = ContextVar(
    "polytope_server.log_context", default=MappingProxyType({})
)


@contextmanager
def log_context(
    *, request_id: str | None = None, user: str | None = None, **fields: str | None
) -> Iterator[None]:
    """Put these fields on every log line written inside, by this task or thread.

    A None leaves what an outer context has bound. Tasks take the context with them by themselves, and
    so does ``asyncio.to_thread``; for a thread pool of one's own, submit
    ``contextvars.copy_context().run``.
    """
    given = {"request_id": request_id, "user": user, **fields}
    new = {name: value for name, value in given.items() if value is not None}
    token = _bound.set(MappingProxyType({**_bound.get(), **new}))
    try:
        yield
    finally:
        _bound.reset(token)


def bind_context(*, request_id: str | None = None, user: str | None = None) -> None:
    """Put these fields on all lines that this task writes from here on; without any, begin afresh.

    For an HTTP request, whose handling is spread over several calls in one task, so that no ``with``
    can be put around it.
    """
    given = {"request_id": request_id, "user": user}
    new = {name: value for name, value in given.items() if value is not None}
    _bound.set(MappingProxyType({**_bound.get(), **new} if new else {}))


def bound() -> Mapping[str, str]:
    """The fields of the contexts around this."""
    return _bound.get()
