"""What is hidden, what is left, and that a secret is never in the output, however it is nested."""

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretBytes, SecretStr

from polytope_server.observability.redaction import (
    HIDDEN,
    MAX_TEXT_CHARACTERS,
    looks_secret,
    text_without_secrets,
    without_secrets,
)

SECRET_NAMES = [
    "password",
    "ldap_password",
    "PASSWORD",
    "userPassword",
    "secret",
    "client_secret",
    "secretKey",
    "access_key",
    "accessKey",
    "key",
    "keys",
    "user.key",
    "ecmwf-apikey",
    "ecmwf-api-key",
    "apiKey",
    "api-keys",
    "token",
    "X-Auth-Token",
    "Authorization",
    "credentials",
    "cookie",
    "jwt",
]
OPEN_NAMES = ["user", "keyword", "monkey", "request_id", "collection", "ecmwf-email", "keyboard"]


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_names_of_secrets_are_known(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize("name", OPEN_NAMES)
def test_other_names_are_not_taken_for_secrets(name: str) -> None:
    assert not looks_secret(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("amqp://joe:xyzzy@mq:5672/x", "amqp://***@mq:5672/x"),
        ("mongodb://joe:xy/zzy@db/polytope", "mongodb://***@db/polytope"),
        ("mongodb://joe:x@y:z/zy@db/polytope", "mongodb://***@db/polytope"),
        ("two http://xyzzy@a/ and http://b:xyzzy@c.", "two http://***@a/ and http://***@c."),
        ("http://a/b?email=joe@example.org", "http://a/b?email=joe@example.org"),
        ("http://host:80/path", "http://host:80/path"),
        ("mail joe@example.org", "mail joe@example.org"),
        ("GET /d/1?token=xyzzy&x=1", "GET /d/1?token=***&x=1"),
        ("s3://b/o?X-Amz-Signature=xyzzy", "s3://b/o?X-Amz-Signature=***"),
        ("connect(user='joe', password='xy zzy')", "connect(user='joe', password=***)"),
        ("PlainUser(uid='joe', secret_key=\"xy'zzy\")", "PlainUser(uid='joe', secret_key=***)"),
        ("password='xyzzy", "password=***"),
        ("{'uid': 'joe', 'password': 'xyzzy'}", "{'uid': 'joe', 'password': ***}"),
        ('{\\"token\\": \\"xyzzy\\"}', '{\\"token\\": ***}'),
        ("password=b'xyzzy', x=1", "password=***, x=1"),
        (
            "{'keys': 1, 'tokens': ['a]', {'b': 'xyzzy'}], 'c': 1}",
            "{'keys': ***, 'tokens': ***, 'c': 1}",
        ),
        ("token=Token(text='xyzzy', n=2) x", "token=*** x"),
        ("secret=[xyzzy", "secret=***"),
        ('"token=xyzzy" and "other"', '"token=***" and "other"'),
        ("password= and more", "password= and more"),
        ("Authorization: Basic xyzzy, Bearer x", "Authorization: ***"),
        ("sent Basic eHl6enk6eHl6enk= to it", "sent Basic *** to it"),
        ("EmailKey joe@example.org:xyzzy", "EmailKey ***"),
        ("Federation xyzzy:joe:realm", "Federation ***"),
        ("Basic authentication is configured", "Basic authentication is configured"),
        ("users[0].password: this key is missing", "users[0].password: this key is missing"),
        ("the key 'class' is missing", "the key 'class' is missing"),
    ],
)
def test_secrets_in_texts_are_hidden_and_the_rest_is_left(text: str, expected: str) -> None:
    assert text_without_secrets(text) == expected
    assert text_without_secrets(expected) == expected


@pytest.mark.parametrize(
    "piece",
    [
        "://",
        "://a:",
        "password='",
        "password=",
        "password=[",
        "token=['\\\\'",
        "Basic ",
        "Authorization: ",
        'key"',
        "\\",
        "@",
    ],
)
def test_no_text_takes_long(piece: str) -> None:
    begin = time.thread_time()
    text_without_secrets(piece * (2_000_000 // len(piece)))
    assert time.thread_time() - begin < 2


def test_a_long_text_loses_its_middle_once_and_for_all() -> None:
    text = "begin " + "word " * MAX_TEXT_CHARACTERS + "password=xyzzy end"
    short = text_without_secrets(text)
    assert len(short) <= MAX_TEXT_CHARACTERS
    assert short.startswith("begin word")
    assert short.endswith("password=*** end")
    assert text_without_secrets(short) == short


SECRET = "xyzzy-42"
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
hidden = st.sampled_from([SecretStr(SECRET), SecretBytes(SECRET.encode())]) | st.builds(
    lambda name, value: {name: value},
    st.sampled_from(SECRET_NAMES),
    st.sampled_from([SECRET, [SECRET], {"a": SECRET}, SECRET.encode(), (1, {SECRET: SECRET})]),
)
url = st.builds(
    "{}://joe:{}@host/{}".format, st.sampled_from(["http", "a+b"]), st.just(SECRET), plain
)
nested = st.recursive(
    plain | hidden | url,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@given(nested)
def test_a_secret_is_never_in_the_output_at_whatever_depth(value: Any) -> None:
    assert SECRET not in json.dumps(without_secrets(value), allow_nan=False)


@given(nested)
def test_hiding_twice_changes_nothing(value: Any) -> None:
    once = without_secrets(value)
    assert without_secrets(once) == once


class Nasty:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_what_has_no_end_is_cut() -> None:
    endless: list[Any] = []
    endless.append(endless)
    wide = {"list": list(range(10_000)), "dict": dict.fromkeys(range(10_000))}
    assert len(json.dumps(without_secrets([endless, wide]))) < 10_000


def test_strange_values_have_a_text() -> None:
    shown = without_secrets([Nasty(), math.inf, 10**5000, b"x" * 9, {1, 2}, {Nasty(): 1}])
    assert json.loads(json.dumps(shown, allow_nan=False)) == [
        "[Nasty without text]",
        "inf",
        "[16610 bits]",
        "[9 bytes]",
        [1, 2],
        {"[Nasty without text]": 1},
    ]
    assert HIDDEN == "***"
