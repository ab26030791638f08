"""Servers that are killed, that stop, and whose replies are lost, while users go on asking.

Requests wait and finish; none is lost, none fails for that reason; each result is whole; our processes
connect again by themselves, and say in ``/readyz`` what they wait for.
"""

import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from deployment import until
from fullstack import HARMED, Back, FullStack, all_is_well, harmable, states
from load import Load
from services.fixtures import must_be_installed
from services.proxy import Mode
from services.stack import kind

pytestmark = pytest.mark.xdist_group("stack-faults")

BEFORE_S = 1.5
"""Of load, before the fault."""
FAULT_S = 5.0
AGAIN_S = 60.0

Harmable = tuple[FullStack, Mapping[str, Back]]


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harmable]:
    must_be_installed(*map(kind, HARMED))
    with harmable(tmp_path_factory.mktemp("stack-faults")) as made:
        yield made


def killed(back: Back, is_told: Callable[[], None]) -> None:
    back.server.kill()
    is_told()
    back.server.start()


def stopped(back: Back, is_told: Callable[[], None]) -> None:
    back.server.pause()
    try:
        _for_a_while(is_told)
    finally:
        back.server.resume()


def unheard(back: Back, is_told: Callable[[], None]) -> None:
    """What we ask is done, and we never learn of it."""
    lost = back.proxy.lost_bytes
    back.proxy.mode = Mode.LOSE_REPLIES
    try:
        _for_a_while(is_told)
    finally:
        back.proxy.mode = Mode.PASS
    assert back.proxy.lost_bytes > lost


def _for_a_while(is_told: Callable[[], None]) -> None:
    end = time.monotonic() + FAULT_S
    is_told()
    time.sleep(max(0.0, end - time.monotonic()))


@pytest.mark.parametrize("name", HARMED)
@pytest.mark.parametrize("fault", [killed, stopped, unheard])
def test_requests_wait_and_finish(
    harmed: Harmable, name: str, fault: Callable[[Back, Callable[[], None]], None]
) -> None:
    deployment, backs = harmed
    back = backs[name]
    pids = {label: process.pid for label, process in deployment.processes.items()}

    def is_told() -> None:
        until(
            lambda: states(deployment)[1][back.name] == "away",
            what=f"{back.name} is said to be away",
        )
        status, said = states(deployment)
        assert [each for each, state in said.items() if state != "ok"] == [back.name]
        assert status == (200 if back.name == "caching" else 503), "a cache can be done without"

    with Load(deployment) as load:
        time.sleep(BEFORE_S)
        fault(back, is_told)
        until(lambda: all_is_well(deployment), deadline_s=AGAIN_S, what="all are there again")
        finished = load.finished
        until(lambda: load.finished > finished, deadline_s=AGAIN_S, what="requests go on")
    assert load.check() > 20
    for label, process in deployment.processes.items():
        assert process.poll() is None, f"{label} ended"
        assert process.pid == pids[label]
    deployment.call("DELETE", "/requests/all")
