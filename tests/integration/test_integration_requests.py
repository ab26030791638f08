"""From the submission to the result, as a user has it."""

import hashlib
import re
import time
from urllib.parse import urlsplit

import pytest
import requests
from callers import LASTING, Place, Users, as_given, lasts
from deployed import Deployed

BYTES = 3_000_001
TEXT = "class: od\nstep: 0/to/6"


def anonymously(method: str, link: str, **headers: str) -> requests.Response:
    """As earthkit and other servers fetch a result: without a login."""
    return requests.request(method, link, headers=headers, auth=as_given, timeout=120)


def test_a_submission_is_accepted_and_says_where_to_ask(echo: Place, deployment: Deployed) -> None:
    response = echo.caller.post(echo.name, TEXT)
    assert response.status_code == 202
    assert response.json()["status"] == "queued"
    assert int(response.headers["Retry-After"]) >= 0
    base, _, request_id = response.headers["Location"].rpartition("/")
    assert base == f"{deployment.url}/api/v1/requests", "what clients are told is where they are"
    assert request_id


def test_polling_ends_in_the_result(echo: Place) -> None:
    request_id = echo.submit(TEXT)
    response = echo.caller.finished(request_id)
    assert response.status_code == 303, response.text
    said = response.json()
    assert said["location"] == response.headers["Location"]
    assert said["contentLength"] == len(TEXT)
    again = echo.caller.poll(request_id)
    assert again.status_code == 303, "an answer stays"
    assert anonymously("GET", again.headers["Location"]).text == TEXT


def test_a_request_may_be_an_object(echo: Place) -> None:
    request_id = echo.submit({"class": "od", "step": [0, 6]})
    data = anonymously("GET", echo.caller.link(request_id))
    assert data.status_code == 200
    assert "od" in data.text


def test_a_poll_is_held_until_something_happens(lasting: Place, deployment: Deployed) -> None:
    hold_s = deployment.config.frontend.long_poll
    if hold_s < 0.5:
        pytest.skip("frontend.long_poll is off here")
    request_id = lasting.submit_lasting()
    lasting.caller.until_status(request_id, "processing")
    begin = time.monotonic()
    response = lasting.caller.poll(request_id)
    assert response.status_code == 202
    assert time.monotonic() - begin > 0.8 * hold_s


def test_a_result_is_downloaded_whole_again_and_again(dummy: Place) -> None:
    link = dummy.caller.link(dummy.submit(str(BYTES)))
    for _ in range(2):
        response = anonymously("GET", link, **{"Accept-Encoding": "gzip"})
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "application/x-grib"
        assert response.headers["Content-Length"] == str(BYTES)
        assert "Content-Encoding" not in response.headers
        assert response.headers["Content-Disposition"].startswith("attachment")
        assert response.content == b"x" * BYTES


def test_a_result_without_bytes_is_a_result(dummy: Place) -> None:
    response = anonymously("GET", dummy.caller.link(dummy.submit("0")))
    assert response.status_code == 200
    assert response.content == b""


def test_the_size_is_known_before_the_download(dummy: Place, deployment: Deployed) -> None:
    link = dummy.caller.link(dummy.submit(str(BYTES)))
    response = anonymously("HEAD", link)
    if urlsplit(link).netloc != urlsplit(deployment.url).netloc and response.status_code == 403:
        pytest.skip("results are handed out by links of the storage that are good for GET alone")
    assert response.status_code == 200
    assert response.headers["Content-Length"] == str(BYTES)
    assert response.content == b""


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [("bytes=5-", 5, BYTES), ("bytes=0-0", 0, 1), ("bytes=-7", BYTES - 7, BYTES)],
)
def test_a_part_of_a_result(dummy: Place, wanted: str, start: int, end: int) -> None:
    link = dummy.caller.link(dummy.submit(str(BYTES)))
    response = anonymously("GET", link, Range=wanted)
    assert response.status_code == 206
    assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{BYTES}"
    assert len(response.content) == end - start


def test_a_part_behind_the_end_is_refused(dummy: Place) -> None:
    link = dummy.caller.link(dummy.submit("10"))
    assert anonymously("GET", link, Range="bytes=10-").status_code == 416


def test_a_link_that_was_tampered_with_gives_nothing(dummy: Place) -> None:
    link = dummy.caller.link(dummy.submit("10"))
    signature = re.search(r"(?i)signature=(.)", link)
    if signature is None:
        pytest.skip("results are handed out by links without a signature here")
    at = signature.start(1)
    other = "0" if link[at] != "0" else "1"
    response = anonymously("GET", f"{link[:at]}{other}{link[at + 1 :]}")
    assert response.status_code in (403, 404)
    assert b"x" * 10 not in response.content


def test_a_download_that_is_given_up_harms_nobody(dummy: Place) -> None:
    link = dummy.caller.link(dummy.submit(str(BYTES)))
    with requests.get(link, auth=as_given, stream=True, timeout=60) as response:
        next(response.iter_content(1000))
    assert len(anonymously("GET", link).content) == BYTES


def test_a_failure_says_its_reason(users: Users) -> None:
    place = users.place(
        "raise",
        fits=lambda each: each.options.get("mode", "error") == "error",
        what="a raise that only fails",
    )
    response = place.caller.finished(place.submit("x: 1"))
    assert response.status_code == 400
    (said,) = response.json().values()
    reason = place.collection.options.get("error_message")
    assert said.startswith("Request failed with error:\n")
    assert reason is None or reason in said
    place.caller.revoke_all()


