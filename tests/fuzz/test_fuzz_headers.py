"""Any text as a Range or an Authorization header."""

import base64
import string
from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher
from damage import damaged
from effort import bounded, tries
from hypothesis import given
from hypothesis import strategies as st

from polytope_server.authentication.header import parse
from polytope_server.authentication.identity import Identity
from polytope_server.caching.memory import MemoryCache
from polytope_server.config.caching import MemoryCacheSection
from polytope_server.config.identity import RealmSection
from polytope_server.errors import NotAuthenticated
from polytope_server.http_ranges import Range, RangeNotSatisfiable, parse_range
from polytope_server.user import User

# --- Range

UNSATISFIABLE = "416"
LONGEST = 64
"""Digits of a number; a header with more is ignored."""

SIZES = st.integers(0, 30) | st.sampled_from([2**31, 2**63, 10**30])
NUMBERS = (
    st.integers(0, 40).map(str)
    | st.sampled_from(["", "00", "007", "2147483648", "9" * 30, "9" * 64, "9" * 65, "9" * 5000])
    | st.sampled_from(["-1", "+1", "1.0", "1e3", "0x1", "\u0661", "\u00b2", " 1", "1_0", "x"])
)
RANGES = st.builds(
    "{}{}{}{}{}{}{}".format,
    st.sampled_from(["bytes"] * 6 + ["BYTES", "Bytes", "byte", "items", "", " bytes", "bytes "]),
    st.sampled_from(["="] * 6 + ["= ", "=\t", " =", "==", ":", ""]),
    NUMBERS,
    st.sampled_from(["-"] * 6 + ["--", " - ", "", "\u2013"]),
    NUMBERS,
    st.sampled_from([""] * 6 + [" ", "\t", ",", ", 3-4", ",0-", "\x00", "\xa0", "\r\n", ";"]),
    st.sampled_from([""] * 3 + [" ", "\xa0", "\x85"]),
)  # fmt: skip
HEADERS = (
    RANGES | damaged(RANGES.map(str.encode)).map(lambda raw: raw.decode("latin-1")) | st.text()
)
TAGS = st.sampled_from(['"a"', '"b"', 'W/"a"', "a", "", ' "a"\t', "Sat, 01 Jun 2024 00:00:00 GMT"])


def expected(header: str, size: int) -> Range | str | None:
    """RFC 9110, read for one range of bytes; written without a look at how ours is done."""
    unit, equals, rest = header.strip(" \t").partition("=")
    if unit.lower() != "bytes" or not unit.isascii() or not equals:
        return None
    first, dash, last = rest.strip(" \t").partition("-")
    if not dash or not first + last:
        return None
    for number in (first, last):
        if any(c not in string.digits for c in number) or len(number) > LONGEST:
            return None
    if not first:
        wanted = range(max(0, size - int(last)), size)
        if int(last) == 0:
            return UNSATISFIABLE
        return Range(wanted.start, wanted.stop - wanted.start) if wanted else None
    end = int(last) if last else size
    if last and end < int(first):
        return None
    wanted = range(size)[int(first) : end + 1] if int(first) < size else range(0)
    return Range(wanted.start, wanted.stop - wanted.start) if wanted else UNSATISFIABLE


@given(header=HEADERS, size=SIZES)
@tries(800)
def test_a_range_means_what_the_standard_says(header: str, size: int) -> None:
    try:
        found: Range | str | None = parse_range(header, size)
    except RangeNotSatisfiable:
        found = UNSATISFIABLE
    assert found == expected(header, size)
    if isinstance(found, Range):
        assert 0 < found.length <= size
        assert 0 <= found.start <= size - found.length
        end = found.start + found.length - 1
        assert found.content_range(size) == f"bytes {found.start}-{end}/{size}"


@given(header=HEADERS, size=SIZES, if_range=TAGS | st.text(max_size=5), etag=TAGS)
@tries(200)
def test_a_condition_can_only_make_it_the_whole(
    header: str, size: int, if_range: str, etag: str
) -> None:
    def found(condition: str | None) -> Range | str | None:
        try:
            return parse_range(header, size, if_range=condition, etag=etag)
        except RangeNotSatisfiable:
            return UNSATISFIABLE

    assert found(if_range) == (found(None) if if_range.strip(" \t") == etag else None)


# --- Authorization

USERS = {
    "a": {"joe": "pa:ss, word", "\u00e4nn": "\u00fc\U0001f30d", "": "of nobody", "joe ": "x"},
    "b": {"joe": "another", "eve": "pa:ss, word", "hashed": "cheap"},
}
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def section(users: dict[str, str]) -> RealmSection:
    listed = [
        {"uid": uid, "password": CHEAP.hash(password) if uid == "hashed" else password}
        for uid, password in users.items()
        if uid
    ]
    return RealmSection.read(
        {"authenticators": {"local": {"type": "plain", "users": listed}}}, where="r"
    )


