"""The 45 conformance checks of the REST API, against the started server; each test names its check."""

import base64
import hashlib
import json
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from deployment import APIKEY, PEER_REALM, PEER_SECRET, REALM, USERS, Deployment, until

SECURITY = {
    "Cache-Control": "no-cache, no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-XSS-Protection": "1; mode=block",
}
ELSEWHERE = {42: "test_clients.py", 43: "test_clients.py"}
checked: set[int] = set()


def check(number: int) -> Callable[[Any], Any]:
    checked.add(number)
    return pytest.mark.conformance(number)


@pytest.fixture(autouse=True)
def every_answer_is_well_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks 40 and 41 on every answer of this suite."""
    send = requests.Session.send

    def checking(self: requests.Session, *args: Any, **kwargs: Any) -> requests.Response:
        response = send(self, *args, **kwargs)
        for name, value in SECURITY.items():
            assert response.headers.get(name) == value, (response.url, name)
        if response.status_code >= 400 and response.request.method != "HEAD":
            body = response.json()
            assert list(body) == ["message"], body
            assert isinstance(body["message"], str)
            assert body["message"] != "message"
            assert "Traceback" not in body["message"]
            if response.status_code == 401:
                assert "expired" not in body["message"]
                assert response.headers["WWW-Authenticate"]
        return response

    monkeypatch.setattr(requests.Session, "send", checking)


def post(server: Deployment, collection: str, body: Any, **options: Any) -> requests.Response:
    return server.call("POST", f"/requests/{collection}", json=body, **options)


def raw(
    server: Deployment,
    body: bytes,
    content_type: str | None = "application/json",
    user: str | None = "joe",
) -> requests.Response:
    headers = {"Content-Type": content_type} if content_type else {}
    return server.call("POST", "/requests/c1", data=body, headers=headers, user=user)


def basic(user: str, scheme: str = "Basic") -> str:
    return f"{scheme} " + base64.b64encode(f"{user}:{USERS[user]}".encode()).decode()


def with_header(server: Deployment, path: str, authorization: str) -> requests.Response:
    return requests.get(f"{server.api}{path}", headers={"Authorization": authorization}, timeout=60)


def archive(server: Deployment, data: bytes, *, collection: str = "c1") -> str:
    response = post(server, collection, {"verb": "archive", "request": {"class": "rd"}, "url": ""})
    assert response.status_code == 202
    request_id = response.headers["Location"].rpartition("/")[2]
    checksum = hashlib.md5(data).hexdigest()
    uploaded = server.call(
        "POST", f"/uploads/{request_id}", data=data, headers={"X-Checksum": checksum}
    )
    assert uploaded.status_code == 202, uploaded.text
    return request_id


@check(1)
def test_01_alive_without_login(server: Deployment) -> None:
    response = server.call("GET", "/test", user=None)
    assert response.status_code == 200
    assert response.json() == {"message": "Polytope server is alive"}
    assert server.call("HEAD", "/test", user=None).status_code == 200


@check(2)
@pytest.mark.parametrize(
    "path", ["/collections", "/requests", "/user", "/requests/x", "/uploads/x"]
)
def test_02_everything_else_needs_login(server: Deployment, path: str) -> None:
    response = server.call("GET", path, user=None)
    assert response.status_code == 401
    assert f'Basic realm="{REALM}"' in response.headers["WWW-Authenticate"]


@check(3)
@pytest.mark.parametrize("header", ["garbage", "", ",", "Basic", "Basic !!!", "EmailKey x"])
def test_03_unreadable_credentials_are_401(server: Deployment, header: str) -> None:
    assert with_header(server, "/user", header).status_code == 401


@check(4)
def test_04_a_wrong_password_is_401(server: Deployment) -> None:
    wrong = base64.b64encode(b"joe:wrong").decode()
    assert with_header(server, "/user", f"Basic {wrong}").status_code == 401


@check(5)
def test_05_any_good_credential_of_several_is_enough(server: Deployment) -> None:
    for header in (
        f"EmailKey bad:bad, {basic('joe')}",
        basic("joe", "basic"),
        basic("joe", "BASIC"),
    ):
        assert with_header(server, "/user", header).status_code == 200


@check(6)
def test_06_a_peer_speaks_for_its_users(server: Deployment) -> None:
    header = f"Federation {PEER_SECRET}:bob:{PEER_REALM}"
    body = {"verb": "retrieve", "request": "x"}
    accepted = requests.post(
        f"{server.api}/requests/c1", json=body, headers={"Authorization": header}, timeout=60
    )
    assert accepted.status_code == 202
    listed = with_header(server, "/requests/c1", header).json()["message"]
    assert [(each["user"]["username"], each["user"]["realm"]) for each in listed] == [
        ("bob", PEER_REALM)
    ]
    for other in (f"{PEER_SECRET}:joe:{REALM}", f"secret:bob:{PEER_REALM}", "secret:bob:realm"):
        assert with_header(server, "/user", f"Federation {other}").status_code == 401


@check(7)
def test_07_the_first_of_two_users_owns_the_request(server: Deployment) -> None:
    response = requests.post(
        f"{server.api}/requests/c1",
        json={"verb": "retrieve", "request": "x"},
        headers={"Authorization": f"{basic('ann')}, {basic('joe')}"},
        timeout=60,
    )
    request_id = response.headers["Location"].rpartition("/")[2]
    assert server.poll(request_id, user="joe").status_code == 404
    assert server.finished(request_id, user="ann").status_code == 303


@check(8)
def test_08_all_values_about_a_user_are_texts(server: Deployment) -> None:
    server.submit("x")
    body = server.call("GET", "/user").json()
    assert int(body["live requests"]) >= 1
    assert all(isinstance(value, str) for value in body.values())


@check(9)
def test_09_collections_are_those_one_may_use(server: Deployment) -> None:
    names = server.call("GET", "/collections").json()["message"]
    assert "c1" in names
    assert "secret" not in names
    assert "secret" in server.call("GET", "/collections", user="ann").json()["message"]


@check(10)
def test_10_a_submission_is_accepted(server: Deployment) -> None:
    response = post(server, "c1", {"verb": "retrieve", "request": "class: od\nstep: [0, 6]\n"})
    assert response.status_code == 202
    location = urlsplit(response.headers["Location"])
    assert (location.scheme, location.netloc) == ("http", f"127.0.0.1:{server.port}")
    assert location.path.startswith("/api/v1/requests/")
    assert not location.query
    assert int(response.headers["Retry-After"]) == 5
    body = response.json()
    assert body["status"] == "queued"
    assert isinstance(body["message"], str)


@check(11)
def test_11_text_and_object_are_the_same_request(server: Deployment) -> None:
    ids = [
        server.submit(request)
        for request in ("class: od\nstep: 0/6\n", {"class": "od", "step": [0, 6]})
    ]
    for request_id in ids:
        server.finished(request_id)
    records = {r["id"]: r for r in server.call("GET", "/requests").json()["message"]}
    coerced = [records[request_id]["coerced_request"] for request_id in ids]
    assert coerced[0] == coerced[1] == {"class": "od", "step": "0/6"}


@check(12)
def test_12_key_value_text_is_a_mapping(server: Deployment) -> None:
    request_id = server.submit("class = od, step = 0/6")
    server.finished(request_id)
    records = {r["id"]: r for r in server.call("GET", "/requests").json()["message"]}
    assert records[request_id]["coerced_request"] == {"class": "od", "step": "0/6"}


@check(13)
def test_13_an_unknown_or_forbidden_collection_leaves_no_record(server: Deployment) -> None:
    before = server.call("GET", "/user", user="eve").json()
    body = {"verb": "retrieve", "request": "x"}
    assert post(server, "nowhere", body, user="eve").status_code == 404
    assert post(server, "secret", body, user="eve").status_code == 403
    assert server.call("GET", "/user", user="eve").json() == before


@check(14)
@pytest.mark.parametrize(
    "body",
    [b"null", b"5", b'"verb"', b"[]", b"{", b"", b"\xff\xfe", b"[" * 100_000, b'{"verb": NaN}'],
)
def test_14_a_bad_body_is_400(server: Deployment, body: bytes) -> None:
    assert raw(server, body).status_code == 400


@check(15)
@pytest.mark.parametrize(
    "body",
    [
        {"request": "x"},
        {"verb": "retrieve"},
        {"verb": "delete", "request": "x"},
        {"verb": "RETRIEVE", "request": "x"},
        {"verb": [], "request": "x"},
        {"verb": "retrieve", "request": None},
        {"verb": "retrieve", "request": ""},
        {"verb": "retrieve", "request": {}},
        {"verb": "retrieve", "request": 5},
        {"verb": "retrieve", "request": []},
    ],
)
def test_15_a_body_without_verb_or_request_is_400(server: Deployment, body: Any) -> None:
    assert post(server, "c1", body).status_code == 400


@check(16)
def test_16_only_json_is_read(server: Deployment) -> None:
    body = json.dumps({"verb": "retrieve", "request": "x"}).encode()
    for content_type in ("application/x-www-form-urlencoded", "text/plain", None):
        assert raw(server, body, content_type).status_code == 415
    for content_type in ("application/json; charset=utf-8", "application/ld+json"):
        assert raw(server, body, content_type).status_code == 202


@check(17)
def test_17_login_comes_first(server: Deployment) -> None:
    assert raw(server, b"{", user=None).status_code == 401
    assert raw(server, b"{", "text/plain", user=None).status_code == 401


@check(18)
def test_18_an_unfinished_request_is_202(server: Deployment) -> None:
    request_id = server.submit("x: 1", collection="hanging")
    try:
        response = until(
            lambda: [r for r in [server.poll(request_id)] if r.json()["status"] == "processing"]
        )[0]
        assert response.status_code == 202
        assert response.headers["Location"] == f"{server.api}/requests/{request_id}"
        assert int(response.headers["Retry-After"]) == 5
        assert isinstance(response.json()["message"], str)
    finally:
        server.call("DELETE", f"/requests/{request_id}")


@check(18)
def test_18_so_is_one_whose_turn_has_not_come(server: Deployment) -> None:
    ids = [server.submit("x: 1", collection="limited", user="ann") for _ in range(2)]
    try:
        until(lambda: server.poll(ids[0], user="ann").json()["status"] == "processing")
        response = server.poll(ids[1], user="ann")
        assert response.status_code == 202
        assert response.json()["status"] == "queued"
        assert isinstance(response.json()["message"], str)
        assert response.headers["Location"] == f"{server.api}/requests/{ids[1]}"
        assert int(response.headers["Retry-After"]) == 5
    finally:
        for request_id in ids:
            server.call("DELETE", f"/requests/{request_id}", user="ann")


@check(19)
def test_19_a_result_is_303_again_and_again(server: Deployment) -> None:
    request_id = server.submit("hello")
    for response in (server.finished(request_id), server.poll(request_id)):
        assert response.status_code == 303
        body = response.json()
        assert body["location"] == response.headers["Location"]
        assert body["contentLength"] == 5
        assert body["contentType"] == "application/octet-stream"


@check(20)
def test_20_a_link_needs_no_login(server: Deployment) -> None:
    link = server.finished(server.submit("hello")).headers["Location"]
    for headers in ({}, {}, {"Authorization": "Basic useless"}):
        assert requests.get(link, headers=headers, timeout=60).content == b"hello"


@check(21)
def test_21_data_have_exact_headers(server: Deployment) -> None:
    request_id = server.submit("1000", collection="bytes")
    link = server.finished(request_id).headers["Location"]
    response = requests.get(link, headers={"Accept-Encoding": "gzip"}, timeout=60)
    assert response.headers["Content-Type"] == "application/x-grib"
    assert response.headers["Content-Length"] == "1000" == str(len(response.content))
    assert "Content-Encoding" not in response.headers
    disposition = response.headers["Content-Disposition"]
    assert disposition == f'attachment; filename="{request_id}.grib"'
    digest = base64.b64encode(hashlib.sha256(response.content).digest()).decode()
    assert response.headers["Repr-Digest"] == f"sha-256=:{digest}:"


@check(22)
def test_22_head_tells_the_true_length(server: Deployment) -> None:
    link = server.finished(server.submit("1000", collection="bytes")).headers["Location"]
    response, got = requests.head(link, timeout=60), requests.get(link, timeout=60)
    assert response.status_code == 200
    assert response.headers["Content-Length"] == "1000"
    assert response.headers["Content-Type"] == "application/x-grib"
    assert response.content == b""
    del response.headers["Date"], got.headers["Date"]
    assert response.headers == got.headers
    for name in ("ETag", "Repr-Digest", "Content-Disposition", "Accept-Ranges"):
        assert name in response.headers


@check(23)
def test_23_ranges(server: Deployment) -> None:
    link = server.finished(server.submit("hello world")).headers["Location"]
    whole = requests.get(link, timeout=60)
    assert whole.headers["Accept-Ranges"] == "bytes"
    etag = whole.headers["ETag"]

    def ranged(value: str, **headers: str) -> requests.Response:
        return requests.get(link, headers={"Range": value, **headers}, timeout=60)

    part = ranged("bytes=5-")
    assert (part.status_code, part.content) == (206, b" world")
    assert part.headers["Content-Range"] == "bytes 5-10/11"
    assert ranged("bytes=0-3").content == b"hell"
    assert ranged("bytes=-3").content == b"rld"
    beyond = ranged("bytes=11-")
    assert beyond.status_code == 416
    assert beyond.headers["Content-Range"] == "bytes */11"
    for malformed in ("bytes=x-", "bytes=5-1", "lines=1-2", "bytes=0-1,3-4"):
        assert ranged(malformed).status_code == 200
    assert ranged("bytes=5-", **{"If-Range": etag}).status_code == 206
    assert ranged("bytes=5-", **{"If-Range": '"other"'}).status_code == 200


@check(24)
def test_24_a_dropped_download_harms_nothing(server: Deployment) -> None:
    link = server.finished(server.submit("20000000", collection="bytes")).headers["Location"]
    for _ in range(3):
        with requests.get(link, stream=True, timeout=60) as response:
            next(response.iter_content(1000))
    assert len(requests.get(link, timeout=60).content) == 20_000_000


@check(25)
def test_25_a_tampered_link_gives_no_data(server: Deployment) -> None:
    mine = server.submit("hello")
    link = server.finished(mine).headers["Location"]
    other = server.submit("other")
    server.finished(other)
    for bad in (
        link[:-1] + ("A" if link[-1] != "A" else "B"),
        link.replace(mine, other),
        link.partition("?")[0],
        link.replace("expires=", "expires=9"),
        link + "&x=1",
    ):
        assert requests.get(bad, timeout=60).status_code == 404, bad
    owner = server.call("GET", f"/downloads/{mine}")
    assert owner.content == b"hello"
    assert server.call("GET", f"/downloads/default/{mine}").content == b"hello"
    assert server.call("GET", f"/downloads/{mine}", user="ann").status_code == 404


@check(26)
def test_26_a_failed_request_is_400_with_the_reason(server: Deployment) -> None:
    response = server.finished(server.submit("x: 1", collection="failing"))
    assert response.status_code == 400
    assert "the tape is broken" in response.json()["message"]


@check(27)
def test_27_anothers_request_looks_like_none(server: Deployment) -> None:
    mine = server.submit("hello")
    server.finished(mine)
    upload = post(server, "c1", {"verb": "archive", "request": {"class": "rd"}})
    upload_id = upload.headers["Location"].rpartition("/")[2]
    unknown = "00000000-0000-4000-8000-000000000000"
    data = {"data": b"x", "headers": {"X-Checksum": hashlib.md5(b"x").hexdigest()}}
    for method, path, request_id, options in (
        ("GET", "/requests/{}", mine, {}),
        ("DELETE", "/requests/{}", mine, {}),
        ("GET", "/uploads/{}", upload_id, {}),
        ("POST", "/uploads/{}", upload_id, data),
        ("GET", "/downloads/{}", mine, {}),
    ):
        one = server.call(method, path.format(request_id), user="ann", **options)
        two = server.call(method, path.format(unknown), user="ann", **options)
        assert one.status_code == two.status_code == 404, (method, path)
        assert one.text.replace(request_id, "ID") == two.text.replace(unknown, "ID")
    listed = server.call("GET", "/requests", user="ann").json()["message"]
    assert mine not in {record["id"] for record in listed}
    assert server.poll(mine).status_code == 303


@check(28)
def test_28_records_of_ones_own(server: Deployment) -> None:
    done = server.submit("hello")
    failed = server.submit("x: 1", collection="failing")
    server.finished(done)
    server.finished(failed)
    records = server.call("GET", "/requests").json()["message"]
    by_id = {record["id"]: record for record in records}
    assert {by_id[done]["status"], by_id[failed]["status"]} == {"processed", "failed"}
    assert "the tape is broken" in by_id[failed]["user_message"]
    for record in records:
        for key in ("id", "status", "verb", "url", "collection", "user_message", "user_request"):
            assert isinstance(record[key], str), key
        assert record["user"]["username"] == "joe"
        assert record["user"]["attributes"] == {}
        assert record["md5"] is None
        assert isinstance(record["timestamp"], float)
    assert "waiting" not in json.dumps(records)
    for response in (
        server.call("GET", "/requests"),
        server.call("GET", "/requests/c1"),
        server.call("GET", "/user"),
        server.finished(done),
        server.finished(failed),
    ):
        assert APIKEY not in response.text + str(response.headers)
    assert requests.get(by_id[done]["url"], timeout=60).content == b"hello"
    assert [r["timestamp"] for r in records] == sorted(r["timestamp"] for r in records)


@check(29)
def test_29_a_list_of_one_collection(server: Deployment) -> None:
    request_id = server.submit("5", collection="bytes", user="ann")
    listed = server.call("GET", "/requests/bytes", user="ann").json()["message"]
    assert request_id in {record["id"] for record in listed}
    assert {record["collection"] for record in listed} == {"bytes"}
    assert server.call("GET", "/requests/greedy", user="eve").json() == {"message": []}


@check(30)
def test_30_revoking_what_waits(server: Deployment) -> None:
    ids = [server.submit("x: 1", collection="limited", user="eve") for _ in range(2)]
    for request_id in ids:
        response = server.call("DELETE", f"/requests/{request_id}", user="eve")
        assert response.status_code == 200
        assert response.json() == {"message": "Successfully revoked 1 requests"}
        assert server.poll(request_id, user="eve").status_code == 404
        assert server.call("DELETE", f"/requests/{request_id}", user="eve").status_code == 404


@check(31)
def test_31_revoking_a_result_removes_the_data(server: Deployment) -> None:
    request_id = server.submit("hello")
    link = server.finished(request_id).headers["Location"]
    assert server.call("DELETE", f"/requests/{request_id}").status_code == 200
    assert requests.get(link, timeout=60).status_code == 410
    assert not list((server.directory / "staging").rglob(f"{request_id}*"))


@check(32)
@pytest.mark.parametrize("word", ["all", "ALL"])
def test_32_revoking_all_that_is_unfinished(server: Deployment, word: str) -> None:
    anns = server.submit("x: 1", collection="hanging", user="ann")
    server.call("DELETE", "/requests/all", user="eve")
    response = server.call("DELETE", f"/requests/{word}", user="eve")
    assert response.json() == {"message": "Successfully revoked 0 requests"}
    done = server.submit("x", user="eve")
    server.finished(done, user="eve")
    for _ in range(2):
        server.submit("x: 1", collection="limited", user="eve")
    response = server.call("DELETE", f"/requests/{word}", user="eve")
    assert response.json() == {"message": "Successfully revoked 2 requests"}
    assert server.poll(anns, user="ann").status_code == 202
    assert server.poll(done, user="eve").status_code == 303
    server.call("DELETE", f"/requests/{anns}", user="ann")
    assert server.call("DELETE", "/requests/c1").status_code == 400


@check(33)
@pytest.mark.parametrize("body", [{"url": ""}, {}, {"url": None}])
def test_33_an_archive_awaits_its_data(server: Deployment, body: dict[str, Any]) -> None:
    response = post(server, "c1", {"verb": "archive", "request": {"class": "rd"}, **body})
    assert response.status_code == 202
    assert response.json()["status"] == "uploading"
    assert response.headers["Location"].startswith(f"{server.api}/uploads/")
    request_id = response.headers["Location"].rpartition("/")[2]
    poll = server.call("GET", f"/uploads/{request_id}")
    assert (poll.status_code, poll.json()["status"]) == (202, "uploading")
    assert poll.headers["Location"] == response.headers["Location"]


@check(34)
@pytest.mark.parametrize(
    "content_type", ["application/x-grib", None, "application/x-www-form-urlencoded"]
)
@pytest.mark.parametrize("header", ["X-Checksum", "Content-MD5", "upper", "base64"])
def test_34_data_of_any_type_with_their_checksum(
    server: Deployment, content_type: str | None, header: str
) -> None:
    response = post(server, "c1", {"verb": "archive", "request": {"class": "rd"}})
    data = b"a=1&GRIB" * 1000
    digest = hashlib.md5(data)
    checksum = {
        "upper": {"X-Checksum": digest.hexdigest().upper()},
        "base64": {"Content-MD5": base64.b64encode(digest.digest()).decode()},
    }.get(header, {header: digest.hexdigest()})
    headers = {**checksum, **({"Content-Type": content_type} if content_type else {})}
    uploaded = server.call("POST", response.headers["Location"], data=data, headers=headers)
    assert uploaded.status_code == 202, uploaded.text
    assert uploaded.headers["Location"] == response.headers["Location"]
    assert int(uploaded.headers["Retry-After"]) == 5
    assert uploaded.json()["status"] in ("queued", "processing")


@check(35)
def test_35_wrong_uploads_are_refused_and_repeated_ones_are_not(server: Deployment) -> None:
    response = post(server, "c1", {"verb": "archive", "request": {"class": "rd"}})
    location = response.headers["Location"]
    good = {"X-Checksum": hashlib.md5(b"data").hexdigest()}
    for headers in ({}, {"X-Checksum": "0" * 32}, {"X-Checksum": "nonsense"}):
        refused = server.call("POST", location, data=b"data", headers=headers)
        assert refused.status_code == 400, headers
    assert server.call("POST", location, data=b"data", headers=good).status_code == 202
    assert server.call("POST", location, data=b"data", headers=good).status_code == 202
    until(lambda: server.call("GET", location).json()["status"] == "processed")
    again = server.call("POST", location, data=b"data", headers=good)
    assert again.status_code == 202
    assert again.headers["Location"] == location
    other = {"X-Checksum": hashlib.md5(b"other").hexdigest()}
    assert server.call("POST", location, data=b"other", headers=other).status_code == 409
    retrieve = server.submit("hello")
    refused = server.call("POST", f"/uploads/{retrieve}", data=b"data", headers=good)
    assert refused.status_code == 400
    unknown = server.call("POST", "/uploads/nobody", data=b"data", headers=good)
    assert unknown.status_code == 404


@check(36)
def test_36_an_archive_ends_with_200(server: Deployment) -> None:
    request_id = archive(server, b"data")
    location = f"{server.api}/uploads/{request_id}"

    def done() -> list[requests.Response]:
        response = server.call("GET", location)
        return [response] if response.status_code != 202 else []

    (response,) = until(done)
    assert response.status_code == 200
    assert response.json() == {"location": location, "message": "Success", "status": "processed"}
    failing = archive(server, b"data", collection="failing")

    def failed() -> bool:
        response = server.call("GET", f"/uploads/{failing}")
        return response.status_code == 400 and "the tape is broken" in response.text

    until(failed)


@check(37)
def test_37_no_keys_are_given_out(server: Deployment) -> None:
    assert server.call("POST", "/auth/keys", json={}).status_code == 501
    assert server.call("POST", "/auth/keys", json={}, user=None).status_code == 401


@check(38)
def test_38_slashes_too_many_do_not_matter(server: Deployment) -> None:
    assert requests.get(f"{server.url}//api/v1/test", timeout=60).status_code == 200
    body = {"verb": "retrieve", "request": "x"}
    doubled = server.call("POST", f"{server.url}//api/v1/requests/c1", json=body)
    assert doubled.status_code == 202
    assert server.call("GET", "/requests/").status_code == 200


@check(39)
@pytest.mark.parametrize("accept", ["*/*", "text/html", "application/xml"])
def test_39_unknown_paths_and_methods(server: Deployment, accept: str) -> None:
    headers = {"Accept": accept}
    unknown = server.call("GET", "/nowhere", headers=headers)
    assert unknown.status_code == 404
    wrong = server.call("PUT", "/test", headers=headers)
    assert wrong.status_code == 405
    assert {"GET", "HEAD"} <= {method.strip() for method in wrong.headers["Allow"].split(",")}
    for response in (unknown, wrong):
        assert response.headers["Content-Type"] == "application/json"


@check(40)
def test_40_every_error_has_the_one_shape(server: Deployment) -> None:
    """The fixture looks at every answer of this suite; here one that has to be seen to be believed."""
    response = post(server, "c1", {"verb": "message", "request": "message"})
    assert response.status_code == 400
    assert response.json()["message"] != "message"


@contextmanager
def spoilt(server: Deployment, request_id: str) -> Iterator[None]:
    """A record that cannot be read: a fault of ours, which nobody has thought of."""
    file = server.directory / "requests.sqlite"

    def put(text: str) -> str:
        with closing(sqlite3.connect(file, timeout=30)) as db, db:
            (before,) = db.execute(
                "SELECT user FROM requests WHERE id = ?", (request_id,)
            ).fetchone()
            db.execute("UPDATE requests SET user = ? WHERE id = ?", (text, request_id))
        return str(before)

    before = put('{"hunter2":')
    try:
        yield
    finally:
        put(before)


@check(40)
def test_40_a_fault_of_ours_is_a_500_without_its_story(server: Deployment) -> None:
    request_id = server.submit("hello", user="ann")
    server.finished(request_id, user="ann")
    with spoilt(server, request_id):
        answers = [server.poll(request_id, user="ann"), server.call("GET", "/requests", user="ann")]
    for response in answers:
        assert response.status_code == 500
        for told in ("hunter2", "JSON", "sqlite", ".py", "Expecting", "Error"):
            assert told not in response.text
    assert server.poll(request_id, user="ann").status_code == 303


@check(40)
@check(41)
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"this is no HTTP\r\n\r\n", 400),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431),
    ],
)
def test_40_41_what_the_application_never_sees_is_refused_alike(
    server: Deployment, request_: bytes, status: int
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request_)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    assert first.split()[1] == str(status)
    headers = dict(line.split(": ", 1) for line in lines)
    assert {name: headers[name] for name in SECURITY} == SECURITY
    assert headers["Content-Type"] == "application/json"
    answered = json.loads(body)
    assert list(answered) == ["message"]
    assert answered["message"].endswith(".")
    assert "xxx" not in answered["message"]


@check(41)
def test_41_security_headers_are_everywhere(server: Deployment) -> None:
    """The fixture looks at every answer of this suite; here one of each kind."""
    link = server.finished(server.submit("hello")).headers["Location"]
    for response in (
        server.call("GET", "/test", user=None),
        server.call("GET", "/nowhere"),
        server.poll(server.submit("x")),
        requests.get(link, timeout=60),
        requests.get(server.url + "/healthz", timeout=60),
    ):
        assert {name: response.headers[name] for name in SECURITY} == SECURITY


@check(44)
@pytest.mark.parametrize("header", ["Host", "X-Forwarded-Host"])
def test_44_a_forged_host_changes_nothing(server: Deployment, header: str) -> None:
    response = post(
        server,
        "c1",
        {"verb": "retrieve", "request": "x"},
        headers={header: "evil.example", "X-Forwarded-Proto": "https"},
    )
    assert response.headers["Location"].startswith(f"{server.api}/requests/")


@check(45)
def test_45_a_collection_called_all(server: Deployment) -> None:
    request_id = server.submit("hello", collection="all", user="ann")
    listed = server.call("GET", "/requests/all", user="ann").json()["message"]
    assert [record["id"] for record in listed] == [request_id]
    server.finished(request_id, user="ann")
    response = server.call("DELETE", "/requests/all", user="ann")
    assert response.status_code == 200
    assert "revoked" in response.json()["message"]


def test_every_check_is_here() -> None:
    assert checked | set(ELSEWHERE) == set(range(1, 46))
    for number, file in ELSEWHERE.items():
        assert f"@pytest.mark.conformance({number})" in Path(__file__).with_name(file).read_text()


# --- beside the list


def test_an_idempotency_key_gives_the_first_request_again(server: Deployment) -> None:
    headers = {"Idempotency-Key": "my key"}
    first = server.submit("hello", headers=headers)
    assert server.submit("hello", headers=headers) == first
    assert server.submit("hello", headers=headers, user="ann") != first
    long = {"Idempotency-Key": "x" * 300}
    refused = post(server, "c1", {"verb": "retrieve", "request": "x"}, headers=long)
    assert refused.status_code == 400


def test_too_much_is_413(server: Deployment) -> None:
    big = post(server, "c1", {"verb": "retrieve", "request": "x" * 300_000})
    assert big.status_code == 413
    response = post(server, "c1", {"verb": "archive", "request": {"class": "rd"}})
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        path = urlsplit(response.headers["Location"]).path
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {basic('joe')}\r\n"
            f"X-Checksum: {'0' * 32}\r\nContent-Length: {10**12}\r\n\r\n".encode()
        )
        assert b" 413 " in connection.recv(100)


def test_a_refusal_reaches_a_client_that_is_still_sending(server: Deployment) -> None:
    data = b"x" * 30_000_000
    for path, user, status in (
        ("/uploads/nobody", "joe", 404),
        ("/requests/c1", "joe", 413),
        ("/uploads/nobody", None, 401),
    ):
        headers = {"Content-Type": "application/json", "X-Checksum": "0" * 32}
        response = server.call("POST", path, user=user, data=data, headers=headers)
        assert response.status_code == status


def test_an_archive_from_a_url_is_refused(server: Deployment) -> None:
    body = {"verb": "archive", "request": {"class": "rd"}, "url": "http://169.254.169.254/"}
    response = post(server, "c1", body)
    assert response.status_code == 400
    assert "url" in response.json()["message"]


def test_a_request_that_no_datasource_takes_is_refused_at_once(server: Deployment) -> None:
    before = server.call("GET", "/user", user="eve").json()
    response = post(
        server, "c1", {"verb": "retrieve", "request": "date: 2024-02-30\nstep: -1\n"}, user="eve"
    )
    assert response.status_code == 400
    message = response.json()["message"]
    assert "date" in message
    assert "step" in message
    assert server.call("GET", "/user", user="eve").json() == before


def test_health_is_open_and_tells_names_and_states_only(server: Deployment) -> None:
    assert requests.get(f"{server.url}/healthz", timeout=60).json() == {"status": "alive"}
    ready = requests.get(f"{server.url}/readyz", timeout=60)
    assert ready.status_code == 200
    assert ready.json() == dict.fromkeys(("request_store", "queue", "staging", "caching"), "ok")


def test_a_held_poll_is_answered_as_soon_as_it_is_done(server: Deployment) -> None:
    server.result(server.submit("hello"))  # a slot's first request waits for its process to start
    request_id = server.submit("hello")
    assert server.poll(request_id).status_code == 303, "one poll was enough"


def test_many_held_polls_do_not_block_others(server: Deployment) -> None:
    request_id = server.submit("x: 1", collection="hanging")
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(server.poll(request_id).status_code))
        for _ in range(60)
    ]
    for thread in threads:
        thread.start()
    assert server.result(server.submit("5", collection="bytes")) == b"xxxxx"
    for thread in threads:
        thread.join(timeout=60)
    server.call("DELETE", f"/requests/{request_id}")
    assert statuses == [202] * 60
