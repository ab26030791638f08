"""Reading request bodies: bounded, whole or refused."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from falcon import MEDIA_JSON
from falcon.asgi import Request

from polytope_server.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType

_WHOLE_S: Final = 60.0
"""What a small body may take from its first byte to its last, however it trickles in."""


def expect_json(req: Request) -> None:
    """Raises: UnsupportedMediaType: the body is not declared as JSON."""
    media_type = (req.content_type or "").partition(";")[0].strip().lower()
    if media_type != MEDIA_JSON and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise UnsupportedMediaType("Send the request as application/json.")


async def whole(req: Request, *, max_bytes: int, at_most_s: float = _WHOLE_S) -> bytes:
    """A small body, in memory.

    Raises:
        BodyTooLarge, InvalidRequest: it is larger than that, was cut off, or took too long.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(at_most_s):
            async for chunk in chunks(req, max_bytes=max_bytes, chunk_bytes=1 << 16):
                body += chunk
    except TimeoutError as exc:
        raise InvalidRequest(
            f"The body was cut off: it did not arrive within {at_most_s:g} seconds."
        ) from exc
    return bytes(body)


async def chunks(req: Request, *, max_bytes: int, chunk_bytes: int) -> AsyncIterator[bytearray]:
    """A body in pieces of about *chunk_bytes*, holding one at a time.

    A connection that broke ends the stream as a whole body does: what came is compared with what was
    announced.

    Raises:
        BodyTooLarge, InvalidRequest: see `whole`.
    """
    announced = req.content_length
    if announced is not None and announced > max_bytes:
        raise BodyTooLarge(f"The body is larger than {max_bytes} bytes.")
    received = 0
    piece = bytearray()
    async for part in req.stream:
        received += len(part)
        if received > max_bytes:
            raise BodyTooLarge(f"The body is larger than {max_bytes} bytes.")
        piece += part
        if len(piece) >= chunk_bytes:
            yield piece
            piece = bytearray()
    if announced is not None and received != announced:
        raise InvalidRequest(f"The body was cut off: {received} of {announced} bytes arrived.")
    if piece:
        yield piece


def json_object(body: bytes) -> Mapping[str, Any]:
    """Raises: InvalidRequest: the body is no JSON object, or has a key twice."""
    try:
        value = json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique
        )
    except UnicodeDecodeError as exc:
        raise InvalidRequest("The request body is not UTF-8 text.") from exc
    except RecursionError as exc:
        raise InvalidRequest("The request body is nested too deeply.") from exc
    except ValueError as exc:
        place = f" (line {exc.lineno})" if isinstance(exc, json.JSONDecodeError) else ""
        raise InvalidRequest(f"The request body is not valid JSON{place}.") from exc
    if not isinstance(value, Mapping):
        raise InvalidRequest("The request body must be a JSON object.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    """An object whose keys are told apart: nobody could say which of two values was meant."""
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise InvalidRequest(f"The key {short(name)} is given more than once.")
        value[name] = item
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def short(value: object) -> str:
    """A value as JSON, for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
