"""Signed links: good as they are until they expire, and never with a change."""

from urllib.parse import parse_qs, parse_qsl, urlencode

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from polytope_server.errors import ResultGone, ResultNotFound
from polytope_server.signatures import EXPIRES, SIGNATURE, SignedLinks, derived_key

LINKS = SignedLinks(b"a key for tests")
NOW = 1_800_000_000

names = st.text(min_size=1, max_size=10).filter(lambda name: name not in (EXPIRES, SIGNATURE))
extras = st.dictionaries(names, st.text(max_size=20), max_size=4)
texts = st.text(max_size=30)


def params(query: str) -> dict[str, str]:
    return dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True))


@given(texts, extras, st.integers(0, 1000))
def test_what_was_signed_is_good_until_it_expires(
    subject: str, extra: dict[str, str], left_s: int
) -> None:
    query = LINKS.query(subject, expires_at=NOW + left_s, extra=extra)
    assert LINKS.check(subject, params(query), now=NOW) == extra


@given(texts, extras, st.integers(1, 1000))
def test_what_has_expired_is_gone(subject: str, extra: dict[str, str], since_s: int) -> None:
    query = LINKS.query(subject, expires_at=NOW - since_s, extra=extra)
    with pytest.raises(ResultGone):
        LINKS.check(subject, params(query), now=NOW)


@given(texts, texts, extras)
def test_a_link_is_good_for_its_subject_only(
    subject: str, other: str, extra: dict[str, str]
) -> None:
    assume(subject != other)
    query = LINKS.query(subject, expires_at=NOW, extra=extra)
    with pytest.raises(ResultNotFound):
        LINKS.check(other, params(query), now=NOW)


@given(texts, extras, st.data())
def test_no_value_can_be_changed_added_or_left_out(
    subject: str, extra: dict[str, str], data: st.DataObject
) -> None:
    good = params(LINKS.query(subject, expires_at=NOW, extra=extra))
    name = data.draw(st.sampled_from(sorted(good)) | names)
    changed = dict(good)
    if data.draw(st.booleans()) and name in changed:
        del changed[name]
    else:
        changed[name] = data.draw(texts)
    assume(changed != good)
    with pytest.raises(ResultNotFound):
        LINKS.check(subject, changed, now=NOW)


@given(st.text(min_size=1, max_size=30), st.data())
def test_text_cannot_move_from_one_value_to_the_next(text: str, data: st.DataObject) -> None:
    cuts = st.integers(0, len(text))
    here, there = data.draw(cuts), data.draw(cuts)
    assume(here != there)
    good = params(LINKS.query("x", expires_at=NOW, extra={"p": text[:here], "q": text[here:]}))
    with pytest.raises(ResultNotFound):
        LINKS.check("x", {**good, "p": text[:there], "q": text[there:]}, now=NOW)


def test_another_key_signs_other_links() -> None:
    query = SignedLinks(b"another key").query("x", expires_at=NOW)
    with pytest.raises(ResultNotFound):
        LINKS.check("x", params(query), now=NOW)


@pytest.mark.parametrize("name", [EXPIRES, SIGNATURE])
def test_a_parameter_that_comes_twice_makes_a_bad_link(name: str) -> None:
    good = params(LINKS.query("x", expires_at=NOW))
    twice = {key: value if key != name else [value, value] for key, value in good.items()}
    with pytest.raises(ResultNotFound):
        LINKS.check("x", twice, now=NOW)


@pytest.mark.parametrize("given_", [{}, {SIGNATURE: ""}, {EXPIRES: "1"}, {SIGNATURE: "\udcff"}])
def test_what_is_no_link_at_all_is_not_found(given_: dict[str, str]) -> None:
    with pytest.raises(ResultNotFound):
        LINKS.check("x", given_, now=NOW)


def test_a_link_of_the_past_is_not_said_to_be_expired_unless_it_was_ours() -> None:
    forged = urlencode({EXPIRES: NOW - 10, SIGNATURE: "A" * 43})
    with pytest.raises(ResultNotFound):
        LINKS.check("x", params(forged), now=NOW)


def test_a_query_goes_into_a_url_as_it_is() -> None:
    query = LINKS.query("x", expires_at=NOW, extra={"name": "a b&c=d/ä.grib"})
    assert query.isascii()
    assert not set(query) & set(' "<>#')
    assert parse_qs(query)["name"] == ["a b&c=d/ä.grib"]


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        SignedLinks(b"")


def test_keys_for_different_purposes_differ() -> None:
    assert derived_key(b"secret", purpose="a") != derived_key(b"secret", purpose="b")
    assert b"secret" not in derived_key(b"secret", purpose="a")
