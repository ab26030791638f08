"""Lists of one's own requests: as long as they are, in memory that is not."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Final

from falcon import MEDIA_JSON
from falcon.asgi import Request as HttpRequest
from falcon.asgi import Response

from polytope_server.frontend.answers import json_bytes
from polytope_server.frontend.threads import Threads
from polytope_server.request import Request
from polytope_server.request_store import RequestStore

_PAGE: Final = 500
_PAGE_BYTES: Final = 1 << 18
_PIECE_BYTES: Final = 1 << 16
_BEGIN, _BETWEEN, _END = b'{"message": [', b", ", b"]}"


class Listing:
    """Answers with the records of one's own requests, page by page.

    A page is read, made into JSON and let go in a thread; each list holds one page of JSON, of about
    ``_PAGE_BYTES`` and one request.

    Args:
        record: what is shown of a request; called in a thread.
    """

    def __init__(
        self,
        *,
        store: RequestStore,
        threads: Threads,
        record: Callable[[HttpRequest, Request], dict[str, Any]],
    ) -> None:
        self._store, self._threads, self._record = store, threads, record

    async def answer(self, req: HttpRequest, resp: Response, collection: str | None) -> bool:
        """Send the records, of one collection or of all; False if there are none.

        What fails after the first page breaks the connection: without its end the list is no JSON.
        """
        resp.content_type = MEDIA_JSON
        page, last = await self._page(req, collection, None)
        if req.method == "HEAD":
            resp.stream = _nothing()  # or else Falcon says that it has no length
            return last is not None
        pages = [page]
        if last is not None:
            page, end = await self._page(req, collection, last)
            if end is not None:
                resp.stream = self._all(req, collection, [*pages, page], end)
                return True
        # a short list in one piece, with its length
        resp.data = _BEGIN + pages[0] + _END
        return last is not None

    async def _all(
        self, req: HttpRequest, collection: str | None, pages: list[bytes], last: Request | None
    ) -> AsyncIterator[bytes]:
        """All pages, after those that are there already, in pieces that a slow client lets wait."""
        before = _BEGIN
        while pages:
            page = pages.pop(0)
            yield before
            for start in range(0, len(page), _PIECE_BYTES):
                yield page[start : start + _PIECE_BYTES]
            before = _BETWEEN
            if not pages:
                page, last = await self._page(req, collection, last)
                if last is not None:
                    pages.append(page)
        yield _END

    async def _page(
        self, req: HttpRequest, collection: str | None, after: Request | None
    ) -> tuple[bytes, Request | None]:
        return await self._threads.run(self._read, req, collection, after)

    def _read(
        self, req: HttpRequest, collection: str | None, after: Request | None
    ) -> tuple[bytes, Request | None]:
        """A page as JSON without brackets, and its last request without what is large; None at the end."""
        page = self._store.requests_of(
            req.context.user.id,
            collection=collection,
            after=after,
            limit=1 if req.method == "HEAD" else _PAGE,
            max_bytes=_PAGE_BYTES,
        )
        if not page:
            return b"", None
        records = _BETWEEN.join(json_bytes(self._record(req, request)) for request in page)
        return records, replace(page[-1], user_request="", coerced_request={})


async def _nothing() -> AsyncIterator[bytes]:
    for piece in tuple[bytes, ...]():
        yield piece