def test_an_archive_request_takes_its_data_and_ends(echo: Place) -> None:
    data = b"GRIB" + bytes(100_000)
    request_id = echo.submit({"class": "rd"}, verb="archive", url="")
    path = f"/uploads/{request_id}"
    waiting = echo.caller.call("GET", path)
    assert (waiting.status_code, waiting.json()["status"]) == (202, "uploading")
    checksum = {"X-Checksum": hashlib.md5(data).hexdigest()}
    wrong = echo.caller.call("POST", path, data=data, headers={"X-Checksum": "0" * 32})
    assert wrong.status_code == 400
    for _ in range(2):  # a client repeats it if the answer was lost
        sent = echo.caller.call("POST", path, data=data, headers=checksum)
        assert sent.status_code == 202, sent.text
        assert sent.headers["Location"].endswith(path)
    response = echo.caller.finished(path)
    assert response.status_code == 200, response.text
    assert response.json()["status"] == "processed"


def test_a_waiting_or_running_request_is_revoked(lasting: Place) -> None:
    request_id = lasting.submit_lasting()
    response = lasting.caller.call("DELETE", f"/requests/{request_id}")
    assert response.status_code == 200
    assert "1" in response.json()["message"]
    assert lasting.caller.poll(request_id).status_code in (404, 410)
    assert lasting.caller.call("DELETE", f"/requests/{request_id}").status_code == 404


def test_a_revoked_result_is_gone(dummy: Place) -> None:
    request_id = dummy.submit("10")
    link = dummy.caller.link(request_id)
    assert anonymously("GET", link).status_code == 200
    assert dummy.caller.call("DELETE", f"/requests/{request_id}").status_code == 200
    assert dummy.caller.poll(request_id).status_code in (404, 410)
    dummy.caller.until(
        lambda: anonymously("GET", link).status_code in (403, 404, 410), what="the data are gone"
    )


def test_own_requests_are_listed(echo: Place) -> None:
    request_id = echo.submit(TEXT)
    echo.caller.link(request_id)
    for path in ("/requests", f"/requests/{echo.name}"):
        records = echo.caller.call("GET", path).json()["message"]
        (found,) = [record for record in records if record["id"] == request_id]
        assert found["status"] == "processed"
        assert found["verb"] == "retrieve"
        assert found["collection"] == echo.name
        assert found["user_request"] == TEXT
        assert all(record["status"] != "waiting" for record in records)
        assert all(record["user"]["attributes"] == {} for record in records)


def test_no_user_is_shown_what_another_one_does(echo: Place, users: Users) -> None:
    others = [each for each in users.callers if each.user != echo.caller.user]
    if not others:
        pytest.skip("there is no second user; name one by POLYTOPE_OTHER_USERNAME and _PASSWORD")
    request_id = echo.submit(TEXT)
    unknown = others[0].poll("0" * len(request_id))
    for method in ("GET", "DELETE"):
        response = others[0].call(method, f"/requests/{request_id}")
        assert response.status_code == unknown.status_code == 404
        assert response.text == unknown.text.replace("0" * len(request_id), request_id)
    listed = others[0].call("GET", "/requests").json()["message"]
    assert request_id not in [record["id"] for record in listed]
    assert echo.caller.finished(request_id).status_code == 303


def test_what_nobody_can_understand_is_refused(echo: Place) -> None:
    path = f"/requests/{echo.name}"
    for body in ({}, {"verb": "retrieve"}, {"verb": "paint", "request": TEXT}):
        response = echo.caller.call("POST", path, json=body)
        assert response.status_code == 400, body
        assert list(response.json()) == ["message"]
    assert echo.caller.call("POST", path, data=b"{", headers=JSON).status_code == 400
    text = echo.caller.call("POST", path, data=b"x", headers={"Content-Type": "text/plain"})
    assert text.status_code == 415


JSON = {"Content-Type": "application/json"}


def test_a_body_above_the_limit_is_refused(echo: Place, deployment: Deployed) -> None:
    limit = deployment.config.frontend.max_request
    if limit > 16 << 20:
        pytest.skip(f"frontend.max_request is {limit} bytes here, which is much to try out")
    response = echo.caller.call(
        "POST", f"/requests/{echo.name}", data=b" " * (limit + 1), headers=JSON
    )
    assert response.status_code == 413


def test_no_more_of_a_users_requests_go_at_once_than_the_limit(users: Users) -> None:
    place = users.place(
        "dummy",
        "raise",
        fits=lambda each: lasts(each) and each.limits.per_user == 1 and not each.limits.per_role,
        what=f"{LASTING}, with limits of one per user",
    )
    caller = place.caller

    first = place.submit_lasting()
    caller.until_status(first, "processing")
    second = place.submit_lasting()
    caller.until(
        lambda: "in line" in caller.poll(second).json()["message"], what=f"{second} is in the line"
    )
    assert caller.status(first) == "processing"
    assert caller.status(second) == "queued"
    assert caller.call("DELETE", f"/requests/{first}").status_code == 200
    caller.until_status(second, "processing")
    caller.revoke_all()
