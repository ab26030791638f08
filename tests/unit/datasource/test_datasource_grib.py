"""Files of GRIB messages, and files that are not."""

from pathlib import Path
from typing import Any

import eccodes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polytope_server.datasource.grib import mars_keys, messages
from polytope_server.demo.sample import Field, message
from polytope_server.errors import DatasourceFailed

LIMIT = 64 << 20


@pytest.fixture(scope="module")
def edition_2() -> bytes:
    return message(Field(param="t", date="20250101", level=500, step=6, number=2))


@pytest.fixture(scope="module")
def edition_1() -> bytes:
    return sample("regular_ll_pl_grib1")


def sample(name: str, *, points: int = 0, **keys: Any) -> bytes:
    handle = eccodes.codes_grib_new_from_samples(name)
    for key, value in keys.items():
        eccodes.codes_set(handle, key, value)
    if points:
        eccodes.codes_set_values(handle, np.random.default_rng(1).random(points))
    data = bytes(eccodes.codes_get_message(handle))
    eccodes.codes_release(handle)
    return data


def read(tmp_path: Path, data: bytes, *, limit: int = LIMIT) -> list[bytes]:
    path = tmp_path / "data.grib"
    path.write_bytes(data)
    return list(messages(path, max_message_bytes=limit))


def test_messages_of_both_editions_are_told_apart(
    tmp_path: Path, edition_1: bytes, edition_2: bytes
) -> None:
    wanted = [edition_1, edition_2, edition_1]
    assert read(tmp_path, b"".join(wanted)) == wanted


def test_large_messages_of_edition_1_are_measured_as_ecmwf_counts_them(
    tmp_path: Path, edition_2: bytes
) -> None:
    points = 3000 * 1500
    large = sample("regular_ll_pl_grib1", Ni=3000, Nj=1500, bitsPerValue=24, points=points)
    assert len(large) > 1 << 23
    assert read(tmp_path, large + edition_2) == [large, edition_2]


def test_the_keys_are_those_that_an_archive_files_it_under(edition_2: bytes) -> None:
    field = Field(param="t", date="20250101", level=500, step=6, number=2)
    assert mars_keys(edition_2, number=1) == {**field.keys(), "param": "130", "short_name": "t"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: b"", "the file is empty"),
        (lambda m: b"\0", "are not GRIB"),
        (lambda m: b" " + m, "are not GRIB"),
        (lambda m: b"BUFR" + m[4:], "are not GRIB"),
        (lambda m: m + b"\n", "follows message 1"),
        (lambda m: m + b"\0" * 100 + m, "follows message 1"),
        (lambda m: m + m[:-1], "Message 2 is cut off"),
        (lambda m: m[:-1], "Message 1 is cut off"),
        (lambda m: m[:12], "Message 1 is cut off"),
        (lambda m: m[:-4] + b"7778", "Message 1 is cut off"),
        (lambda m: m[:8] + bytes(8) + m[16:], "Message 1 is cut off"),
        (lambda m: m[:8] + b"\xff" * 8 + m[16:], "at most"),
        (lambda m: m[:7] + b"\3" + m[8:], "edition 3"),
        (lambda m: m[:16] + bytes(4) + m[20:], "Message 1 is cut off"),
    ],
)
def test_anything_but_whole_messages_is_refused(
    tmp_path: Path, edition_2: bytes, change: Any, text: str
) -> None:
    with pytest.raises(DatasourceFailed, match=text):
        read(tmp_path, change(edition_2))


def test_a_message_above_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, edition_2: bytes
) -> None:
    assert read(tmp_path, edition_2, limit=len(edition_2)) == [edition_2]
    with pytest.raises(DatasourceFailed, match=f"has {len(edition_2)} bytes"):
        read(tmp_path, edition_2, limit=len(edition_2) - 1)


def test_a_second_field_cannot_hide_in_a_message(tmp_path: Path, edition_2: bytes) -> None:
    # sections 4 to 7 once more, as edition 2 allows
    offset = 16
    while edition_2[offset + 4] != 4:
        offset += int.from_bytes(edition_2[offset : offset + 4])
    body = edition_2[16:-4] + edition_2[offset:-4]
    double = edition_2[:8] + (16 + len(body) + 4).to_bytes(8) + body + b"7777"
    with pytest.raises(DatasourceFailed, match="holds 2 fields"):
        read(tmp_path, double)


def test_what_only_looks_like_a_message_cannot_be_decoded() -> None:
    with pytest.raises(DatasourceFailed, match="Message 7 cannot be decoded"):
        mars_keys(b"GRIB" + bytes(40) + b"7777", number=7)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None
)
@given(
    changes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 5000),
)
def test_damage_is_noticed_or_harmless_but_never_anything_else(
    tmp_path: Path, edition_1: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(edition_1)
    for place, byte in changes:
        data[place % len(data)] = byte
    damaged = bytes(data[: len(data) - cut] if cut < len(data) else data)
    try:
        found = read(tmp_path, damaged)
    except DatasourceFailed:
        return
    assert b"".join(found) == damaged
