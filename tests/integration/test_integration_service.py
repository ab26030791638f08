"""Who may what, who is who, and whether all is well."""

import pytest
import requests
from callers import Caller, Users
from deployed import Deployed


def test_it_is_alive_and_ready(deployment: Deployed, nobody: Caller) -> None:
    assert nobody.call("GET", "/test").json() == {"message": "Polytope server is alive"}
    alive = requests.get(f"{deployment.url}/healthz", timeout=60)
    assert alive.status_code == 200
    ready = requests.get(f"{deployment.url}/readyz", timeout=60)
    assert ready.status_code == 200, ready.text
    assert set(ready.json()) >= {"request_store", "queue", "staging", "caching"}
    assert set(ready.json().values()) == {"ok"}, "what is away is known here by name"


@pytest.mark.parametrize("path", ["/collections", "/requests", "/user", "/requests/x"])
def test_nobody_is_told_anything_without_a_login(nobody: Caller, path: str) -> None:
    response = nobody.call("GET", path)
    assert response.status_code == 401
    assert list(response.json()) == ["message"]
    assert response.headers["WWW-Authenticate"]


def test_a_login_that_is_not_known_is_refused(stranger: Caller) -> None:
    response = stranger.call("GET", "/user")
    assert response.status_code == 401
    assert "expired" not in response.json()["message"]


def test_a_user_knows_how_many_requests_there_are(user: Caller) -> None:
    response = user.call("GET", "/user")
    assert response.status_code == 200
    assert int(response.json()["live requests"]) >= 0
    assert all(isinstance(value, str) for value in response.json().values())


def test_users_see_the_collections_that_they_may_use(users: Users, deployment: Deployed) -> None:
    known = {each.name for each in deployment.collections}
    for caller in users.callers:
        names = caller.call("GET", "/collections").json()["message"]
        assert names == sorted(names)
        assert set(names) <= known, "the files are not those of this deployment"


def test_a_collection_of_others_is_forbidden(users: Users, deployment: Deployed) -> None:
    for caller in users.callers:
        for each in deployment.collections:
            if each.name not in users.usable(caller):
                response = caller.post(each.name, "x: 1")
                assert response.status_code == 403, response.text
                assert list(response.json()) == ["message"]
                return
    pytest.skip("every user here may use every collection")


def test_what_is_not_there_is_not_found(user: Caller) -> None:
    assert user.post("no-collection-of-that-name", "x: 1").status_code == 404
    assert user.poll("00000000-0000-4000-8000-000000000000").status_code == 404
    assert user.call("GET", "/no-such-page").status_code == 404


def test_every_answer_says_that_it_is_not_to_be_kept(user: Caller, nobody: Caller) -> None:
    for response in (user.call("GET", "/user"), nobody.call("GET", "/user")):
        assert response.headers["Cache-Control"] == "no-cache, no-store"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
