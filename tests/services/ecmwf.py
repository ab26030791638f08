"""The one page of the ECMWF web API that we ask: who-am-i, as it has always answered."""

import json
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs, urlsplit

from services.web import Reply, WebServer

USERS: Final = {
    "0123456789abcdef0123456789abcdef": ("joe", "joe@example.org"),
    "a+b/c&d=e%20#é": ("ann", "Ann@example.org"),
}
"""Key to uid and e-mail address; one key that must be escaped."""


class EcmwfApi(WebServer):
    """Knows the keys of `users`."""

    def __init__(self, users: Mapping[str, tuple[str, str]] = USERS) -> None:
        super().__init__()
        self.users = dict(users)

    def reply(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        parts = urlsplit(target)
        if method != "GET" or parts.path != "/v1/who-am-i":
            return 404, {}, b"not found"
        (token,) = parse_qs(parts.query).get("token", [""])
        if token not in self.users:
            return 403, {}, json.dumps({"error": "Access to the resource is forbidden"}).encode()
        uid, email = self.users[token]
        first, last = uid.title(), "Example"
        known = {
            "uid": uid,
            "email": email,
            "first_name": first,
            "last_name": last,
            "full_name": f"{first} {last}",
            "code": 200,
        }
        return 200, {"Content-Type": "application/json"}, json.dumps(known).encode()
