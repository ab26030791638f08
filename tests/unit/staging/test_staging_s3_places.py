"""Which server, which bucket, whose objects, and by which links: what is not of the contract."""

import datetime
import http.server
import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from s3_staging import new_bucket, opened, section
from services.radosgw import DOMAIN

from polytope_server.errors import BackendUnavailable, ConfigurationError, ObjectNotFound
from polytope_server.registry import open_backend
from polytope_server.request import COVERAGE_JSON, GRIB
from polytope_server.staging.s3 import S3Staging
from polytope_server.testing.staging import get, put

SHA256 = "0" * 64


@pytest.fixture(params=["radosgw", "seaweedfs"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def store(staging: S3Staging, name: str, data: bytes, media_type: str) -> None:
    with staging.create(name, media_type=media_type) as upload:
        upload.write(data)
        upload.commit()


def link(staging: S3Staging, name: str, *, expires_s: int = 60) -> str:
    found = staging.url(
        name, download_name="id.grib", media_type=GRIB, sha256=SHA256, expires_s=expires_s
    )
    assert found is not None
    return found


# --- a server that cannot be used as it is configured


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"access_key": "nobody"}, r"staging\.s3\.access_key"),
        ({"secret_key": "wrong-secret"}, r"staging\.s3\.secret_key"),
        ({"access_key": "", "secret_key": ""}, "permissions"),
        ({"host": "https://127.0.0.1"}, r"speaks no TLS; see staging\.s3\.host"),
    ],
    ids=["access", "secret", "anonymous", "tls"],
)
def test_what_the_operator_can_put_right_is_said_at_the_start(
    server: Any, options: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        opened(server, **options)
    assert "wrong-secret" not in str(caught.value)


def test_what_is_wrong_later_on_is_said_then(server: Any) -> None:
    staging = opened(server)
    put(staging, "a")
    credentials = staging._calls._client._request_signer._credentials
    credentials.secret_key = "wrong"
    calls: list[Callable[[], object]] = [
        staging.ping,
        lambda: staging.stat("a"),
        lambda: staging.read("a"),
        lambda: staging.list(""),
        lambda: put(staging, "a"),
        lambda: put(staging, "a", b"x" * (6 << 20)),
    ]
    for call in calls:
        with pytest.raises(BackendUnavailable, match=r"staging\.s3\.secret_key"):
            call()


def test_a_bucket_that_has_gone_is_no_missing_object(server: Any) -> None:
    staging = opened(server)
    staging._calls._client.delete_bucket(Bucket=staging._calls.bucket)
    calls: list[Callable[[], object]] = [
        staging.ping,
        lambda: staging.stat("a"),
        lambda: staging.read("a"),
        lambda: staging.list(""),
        lambda: staging.delete("a"),
        lambda: put(staging, "a"),
    ]
    for call in calls:
        with pytest.raises(BackendUnavailable, match="no such bucket"):
            call()


def test_clocks_that_differ_are_said_to_differ(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import botocore.auth

    now = botocore.auth.get_current_datetime
    staging = opened(server)
    monkeypatch.setattr(
        botocore.auth,
        "get_current_datetime",
        lambda *a, **k: now(*a, **k) + datetime.timedelta(hours=1),
    )
    for call in (staging.ping, lambda: put(staging, "a"), opened(server).ping):
        with pytest.raises(BackendUnavailable, match="clocks differ"):
            call()


def test_a_bucket_that_cannot_be_made_is_the_operators_mistake(radosgw: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"staging\.s3\.region"):
        opened(radosgw, region="nowhere-1")


def test_a_server_that_knows_itself_by_another_name_says_so(radosgw: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"staging\.s3\.host.* the name that the server itself"
    ):
        opened(radosgw, host="http://localhost")


def test_a_server_that_is_away_is_unavailable(radosgw: Any) -> None:
    staging = opened(radosgw, port=9)
    with pytest.raises(BackendUnavailable, match="does not answer"):
        staging.ping()


@pytest.mark.parametrize("body", [b"<html><p>Welcome!</html>", b"<html/>", b"hello"])
def test_another_server_on_that_port_is_no_s3_server(body: bytes) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever).start()
        options = {"host": "127.0.0.1", "port": other.server_address[1]}
        try:
            with pytest.raises(BackendUnavailable, match="is no S3 server"):
                S3Staging(section(options)).ping()
        finally:
            other.shutdown()


def test_nothing_of_the_environment_is_believed(
    radosgw: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\nregion = x\n")
    for name, value in {
        "AWS_PROFILE": "nobodys",
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_CA_BUNDLE": "/nowhere",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "AWS_REGION": "x",
        "AWS_MAX_ATTEMPTS": "50",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "NO_PROXY": "",
        "no_proxy": "",
        "AWS_ACCESS_KEY_ID": radosgw.options["access_key"],
        "AWS_SECRET_ACCESS_KEY": radosgw.options["secret_key"],
    }.items():
        monkeypatch.setenv(name, value)
    staging = opened(radosgw)
    put(staging, "a")
    assert get(staging, "a") == b"data"
    # the keys of the environment are good, and still not used
    with pytest.raises(ConfigurationError, match="permissions"):
        opened(radosgw, access_key="", secret_key="")
    assert os.environ["AWS_ACCESS_KEY_ID"]


def test_no_secret_is_in_a_representation_or_in_the_log(
    radosgw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    staging = opened(radosgw)
    put(staging, "a")
    secret = radosgw.options["secret_key"]
    assert secret not in caplog.text
    assert secret not in repr(staging._config)


# --- TLS


def tls(radosgw: Any, **more: Any) -> dict[str, Any]:
    return {"host": "https://127.0.0.1", "port": radosgw.port("https"), **more}


def test_tls_is_spoken_to_a_server_that_is_trusted(radosgw: Any) -> None:
    staging = opened(radosgw, **tls(radosgw, ca_file=str(radosgw.ca_file)))
    data = b"x" * (11 << 20)
    put(staging, "a", data)
    assert get(staging, "a") == data


def test_use_ssl_counts_for_hosts_without_a_scheme(radosgw: Any) -> None:
    options = tls(radosgw, ca_file=str(radosgw.ca_file), host="127.0.0.1", use_ssl=True)
    opened(radosgw, **options).ping()


@pytest.mark.parametrize(
    "more", [{}, {"ca_file": "its own", "host": "https://localhost"}], ids=["unknown", "other name"]
)
def test_a_server_that_is_not_trusted_is_not_used(radosgw: Any, more: dict[str, str]) -> None:
    if "ca_file" in more:
        more = {**more, "ca_file": str(radosgw.ca_file)}
    with pytest.raises(ConfigurationError, match=r"is not trusted: .*staging\.s3\.ca_file"):
        opened(radosgw, **{**tls(radosgw), **more})


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_a_certificate_can_be_left_unchecked(radosgw: Any) -> None:
    opened(radosgw, **tls(radosgw, verify=False)).ping()


@pytest.mark.parametrize("path", ["/nowhere/ca.pem", __file__])
def test_a_file_without_certificates_is_the_operators_mistake(radosgw: Any, path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"staging\.s3\.ca_file"):
        opened(radosgw, **tls(radosgw, ca_file=path))


def test_a_server_that_speaks_only_tls_is_hinted_at(radosgw: Any) -> None:
    with pytest.raises(BackendUnavailable, match="if it speaks TLS only"):
        opened(radosgw, port=radosgw.port("https")).ping()


# --- addresses


def test_buckets_can_be_hosts(radosgw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' domain is nobody's, so its names lead here."""
    look_up = socket.getaddrinfo

    def here(host: Any, *args: Any, **kwargs: Any) -> Any:
        return look_up("127.0.0.1" if str(host).endswith(DOMAIN) else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", here)
    bucket = new_bucket()
    staging = opened(
        radosgw, host=f"http://{DOMAIN}", bucket=bucket, addressing_style="virtual",
        use_presigned_url=True,
    )  # fmt: skip
    put(staging, "id-1.grib", b"x" * (6 << 20))
    assert [each.size_bytes for each in staging.list("")] == [6 << 20]
    address = link(staging, "id-1.grib")
    assert urlsplit(address).hostname == f"{bucket}.{DOMAIN}"
    assert requests.get(address, timeout=10).content == b"x" * (6 << 20)
    assert get(opened(radosgw, bucket=bucket), "id-1.grib") == b"x" * (6 << 20)


def test_the_old_name_still_leads_here(radosgw: Any, tmp_path: Any) -> None:
    from polytope_server.config.loading import load

    file = tmp_path / "c.yaml"
    options = {**radosgw.options, "bucket": new_bucket()}
    file.write_text(json.dumps({"staging": {"s3_boto3": options}}))
    choice = load([file], strict=True, environ={}, system_file=None).config.staging
    assert choice is not None
    staging = open_backend("staging", choice.name, choice.options)
    put(staging, "a")
    assert get(staging, "a") == b"data"


# --- a bucket that others use as well


def test_only_what_is_ours_is_seen(server: Any) -> None:
    bucket = new_bucket()
    staging = opened(server, bucket=bucket, prefix="ours/")
    other = opened(server, bucket=bucket, prefix="others/")
    client = staging._calls._client
    theirs = ["z", "ours", "ours/deeper/a", "ours/.hidden", "ours/a b", "oursa"]
    for key in theirs:
        client.put_object(Bucket=bucket, Key=key, Body=b"theirs")
    put(staging, "a-1.grib")
    put(other, "a-1.grib", b"others")
    put(staging, "z-1.grib")
    assert [each.name for each in staging.list("")] == ["a-1.grib", "z-1.grib"]
    assert [each.name for each in staging.list("", limit=1)] == ["a-1.grib"]
    assert [each.name for each in staging.list("", after="a-1.grib")] == ["z-1.grib"]
    staging.delete("a-1.grib")
    with pytest.raises(ObjectNotFound):
        staging.stat("a-1.grib")
    assert get(other, "a-1.grib") == b"others"
    left = {each["Key"] for each in client.list_objects_v2(Bucket=bucket)["Contents"]}
    assert left == {*theirs, "others/a-1.grib", "ours/z-1.grib"}


def test_without_a_prefix_what_lies_deeper_is_not_ours(server: Any) -> None:
    staging = opened(server)
    for number in range(30):
        key = f"b/{number}"
        staging._calls._client.put_object(Bucket=staging._calls.bucket, Key=key, Body=b"theirs")
    put(staging, "a")
    put(staging, "c")
    assert [each.name for each in staging.list("")] == ["a", "c"]
    assert [each.name for each in staging.list("", limit=2)] == ["a", "c"]
    assert [each.name for each in staging.list("", after="a", limit=1)] == ["c"]


# --- links


def test_links_are_the_frontends_business_unless_clients_can_reach_the_server(
    radosgw: Any,
) -> None:
    staging = opened(radosgw)
    assert staging.url("a", download_name="a", media_type=GRIB, sha256=SHA256, expires_s=9) is None


def test_a_signed_link_says_what_the_download_is(server: Any) -> None:
    staging = opened(server, use_presigned_url=True)
    store(staging, "id-1.grib", b"GRIB7777", "text/plain")
    answer = requests.get(link(staging, "id-1.grib"), timeout=10)
    assert answer.content == b"GRIB7777"
    assert answer.headers["Content-Type"] == GRIB
    assert answer.headers["Content-Disposition"] == 'attachment; filename="id.grib"'


def test_a_signed_link_is_for_one_object_and_as_it_is(server: Any) -> None:
    staging = opened(server, use_presigned_url=True)
    put(staging, "a")
    put(staging, "b")
    good = link(staging, "a")
    assert requests.get(good, timeout=10).status_code == 200
    for bad in (good.replace("/a?", "/b?"), good.replace("id.grib", "evil.exe"), good[:-1] + "z"):
        assert requests.get(bad, timeout=10).status_code == 403
    assert requests.put(good, data=b"x", timeout=10).status_code == 403


def test_no_log_has_the_signature_of_a_link(radosgw: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        staging = opened(radosgw, use_presigned_url=True)
        put(staging, "a")
        query = parse_qs(urlsplit(link(staging, "a")).query)
    assert "botocore" in caplog.text  # which writes much at this level
    assert query["X-Amz-Signature"][0] not in caplog.text


@pytest.mark.parametrize(
    ("options", "expires_s", "expected"),
    [
        ({}, 60, "60"),
        ({}, 10**6, "86400"),
        ({"presigned_url_expiry": 10**7}, 10**7, "604800"),
        ({"presigned_url_expiry": "1h"}, 10**7, "3600"),
        ({}, 0, "1"),
    ],
)
def test_a_signed_link_ends(
    radosgw: Any, options: dict[str, Any], expires_s: int, expected: str
) -> None:
    staging = opened(radosgw, use_presigned_url=True, **options)
    query = parse_qs(urlsplit(link(staging, "a", expires_s=expires_s)).query)
    assert query["X-Amz-Expires"] == [expected]


def test_a_signed_link_has_the_public_address(radosgw: Any) -> None:
    """As seen through a proxy that hands on the host it was asked for."""
    staging = opened(radosgw, use_presigned_url=True, url=DOMAIN, use_ssl=False, prefix="p/")
    put(staging, "id-1.grib", b"data")
    address = link(staging, "id-1.grib")
    path = f"/{staging._calls.bucket}/p/id-1.grib"
    assert address.startswith(f"http://{DOMAIN}{path}?")
    inside = address.replace(DOMAIN, f"127.0.0.1:{radosgw.port()}")
    answer = requests.get(inside, headers={"Host": DOMAIN}, timeout=10)
    assert (answer.status_code, answer.content) == (200, b"data")
    assert requests.get(inside, timeout=10).status_code == 403


@pytest.mark.parametrize(
    ("options", "base"),
    [
        ({"url": "https://data.example.org/"}, "https://data.example.org"),
        ({"url": "data.example.org", "use_ssl": True}, "https://data.example.org"),
        ({"url": "data.example.org:99/s3"}, "http://data.example.org:99/s3"),
        ({"url": "http://data.example.org", "use_ssl": True}, "http://data.example.org"),
    ],
)
def test_a_public_link_is_made_of_url_bucket_and_object(
    radosgw: Any, options: dict[str, Any], base: str
) -> None:
    staging = opened(radosgw, prefix="p/", **options)
    assert link(staging, "id-1.grib") == f"{base}/{staging._calls.bucket}/p/id-1.grib"


def test_everybody_may_read_what_the_policy_opens_and_list_nothing(server: Any) -> None:
    bucket, public = new_bucket(), f"http://127.0.0.1:{server.port()}"
    closed = opened(server, bucket=bucket, prefix="p/", url=public)
    store(closed, "id-7.covjson", b"{}", COVERAGE_JSON)
    assert requests.get(link(closed, "id-7.covjson"), timeout=10).status_code == 403
    staging = opened(server, bucket=bucket, prefix="p/", url=public, should_set_policy=True)
    client = staging._calls._client
    client.put_object(Bucket=bucket, Key="private", Body=b"theirs")
    for method, content in (("GET", b"{}"), ("HEAD", b"")):
        answer = requests.request(method, link(staging, "id-7.covjson"), timeout=10)
        assert (answer.status_code, answer.content) == (200, content)
        assert answer.headers["Content-Type"] == COVERAGE_JSON
        assert answer.headers["Content-Disposition"] == 'attachment; filename="id.covjson"'
        assert answer.headers["Content-Length"] == "2"
    for path in (f"/{bucket}", f"/{bucket}?list-type=2", f"/{bucket}?location"):
        assert requests.get(public + path, timeout=10).status_code == 403
    assert requests.get(f"{public}/{bucket}/private", timeout=10).status_code == 403
    assert requests.put(f"{public}/{bucket}/p/x", data=b"x", timeout=10).status_code == 403
    assert [each.name for each in staging.list("")] == ["id-7.covjson"]


def test_a_policy_that_is_there_is_added_to(radosgw: Any) -> None:
    bucket = new_bucket()
    client = opened(radosgw, bucket=bucket)._calls._client
    theirs = {
        "Sid": "Theirs",
        "Effect": "Allow",
        "Principal": {"AWS": ["*"]},
        "Action": ["s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{bucket}/theirs/*"],
    }
    before = {"Version": "2012-10-17", "Statement": [theirs]}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(before))
    for _ in range(2):
        opened(radosgw, bucket=bucket, prefix="p/", should_set_policy=True)
        statements = json.loads(client.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]
        assert [each["Sid"] for each in statements] == ["Theirs", "PolytopeResults"]
        assert statements[0] == theirs


def test_moto_shows_what_aws_would_be_asked(moto: Any) -> None:
    """Another region's bucket is made with its region, and objects are kept with their types."""
    staging = opened(moto, region="eu-central-1")
    client, bucket = staging._calls._client, staging._calls.bucket
    assert client.get_bucket_location(Bucket=bucket)["LocationConstraint"] == "eu-central-1"
    store(staging, "id-3.grib", b"x" * (6 << 20), GRIB)
    kept = client.head_object(Bucket=bucket, Key="id-3.grib")
    assert kept["ContentType"] == GRIB
    assert kept["ContentDisposition"] == 'attachment; filename="id.grib"'
    opened(moto, region="eu-central-1", bucket=bucket).ping()
