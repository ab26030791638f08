"""Tests of a deployment that runs already.

``python -m pytest tests/integration --config a.yaml --config b.yaml``. The files are those that the
deployment was started with, merged as the server does it; nothing is started here, and what a test submits is
revoked at its end. See `deployed` for where the address and the users come from. What a deployment does not
have is skipped, with the reason.
"""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from callers import LASTING, Caller, Place, Users, lasts
from deployed import Deployed, User, basic, deployed

NONE_NAMED: Final = (
    "no deployment is named: python -m pytest tests/integration --config FILE [--config FILE ...]"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("polytope-server")
    group.addoption(
        "--config",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        dest="deployment_files",
        help="configuration of the running deployment to test; may be repeated",
    )
    group.addoption(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        dest="deployment_patience_s",
        help="how long a small request may take on a deployment that has other work (60)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("deployment_files", default=[]):
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=NONE_NAMED))


@pytest.fixture(scope="session")
def deployment(request: pytest.FixtureRequest) -> Deployed:
    return deployed(request.config.getoption("deployment_files"))


@pytest.fixture(scope="session")
def caller(
    deployment: Deployed, request: pytest.FixtureRequest
) -> Iterator[Callable[[User | None], Caller]]:
    """Makes callers, and cleans up after them."""
    patience_s = request.config.getoption("deployment_patience_s")
    made: list[Caller] = []

    def make(user: User | None) -> Caller:
        made.append(Caller(deployment.url, user, patience_s=patience_s))
        return made[-1]

    yield make
    for each in made:
        each.revoke_all()


@pytest.fixture(scope="session")
def users(deployment: Deployed, caller: Callable[[User | None], Caller]) -> Users:
    return Users(deployment, caller)


@pytest.fixture
def user(users: Users) -> Iterator[Caller]:
    """The first user."""
    yield users.callers[0]
    users.callers[0].revoke_all()


@pytest.fixture
def nobody(caller: Callable[[User | None], Caller]) -> Caller:
    return caller(None)


@pytest.fixture
def stranger(caller: Callable[[User | None], Caller]) -> Caller:
    """Somebody whom no realm knows."""
    return caller(basic("nobody-of-that-name", secrets.token_hex(8)))


@pytest.fixture
def echo(users: Users) -> Iterator[Place]:
    """Gives back what it is asked."""
    place = users.place("echo")
    yield place
    place.caller.revoke_all()


@pytest.fixture
def dummy(users: Users) -> Iterator[Place]:
    """Gives as many bytes as it is asked for, as fast as it can."""
    place = users.place("dummy", fits=lambda each: not lasts(each), what="a dummy without a rate")
    yield place
    place.caller.revoke_all()


@pytest.fixture
def lasting(users: Users) -> Iterator[Place]:
    """Its requests last."""
    place = users.place("dummy", "raise", fits=lasts, what=LASTING)
    yield place
    place.caller.revoke_all()
