"""Users of a deployment, and what they may use of it."""

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pytest
import requests
from deployed import Collection, Deployed, User

from polytope_server.config.datasources import DummyConfig

LASTING: Final = "a dummy with bytes_per_second, or a raise that hangs"
"""What `lasts`, in words."""


class Caller:
    """A user of the deployment, or nobody. What is submitted through it is revoked when it is closed."""

    def __init__(self, url: str, user: User | None, *, patience_s: float) -> None:
        self.url, self.user, self.patience_s = url, user, patience_s
        self._submitted: list[str] = []

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        """One call below ``/api/v1`` (or of a whole URL), redirects not followed."""
        headers = dict(options.pop("headers", {}))
        if self.user is not None:
            headers.setdefault("Authorization", self.user.authorization)
        url = path if path.startswith("http") else f"{self.url}/api/v1{path}"
        return requests.request(
            method,
            url,
            headers=headers,
            auth=as_given,
            allow_redirects=False,
            timeout=self.patience_s,
            **options,
        )

    def post(
        self, collection: str, request: object, *, verb: str = "retrieve", **more: Any
    ) -> requests.Response:
        """A submission, remembered if it was accepted."""
        response = self.call(
            "POST", f"/requests/{collection}", json={"verb": verb, "request": request, **more}
        )
        if response.status_code == 202:
            self._submitted.append(response.headers["Location"].rpartition("/")[2])
        return response

    def submit(self, collection: str, request: object, **options: Any) -> str:
        """The id of a request that is accepted."""
        response = self.post(collection, request, **options)
        assert response.status_code == 202, f"submission: {response.status_code} {response.text}"
        return self._submitted[-1]

    def poll(self, request_id: str) -> requests.Response:
        return self.call("GET", f"/requests/{request_id}")

    def status(self, request_id: str) -> str:
        """As the list says it: at once, which a poll need not."""
        records = self.call("GET", "/requests").json()["message"]
        (found,) = [record["status"] for record in records if record["id"] == request_id]
        return str(found)

    def until_status(self, request_id: str, status: str) -> None:
        self.until(lambda: self.status(request_id) == status, what=f"{request_id} is {status}")

    def finished(self, path: str) -> requests.Response:
        """The first answer of a poll (an id, or a path) that is not 202."""
        path = path if path.startswith(("/", "http")) else f"/requests/{path}"
        found: list[requests.Response] = []

        def look() -> bool:
            response = self.call("GET", path)
            if response.status_code != 202:
                found.append(response)
            return bool(found)

        self.until(look, what=f"{path} is finished")
        return found[0]

    def link(self, request_id: str) -> str:
        """Where the result of a request is that succeeds."""
        response = self.finished(request_id)
        assert response.status_code == 303, f"{request_id}: {response.status_code} {response.text}"
        return response.headers["Location"]

    def until(self, condition: Callable[[], Any], *, what: str) -> None:
        end = time.monotonic() + self.patience_s
        while not condition():
            assert time.monotonic() < end, f"did not come true in {self.patience_s} s: {what}"
            time.sleep(0.05)

    def revoke_all(self) -> None:
        """All that was submitted here; it may be gone already."""
        for request_id in self._submitted:
            self.call("DELETE", f"/requests/{request_id}")
        self._submitted.clear()


def as_given(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """In place of what `requests` would find in a ``.netrc``."""
    return request


class Place(NamedTuple):
    """Who asks, and what is asked."""

    caller: Caller
    collection: Collection

    @property
    def name(self) -> str:
        return self.collection.name

    def submit(self, request: object, **options: Any) -> str:
        return self.caller.submit(self.name, request, **options)

    def submit_lasting(self) -> str:
        """The id of a request that takes a minute, if its datasource lasts."""
        if self.collection.type != "dummy":
            return self.submit("1")
        config = DummyConfig.read(self.collection.options, where=f"collections.{self.name}")
        return self.submit(str(60 * (config.bytes_per_second or 1)))


def lasts(collection: Collection) -> bool:
    options = collection.options
    return bool(options.get("bytes_per_second")) or options.get("mode") == "hang"


class Users:
    """Who of the users may use what, as the deployment says."""

    def __init__(self, deployment: Deployed, caller: Callable[[User | None], Caller]) -> None:
        self._deployment = deployment
        self.callers = [caller(user) for user in deployment.users]
        self._usable: dict[int, frozenset[str]] = {}

    def usable(self, caller: Caller) -> frozenset[str]:
        """Names of collections."""
        if id(caller) not in self._usable:
            response = caller.call("GET", "/collections")
            assert response.status_code == 200, (
                f"{caller.user}: {response.status_code} {response.text}"
            )
            self._usable[id(caller)] = frozenset(response.json()["message"])
        return self._usable[id(caller)]

    def place(
        self, *kinds: str, fits: Callable[[Collection], bool] = lambda _each: True, what: str = ""
    ) -> Place:
        """The first user who may use such a collection; skips the test if nobody may.

        Args:
            kinds: types of its first datasource.
            what: the same and `fits` in words.
        """
        for kind in kinds:
            for collection in self._deployment.of_type(kind):
                for caller in self.callers:
                    if fits(collection) and collection.name in self.usable(caller):
                        return Place(caller, collection)
        pytest.skip(
            f"no user here may use a collection whose first datasource is {what or ' or '.join(kinds)}"
        )
