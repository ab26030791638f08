"""Reading the Authorization header."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytope_server.authentication.header import (
    MAX_CREDENTIALS,
    MAX_HEADER_CHARACTERS,
    Credential,
    challenge,
    parse,
)
from polytope_server.errors import NotAuthenticated


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, []),
        ("", []),
        (" , ,,\t", []),
        ("Basic", []),
        ("Basic ", []),
        ("Basic am9lOnB3", [("Basic", "am9lOnB3")]),
        ("  Basic   am9lOnB3  ", [("Basic", "am9lOnB3")]),
        ("EmailKey joe@example.com:abc123", [("EmailKey", "joe@example.com:abc123")]),
        (
            "EmailKey joe@example.com:abc123, Basic am9lOnB3",
            [("EmailKey", "joe@example.com:abc123"), ("Basic", "am9lOnB3")],
        ),
        (",Bearer a,,Basic b,", [("Bearer", "a"), ("Basic", "b")]),
        ("Basic a, Basic a, Basic b", [("Basic", "a"), ("Basic", "b")]),
        ("Federation secret with blanks:joe:r", [("Federation", "secret with blanks:joe:r")]),
    ],
)
def test_a_header_is_read_as_clients_write_it(
    header: str | None, expected: list[tuple[str, str]]
) -> None:
    assert [(each.scheme, each.text) for each in parse(header)] == expected


def test_as_many_credentials_as_the_limit_are_read() -> None:
    header = ",".join(f"Basic {number}" for number in range(MAX_CREDENTIALS))
    assert len(parse(header)) == MAX_CREDENTIALS


@pytest.mark.parametrize(
    "header",
    [
        "Basic " + "a" * MAX_HEADER_CHARACTERS,
        ",".join(f"Basic {number}" for number in range(MAX_CREDENTIALS + 1)),
    ],
)
def test_a_header_without_measure_is_refused(header: str) -> None:
    with pytest.raises(NotAuthenticated, match="Authorization header"):
        parse(header)


@given(st.text())
def test_any_text_is_read_or_refused(header: str) -> None:
    try:
        found = parse(header)
    except NotAuthenticated:
        return
    assert len(found) <= MAX_CREDENTIALS
    assert all(each.scheme and each.text and "," not in each.text for each in found)


def test_a_credential_is_not_in_a_repr() -> None:
    assert "xyzzy" not in repr(Credential("Basic", "xyzzy"))


@given(st.text())
def test_a_challenge_can_always_be_a_header(realm: str) -> None:
    assert re.fullmatch(
        r'Basic realm="(?:[\x20-!#-\[\]-~]|\\["\\])*"', challenge("Basic", realm=realm)
    )


def test_a_challenge_names_the_realm() -> None:
    assert challenge("Basic", realm="example") == 'Basic realm="example"'
