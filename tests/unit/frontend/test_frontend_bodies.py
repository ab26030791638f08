"""Small bodies that trickle in."""

import asyncio
import time
from typing import Any

import pytest
from falcon.asgi import Request
from falcon.testing import create_scope

from polytope_server.errors import InvalidRequest
from polytope_server.frontend.bodies import whole


def request(*, pause_s: float, size: int) -> Request:
    """A request whose body comes byte by byte."""

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": b" ", "more_body": True}

    scope = create_scope(method="POST", headers={"Content-Length": str(size)})
    return Request(scope, receive)


def test_a_small_body_that_trickles_in_is_cut_off_in_the_end() -> None:
    begun = time.monotonic()
    with pytest.raises(InvalidRequest, match="cut off"):
        asyncio.run(whole(request(pause_s=0.02, size=100_000), max_bytes=1 << 20, at_most_s=0.3))
    assert time.monotonic() - begun < 5


def test_a_small_body_that_is_whole_in_time_is_taken() -> None:
    body = asyncio.run(whole(request(pause_s=0.01, size=10), max_bytes=100, at_most_s=10))
    assert body == b" " * 10
