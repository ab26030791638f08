"""HTTP's side of our errors: one table, and handlers that put every error into one shape."""

import logging
from collections.abc import Mapping
from typing import Any, Final

import falcon
from falcon.asgi import App, Request, Response

from polytope_server.errors import (
    BackendUnavailable,
    BodyTooLarge,
    CollectionNotFound,
    Conflict,
    InvalidRequest,
    KeyNotFound,
    LimitReached,
    NotAuthenticated,
    NotAuthorized,
    NotSupported,
    PageNotFound,
    RequestNotFound,
    ResultGone,
    ResultNotFound,
    UnsupportedMediaType,
    UserError,
)
from polytope_server.frontend.answers import json_bytes

logger = logging.getLogger(__name__)

STATUS: Final[Mapping[type[UserError], str]] = {
    InvalidRequest: falcon.HTTP_400,
    LimitReached: falcon.HTTP_400,  # the client sleeps for minutes after a 429, whatever it says
    NotAuthenticated: falcon.HTTP_401,
    NotAuthorized: falcon.HTTP_403,
    RequestNotFound: falcon.HTTP_404,  # another user's request looks the same, on purpose
    KeyNotFound: falcon.HTTP_404,  # as above
    CollectionNotFound: falcon.HTTP_404,
    PageNotFound: falcon.HTTP_404,
    ResultNotFound: falcon.HTTP_404,
    Conflict: falcon.HTTP_409,
    ResultGone: falcon.HTTP_410,
    BodyTooLarge: falcon.HTTP_413,
    UnsupportedMediaType: falcon.HTTP_415,
    NotSupported: falcon.HTTP_501,
}

RETRY_LATER_S: Final = 120


def install(app: App[Request, Response]) -> None:
    """Let every error leave as ``{"message": text}`` with its status."""
    app.add_error_handler(UserError, _the_users)
    app.add_error_handler(BackendUnavailable, _later)
    app.add_error_handler(Exception, _ours)
    app.add_error_handler(falcon.HTTPError, _falcons)


def say(resp: Response, message: str) -> None:
    """The one shape of an error body; clients break on the text ``message`` itself."""
    resp.content_type = falcon.MEDIA_JSON
    resp.data = json_bytes({"message": message if message != "message" else "message."})
    resp.text = resp.media = None


async def _the_users(_req: Request, resp: Response, error: UserError, _params: Any) -> None:
    resp.status = STATUS[type(error)]
    say(resp, str(error))


async def _later(req: Request, resp: Response, error: BackendUnavailable, _params: Any) -> None:
    logger.warning("a back-end is away", extra={"path": req.path, "cause": str(error)})
    resp.status = falcon.HTTP_503
    resp.retry_after = RETRY_LATER_S
    say(resp, "The service is temporarily unavailable; nothing was stored. Please try again later.")


async def _ours(req: Request, resp: Response, error: Exception, _params: Any) -> None:
    logger.error("unexpected error", exc_info=error, extra={"path": req.path})
    resp.status = falcon.HTTP_500
    quote = getattr(req.context, "quote", "")
    say(resp, f"Internal error; this is not your fault. Please quote {quote}.")


async def _falcons(req: Request, resp: Response, error: falcon.HTTPError, _params: Any) -> None:
    resp.status = error.status
    for name, value in dict(error.headers or {}).items():
        resp.set_header(name, value)
    if error.status == falcon.HTTP_404:
        message = f"There is nothing at {req.path}."
    elif error.status == falcon.HTTP_405:
        message = f"{req.method} is not allowed here."
    else:
        message = str(error.description or error.title)
    say(resp, message)
