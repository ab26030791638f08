"""API keys: making, listing and revoking one's own."""

import logging
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

from falcon.asgi import Request, Response

from polytope_server.authentication.api_keys import HINT_CHARACTERS, digest, new_key
from polytope_server.config.api_keys import ApiKeysSection
from polytope_server.config.section import duration_s, duration_text
from polytope_server.errors import InvalidRequest, KeyNotFound, NotSupported
from polytope_server.frontend.bodies import expect_json, json_object, whole
from polytope_server.frontend.middleware import Authentication
from polytope_server.frontend.threads import Threads
from polytope_server.observability.metrics import Metrics
from polytope_server.request_store import ApiKey, RequestStore

logger = logging.getLogger(__name__)

NAME_LENGTH: Final = 100
_MAX_BODY: Final = 4096
_NOT_ENABLED: Final = "This server gives out no API keys; use the credentials of your account."


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a client says of a key that it wants."""

    name: str
    lifetime_s: float

    @classmethod
    def from_body(cls, body: bytes, settings: ApiKeysSection) -> Self:
        """Raises: InvalidRequest."""
        fields = json_object(body) if body else {}
        name = fields.get("name", "")
        if not isinstance(name, str) or len(name) > NAME_LENGTH or not name.isprintable():
            raise InvalidRequest(
                f"The 'name' of a key is a text of at most {NAME_LENGTH} printable characters."
            )
        return cls(name=name, lifetime_s=_lifetime_s(fields, settings.lifetime))


class Keys:
    """``/api/v1/auth/keys``"""

    def __init__(
        self,
        *,
        store: RequestStore,
        authentication: Authentication,
        threads: Threads,
        metrics: Metrics,
    ) -> None:
        self._store, self._authentication = store, authentication
        self._threads, self._metrics = threads, metrics

    async def on_post(self, req: Request, resp: Response) -> None:
        settings = enabled(req)
        body = await whole(req, max_bytes=_MAX_BODY)
        if body or req.get_header("Origin"):
            # A browser says where the page is from. It sends what another site's page asks for, with the
            # password that it knows, without asking us first, unless it is of a type that forms have not.
            expect_json(req)
        wish = Wish.from_body(body, settings)
        user = await self._authentication.identify_for_key(req, resp)
        key = new_key()
        made = await self._threads.run(
            self._store.add_key,
            ApiKey(
                id=str(uuid.uuid4()),
                digest=digest(key),
                user=user,
                name=wish.name,
                hint=key[-HINT_CHARACTERS:],
            ),
            lifetime_s=wish.lifetime_s,
            max_keys=settings.max_per_user,
        )
        self._metrics.api_key("made")
        logger.info("an API key was made", extra={"id": made.id, "expires": when(made.expires_at)})
        resp.media = {"key": key, "expires": when(made.expires_at), "id": made.id}

    async def on_get(self, req: Request, resp: Response) -> None:
        enabled(req)
        found = await self._threads.run(self._store.keys_of, req.context.user.id)
        resp.media = {"message": [record(key) for key in found]}

    on_head = on_get


class Key:
    """``/api/v1/auth/keys/{key_id}``"""

    def __init__(self, *, store: RequestStore, threads: Threads, metrics: Metrics) -> None:
        self._store, self._threads, self._metrics = store, threads, metrics

    async def on_get(self, req: Request, resp: Response, key_id: str) -> None:
        enabled(req)
        found = await self._threads.run(self._store.keys_of, req.context.user.id)
        key = next((key for key in found if key.id == key_id), None)
        if key is None:
            raise KeyNotFound("There is no such API key of yours.")
        resp.media = record(key)

    on_head = on_get

    async def on_delete(self, req: Request, resp: Response, key_id: str) -> None:
        enabled(req)
        user_id = req.context.user.id
        gone = await self._threads.run(self._store.remove_key, key_id, user_id=user_id)
        req.context.policy.identity.forget(user_id)
        self._metrics.api_key("revoked")
        logger.info("an API key was revoked by its user", extra={"id": gone.id})
        resp.media = {"message": f"Successfully revoked the API key {gone.id}"}


def enabled(req: Request) -> ApiKeysSection:
    """The settings by which keys are made.

    Raises:
        NotSupported: none are.
    """
    settings: ApiKeysSection = req.context.policy.api_keys
    if not settings.enabled:
        raise NotSupported(_NOT_ENABLED)
    return settings


def record(key: ApiKey) -> dict[str, str]:
    """A key as it is listed: all but the key."""
    return {
        "id": key.id,
        "name": key.name,
        "ends_with": key.hint,
        "created": when(key.created_at),
        "expires": when(key.expires_at),
    }


def when(seconds: float) -> str:
    """ISO 8601 in UTC, in whole seconds: no key is good for longer than is said."""
    return datetime.fromtimestamp(math.floor(seconds), UTC).isoformat().replace("+00:00", "Z")


def _lifetime_s(fields: Mapping[str, Any], longest_s: float) -> float:
    if "expires_in" not in fields:
        return longest_s
    try:
        lifetime_s = duration_s(fields["expires_in"])
    except ValueError as exc:
        raise InvalidRequest(f"'expires_in' must be {exc}.") from None
    if not 1 <= lifetime_s <= longest_s:
        raise InvalidRequest(
            f"'expires_in' must be at least 1s and at most {duration_text(longest_s)}."
        )
    return lifetime_s
