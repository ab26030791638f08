"""What auth-o-tron answers: a signed token in the Authorization header of an empty answer."""

import base64
import time
from collections.abc import Mapping
from typing import Any, Final

import jwt

from services.web import Reply, WebServer

SECRET: Final = "the-secret-that-auth-o-tron-and-we-share"
JOE: Final[Mapping[str, Any]] = {
    "username": "joe",
    "realm": "ecmwf",
    "roles": ["operator", "researcher"],
    "attributes": {"ecmwf-email": "joe@example.org", "level": 3},
}
ANN: Final[Mapping[str, Any]] = {
    "username": "ann",
    "realm": "partner",
    "roles": [],
    "attributes": {},
}


class AuthOTron(WebServer):
    """Knows the user of each header value in `users`, as ``Bearer key`` or ``Basic ...``."""

    def __init__(self, *, secret: str = SECRET, lifetime_s: float = 3600.0) -> None:
        super().__init__()
        self.users: dict[str, Mapping[str, Any]] = {
            "Bearer joes-key": JOE,
            "Basic " + base64.b64encode(b"ann:pa:ss").decode(): ANN,
        }
        self.secret, self.lifetime_s = secret, lifetime_s

    def reply(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if (method, target) != ("GET", "/authenticate"):
            return 404, {}, b""
        claims = self.users.get(headers.get("authorization", ""))
        if claims is None:
            return 401, {"WWW-Authenticate": "Bearer"}, b""
        made = {**claims, "iat": int(time.time()), "exp": int(time.time() + self.lifetime_s)}
        token = jwt.encode(made, self.secret, algorithm="HS256")
        return 200, {"Authorization": f"Bearer {token}"}, b""