@pytest.fixture(scope="module")
def identity() -> Identity:
    cache = MemoryCache(MemoryCacheSection())
    return Identity.build({name: section(users) for name, users in USERS.items()}, cache)


def basic(uid: str, password: str) -> str:
    return base64.b64encode(f"{uid}:{password}".encode()).decode()


LOGINS = [
    (realm, uid, password)
    for realm, users in USERS.items()
    for uid, password in users.items()
    if uid
]
TOKENS = (
    st.sampled_from([basic(uid, password) for _, uid, password in LOGINS])
    | st.builds(
        basic, st.sampled_from(["joe", "eve", "joe\x00", "JOE", "", "x"]), st.text(max_size=8)
    )
    | st.sampled_from(["=", "====", "\u00e9", "am9l", "Og==", "am9lOg", "*", "am9l\x00", "a b"])
    | st.binary(max_size=12).map(lambda raw: base64.b64encode(raw).decode())
    | st.text(max_size=12)
)
PARTS = st.builds(
    "{}{}{}".format,
    st.sampled_from(["Basic"] * 5 + ["basic", "BASIC", "Bearer", "EmailKey", "Ba\u017fic", "", " Basic"]),
    st.sampled_from([" "] * 5 + ["  ", "\t", "", "=", "\xa0"]),
    TOKENS,
)  # fmt: skip
AUTHORIZATIONS = (
    st.lists(PARTS, max_size=10).map(", ".join)
    | PARTS
    | damaged(
        st.lists(PARTS, max_size=3).map(
            lambda parts: ",".join(parts).encode("utf-8", "surrogatepass")
        )
    ).map(lambda raw: raw.decode("latin-1"))
    | st.builds(
        lambda part, count: part * count,
        PARTS | st.text(min_size=1, max_size=3),
        st.integers(1, 3000),
    )
    | st.text()
)


def accepted(header: str) -> Iterator[tuple[str, str]]:
    """Realms and names of whom a header proves to be, as often as it does."""
    for part in header.split(","):
        scheme, *words = part.split(maxsplit=1) or [""]
        if scheme.lower() == "basic" and words:
            said = _decoded(words[0].strip(" \t"))
            for realm, uid, password in LOGINS:
                login = f"{uid}:{password}"
                if said is not None and said in (login.encode(), login.encode("latin-1", "ignore")):
                    yield realm, uid


def _decoded(token: str) -> bytes | None:
    """The bytes of base64, one letter after the other; None if it is none."""
    letters = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    bare = token.rstrip("=")
    if len(token) % 4 or len(token) - len(bare) > 2 or any(c not in letters for c in bare):
        return None
    number = 0
    for letter in bare:
        number = number * 64 + letters.index(letter)
    bits = 6 * len(bare)
    return (number >> bits % 8).to_bytes(bits // 8, "big")


@given(header=AUTHORIZATIONS)
@tries(500)
def test_nobody_gets_in_but_who_has_a_password(identity: Identity, header: str) -> None:
    known = set(accepted(header))
    answers = []
    for _ in range(2):  # the second one is remembered
        with bounded(seconds=3, mib=100):
            try:
                user = identity.identify(header, address="192.0.2.1")
            except NotAuthenticated as exc:
                answers.append(str(exc))
                continue
        assert (user.realm, user.username) in known
        assert user == User(username=user.username, realm=user.realm)
        answers.append(user.id)
    assert answers[0] == answers[1]


@given(header=AUTHORIZATIONS)
@tries(300)
def test_a_header_becomes_a_few_credentials(identity: Identity, header: str) -> None:
    try:
        found = parse(header)
        waits = identity.delay_s(header, "192.0.2.1")
    except NotAuthenticated:
        return
    assert 0 <= waits <= 10
    assert len(found) <= 8
    assert len(set(found)) == len(found)
    for credential in found:
        assert credential.scheme
        assert credential.text
        assert credential.scheme in header
        assert credential.text in header
        assert "," not in credential.text
        assert repr(credential) == f"Credential(scheme={credential.scheme!r})"


@given(
    login=st.sampled_from(LOGINS),
    before=st.lists(PARTS.filter(lambda part: "," not in part), max_size=3),
    scheme=st.sampled_from(["Basic", "basic", "BASIC"]),
    blanks=st.sampled_from([" ", "   ", " \t"]),
)
@tries(150)
def test_who_has_a_password_gets_in_whatever_stands_beside_it(
    identity: Identity, login: tuple[str, str, str], before: list[str], scheme: str, blanks: str
) -> None:
    realm, uid, password = login
    header = ",".join([*before, f"{scheme}{blanks}{basic(uid, password)} "])
    user = identity.identify(header, address="192.0.2.1")
    assert (user.realm, user.username) in {(realm, uid), *accepted(header)}
