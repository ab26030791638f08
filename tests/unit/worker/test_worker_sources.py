"""Which changes of datasources a slot's process must not live to see."""

from collections.abc import Mapping
from typing import Any

import pytest

from polytope_server.worker.supervisor import Source, Sources


def sources(*, level: str = "INFO", **options: Mapping[str, Any]) -> Sources:
    return Sources(
        by_name={("c", name): Source(type="fdb", options=given) for name, given in options.items()},
        log_level=level,
    )


@pytest.mark.parametrize(
    ("after", "is_outdated"),
    [
        (sources(a={"root": "/1"}), False),
        (sources(a={"root": "/1"}, b={"root": "/2"}), False),
        (sources(a={"root": "/2"}), True),
        (sources(b={"root": "/1"}), False),
        (sources(a={"root": "/1"}, level="DEBUG"), True),
    ],
    ids=["the same", "one more", "other options", "one gone", "another log level"],
)
def test_a_process_that_may_remember_something_else_is_replaced(
    after: Sources, is_outdated: bool
) -> None:
    assert after.outdates(sources(a={"root": "/1"})) is is_outdated


def test_what_has_gone_and_comes_back_as_something_else_is_noticed() -> None:
    first, without = sources(a={"root": "/1"}), sources(b={"root": "/2"})
    known = without.added_to(first)
    assert not sources(a={"root": "/1"}, b={"root": "/2"}).outdates(known)
    assert sources(a={"root": "/2"}).outdates(known)
