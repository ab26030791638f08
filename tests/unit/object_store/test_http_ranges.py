"""Single ranges of bytes: the RFC's examples, and what holds for every header and size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytope_server.http_ranges import Range, RangeNotSatisfiable, parse_range

sizes = st.integers(0, 2**63)
positions = st.integers(0, 2**70)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-499", Range(0, 500)),
        ("bytes=500-999", Range(500, 500)),
        ("bytes=-500", Range(9500, 500)),
        ("bytes=9500-", Range(9500, 500)),
        ("bytes=0-0", Range(0, 1)),
        ("bytes=-1", Range(9999, 1)),
        ("bytes=9999-99999", Range(9999, 1)),
        ("bytes=-20000", Range(0, 10000)),
        ("Bytes= 007-9 ", Range(7, 3)),
        ("bytes=0-0,-1", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=5", None),
        ("bytes=5-4", None),
        ("bytes=a-b", None),
        ("bytes=1-2-3", None),
        ("bytes=+1-2", None),
        ("bytes=1_0-20", None),
        ("bytes=١-٢", None),
        ("bytes 0-1", None),
        ("seconds=1-2", None),
        ("", None),
        ("bytes=" + "9" * 5000 + "-", None),
    ],
)
def test_ranges_of_ten_thousand_bytes(header: str | None, expected: Range | None) -> None:
    assert parse_range(header, 10_000) == expected


@pytest.mark.parametrize("header", ["bytes=10000-", "bytes=10000-10001", "bytes=-0"])
def test_ranges_without_a_byte_cannot_be_satisfied(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, 10_000)


def test_the_end_of_nothing_is_all_of_it() -> None:
    assert parse_range("bytes=-5", 0) is None


def test_a_content_range_counts_to_the_last_byte() -> None:
    assert Range(500, 500).content_range(1234) == "bytes 500-999/1234"


@pytest.mark.parametrize(
    ("if_range", "expected"),
    [
        (None, Range(1, 9)),
        ('"tag"', Range(1, 9)),
        (' "tag" ', Range(1, 9)),
        ('"other"', None),
        ('W/"tag"', None),
        ("Tue, 24 Nov 2026 03:49:02 GMT", None),
        ("", None),
    ],
)
def test_a_condition_that_does_not_hold_makes_it_all(
    if_range: str | None, expected: Range | None
) -> None:
    assert parse_range("bytes=1-", 10, if_range=if_range, etag='"tag"') == expected


def test_a_condition_makes_even_an_impossible_range_all_of_it() -> None:
    assert parse_range("bytes=99-", 10, if_range='"old"', etag='"new"') is None


@given(st.text(), sizes)
def test_any_text_is_a_range_inside_or_none_or_refused(header: str, size: int) -> None:
    _check(header, size)


@given(st.text(alphabet="bytes=0123456789-, ", max_size=30), sizes)
def test_nearly_any_range_is_one_inside_or_none_or_refused(header: str, size: int) -> None:
    _check("bytes=" + header, size)


def _check(header: str, size: int) -> None:
    try:
        found = parse_range(header, size)
    except RangeNotSatisfiable:
        return
    if found is not None:
        assert found.length > 0
        assert found.start >= 0
        assert found.start + found.length <= size


@given(sizes, positions, positions)
def test_a_range_holds_the_bytes_that_it_names(size: int, first: int, last: int) -> None:
    wanted = range(first, min(last, size - 1) + 1)
    header = f"bytes={first}-{last}"
    if last < first:
        assert parse_range(header, size) is None
    elif not wanted:
        with pytest.raises(RangeNotSatisfiable):
            parse_range(header, size)
    else:
        assert parse_range(header, size) == Range(wanted.start, wanted.stop - wanted.start)


@given(st.integers(1, 2**63), st.integers(1, 2**70))
def test_a_suffix_ends_at_the_end(size: int, length: int) -> None:
    found = parse_range(f"bytes=-{length}", size)
    assert found == Range(size - min(length, size), min(length, size))
