"""The ``ldap`` authorizer on a real slapd: the contract, any names, TLS, a directory that is away."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from services.base import free_port
from services.certificates import Certificates
from services.fixtures import started
from services.slapd import GROUPS, PEOPLE, READER, READER_PASSWORD, SUFFIX, Slapd

from polytope_server.authorization import Authorizer, Grant
from polytope_server.authorization.distinguished_names import own_common_name, parsed
from polytope_server.authorization.ldap import LdapAuthorizer
from polytope_server.config.ldap import LdapAuthorizerSection
from polytope_server.errors import BackendUnavailable, ConfigurationError
from polytope_server.testing.authorization import AuthorizerContract, Known
from polytope_server.user import User


def authorizer_of(address: str, **options: Any) -> LdapAuthorizer:
    defaults = {
        "type": "ldap",
        "url": address,
        "search_base": SUFFIX,
        "bind_dn": READER,
        "ldap_password": READER_PASSWORD,
        "timeout": 2,
    }
    given = {key.replace("username_attr", "username-attr"): value for key, value in options.items()}
    whole = {key: value for key, value in (defaults | given).items() if value is not None}
    return LdapAuthorizer(LdapAuthorizerSection.read(whole, where="here"))


def user(name: str, **attributes: str) -> User:
    return User(username=name, realm="example", attributes=MappingProxyType(attributes))


def roles(authorizer: Authorizer, name: str, **attributes: str) -> set[str]:
    return set(authorizer.grant(user(name, **attributes)).roles)


ODD = {
    "with space": r"with space",
    "comma, name": r"comma\, name",
    "plus+equals=": r"plus\+equals\=",
    'quote"back\\slash': r"quote\"back\\slash",
    "st*r": "st*r",
    "star*)(cn=*": r"star*)(cn\=*",
    "Ünal 东京": "Ünal 东京",
    "#hash": r"\#hash",
}
"""Names, and how they are written in a distinguished name."""


@pytest.fixture(scope="module")
def directory(slapd: Slapd) -> Slapd:
    """People and groups; the server's own ``memberOf``, in its spelling."""
    alice, bob = slapd.add_person("alice"), slapd.add_person("bob")
    slapd.add_person("carol")
    odd = [slapd.add_person(name, rdn=written) for name, written in ODD.items()]
    slapd.add_group("data-access", [alice, bob])
    slapd.add_group("polytope-operators", [alice])
    slapd.add_group("Research, Physics = A+B", [alice], rdn=r"Research\, Physics \= A\+B")
    for number, (name, dn) in enumerate(zip(ODD, odd, strict=True)):
        assert name
        slapd.add_group(f"odd-{number}", [dn])
    slapd.add(
        f"CN=nested,{GROUPS}",
        {"objectClass": ["groupOfNames"], "cn": ["nested"], "member": [f"CN=data-access,{GROUPS}"]},
    )
    for unit in ("North", "South"):
        slapd.add(f"OU={unit},{PEOPLE}", {"objectClass": ["organizationalUnit"], "ou": [unit]})
        dn = f"CN=twin,OU={unit},{PEOPLE}"
        slapd.add(dn, {"objectClass": ["inetOrgPerson"], "cn": ["twin"], "sn": ["twin"]})
        slapd.add_group(f"twins-{unit}", [dn])
    for unit in ("North", "South", "People"):
        place = PEOPLE if unit == "People" else f"OU={unit},{PEOPLE}"
        slapd.add(
            f"CN=triplet,{place}",
            {"objectClass": ["inetOrgPerson"], "cn": ["triplet"], "sn": ["triplet"]},
        )
    return slapd


class TestLdap(AuthorizerContract):
    @pytest.fixture
    def authorizer(self, directory: Slapd) -> Authorizer:
        return authorizer_of(directory.url)

    @pytest.fixture
    def known(self) -> Known:
        return {
            user("alice"): Grant(
                roles={"data-access", "polytope-operators", "Research, Physics = A+B"}
            ),
            user("bob"): Grant(roles={"data-access"}),
        }


def test_somebody_without_groups_has_no_roles(directory: Slapd) -> None:
    assert roles(authorizer_of(directory.url), "carol") == set()


@pytest.mark.parametrize(("number", "name"), list(enumerate(ODD)), ids=range(len(ODD)))
def test_a_name_of_any_characters_finds_its_own_entry(
    directory: Slapd, number: int, name: str
) -> None:
    assert roles(authorizer_of(directory.url), name) == {f"odd-{number}"}


@pytest.mark.parametrize(
    "name",
    [
        "ali*",
        "alice)(objectClass=*",
        "alice))(|(cn=*",
        "*)(memberOf=*",
        "alice\x00",
        "alice\x00)(cn=*",
        "\\61lice",
        "\\2a",
        " alice",
        "alice ",
        "ALICE",
        "alice\n",
        "alice,OU=People",
        "(&)",
        "\udcff",
        " ",
        "é" * 600,
        "x" * 100_000,
    ],
    ids=range(18),
)
def test_an_injection_finds_nobody(directory: Slapd, name: str) -> None:
    authorizer = authorizer_of(directory.url)
    assert roles(authorizer, name) == set()
    assert roles(authorizer, "bob") == {"data-access"}


@given(name=st.text(max_size=30))
def test_no_other_text_finds_anybody(directory: Slapd, name: str) -> None:
    known = {"alice", "bob", *ODD}
    assert name in known or roles(_shared(directory), name) == set()


_SHARED: dict[str, LdapAuthorizer] = {}


def _shared(directory: Slapd) -> LdapAuthorizer:
    return _SHARED.setdefault(directory.url, authorizer_of(directory.url))


def test_a_group_is_not_mistaken_for_a_user(directory: Slapd) -> None:
    assert roles(authorizer_of(directory.url), "data-access") == set()
    anything = authorizer_of(directory.url, user_filter="(objectClass=*)")
    assert roles(anything, "data-access") == {"nested"}


@pytest.mark.parametrize("name", ["twin", "triplet"])
def test_of_several_entries_nobody_gets_roles_and_that_is_logged(
    directory: Slapd, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    authorizer = authorizer_of(directory.url)
    assert roles(authorizer, name) == set()
    assert "several entries" in caplog.text
    assert roles(authorizer, "bob") == {"data-access"}
    narrow = authorizer_of(directory.url, search_base=f"OU=North,{PEOPLE}")
    assert roles(narrow, "twin") == {"twins-North"}


def test_the_filter_chooses_among_groups_in_any_case(directory: Slapd) -> None:
    for text in ("polytope", "CN=Polytope-", f"OPERATORS,{GROUPS}"):
        assert roles(authorizer_of(directory.url, filter=text), "alice") == {"polytope-operators"}
    assert roles(authorizer_of(directory.url, filter="elsewhere"), "alice") == set()


def test_another_attribute_of_the_user_may_be_looked_for(directory: Slapd) -> None:
    authorizer = authorizer_of(directory.url, username_attribute="account")
    assert roles(authorizer, "joe", account="bob") == {"data-access"}
    assert roles(authorizer, "bob") == set()
    assert roles(authorizer, "bob", account="") == set()
    assert roles(authorizer, "joe", account="*") == set()


def test_another_attribute_of_the_directory_may_be_searched(directory: Slapd) -> None:
    directory.add_person("dave", mail="dave@example.org", uid="d4ve")
    directory.add_group("daves", [f"CN=dave,{PEOPLE}"])
    assert roles(authorizer_of(directory.url, uid_attribute="UID"), "d4ve") == {"daves"}
    by_mail = authorizer_of(directory.url, uid_attribute="mail", username_attribute="ecmwf-email")
    assert roles(by_mail, "x", **{"ecmwf-email": "dave@example.org"}) == {"daves"}
    assert roles(by_mail, "x", **{"ecmwf-email": "DAVE@example.org"}) == set()


def test_a_role_that_is_taken_away_is_gone_at_the_next_question(directory: Slapd) -> None:
    authorizer = authorizer_of(directory.url)
    erin = directory.add_person("erin")
    frank = directory.add_person("frank")
    group = directory.add_group("comers-and-goers", [erin, frank])
    assert roles(authorizer, "erin") == {"comers-and-goers"}
    directory.modify(f"dn: {group}\nchangetype: modify\ndelete: member\nmember: {erin}\n")
    assert roles(authorizer, "erin") == set()
    directory.delete(erin)
    assert roles(authorizer, "erin") == set()


def test_many_threads_share_few_connections_and_get_their_own_answers(directory: Slapd) -> None:
    authorizer = authorizer_of(directory.url, pool_size=3, timeout=20)
    expected = {"bob": {"data-access"}, "carol": set(), "st*r": {"odd-4"}, "nobody": set()}
    wrong: list[Any] = []
    most = 0

    def work(name: str) -> None:
        nonlocal most
        for _ in range(15):
            found = roles(authorizer, name)
            if found != expected[name]:
                wrong.append((name, found))
            most = max(most, len(authorizer._directory._idle))

    threads = [threading.Thread(target=work, args=(name,)) for name in expected for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert 1 <= most <= 3


# --- Active Directory's spelling


@pytest.fixture(scope="module")
def as_written() -> Iterator[Slapd]:
    with started(Slapd, as_written=True) as slapd:
        yield slapd


def test_the_spelling_of_active_directory_is_read(
    as_written: Slapd, caplog: pytest.LogCaptureFixture
) -> None:
    groups = {
        "Data Access": f"CN=Data Access,{GROUPS}",
        "Smith, John": rf"CN=Smith\, John,OU=A\,B,{GROUPS}",
        "a=b=c": f"CN=a=b=c,{GROUPS}",
        "Müller": f"CN=Müller,{GROUPS}",
        "東": rf"cn=\E6\9D\B1,{GROUPS}",
        "both": f"OU=x+CN=both,{GROUPS}",
    }
    nobodys = ["OU=Unit,DC=example,DC=org", "nonsense", "CN=,DC=org", r"CN=\FF,DC=org", "CN=a,,"]
    as_written.add_person("alice", member_of=[*groups.values(), *nobodys])
    assert roles(authorizer_of(as_written.url), "alice") == set(groups)
    said = [
        vars(record)["group"] for record in caplog.records if "no proper name" in record.message
    ]
    assert sorted(said) == sorted(["nonsense", r"CN=\FF,DC=org", "CN=a,,"])


def test_a_user_of_hundreds_of_groups_has_them_all(as_written: Slapd) -> None:
    groups = [f"CN=group {number},{GROUPS}" for number in range(700)]
    as_written.add_person("joiner", member_of=groups)
    authorizer = authorizer_of(as_written.url, filter="group 1")
    assert len(roles(authorizer, "joiner")) == 111
    assert len(roles(authorizer_of(as_written.url), "joiner")) == 700


# --- distinguished names


@pytest.mark.parametrize(
    ("dn", "expected"),
    [
        ("", ()),
        ("CN=a", ((("cn", "a"),),)),
        ("cn = a , OU = b", ((("cn", "a"),), (("ou", "b"),))),
        (r"CN=a\, b\=c\+d\\,DC=x", ((("cn", r"a, b=c+d\ ".strip()),), (("dc", "x"),))),
        (r"CN=\ a\20 ", ((("cn", " a "),),)),
        ("1.2.840=x;CN=y", ((("1.2.840", "x"),), (("cn", "y"),))),
        ("CN=a+UID=b,DC=x", ((("cn", "a"), ("uid", "b")), (("dc", "x"),))),
        ("CN=#0401ff", ((("cn", "#0401ff"),),)),
        ("CN=", ((("cn", ""),),)),
    ],
)
def test_a_distinguished_name_is_read(dn: str, expected: Any) -> None:
    assert parsed(dn) == expected


@pytest.mark.parametrize(
    "dn", ["x", "=a", "CN", "CN=a,", "CN=a,,DC=b", "CN=a\\", 'CN="a"', "CN=a+", "C N=a", "CN=<a>"]
)
def test_what_is_no_distinguished_name_is_said_to_be_none(dn: str) -> None:
    with pytest.raises(ValueError, match="distinguished name"):
        parsed(dn)


def _written(value: str) -> str:
    """As a careful directory would: everything escaped that may be."""
    text = "".join(f"\\{c}" if c in ' ,+"\\<>;=#' else c for c in value)
    return text.replace("\x00", "\\00")


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=4))
def test_whatever_is_escaped_comes_back(values: list[str]) -> None:
    dn = ",".join(f"CN={_written(value)}" for value in values)
    assert [level[0][1] for level in parsed(dn)] == values
    assert own_common_name(dn) == values[0]


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_and_quickly(dn: str) -> None:
    with contextlib.suppress(ValueError):
        assert parsed(dn) or not dn.strip()


# --- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def with_tls(certificates: Certificates) -> Iterator[Slapd]:
    with started(Slapd, certificates=certificates) as slapd:
        slapd.add_group("data-access", [slapd.add_person("alice")])
        yield slapd


def test_ldaps_and_start_tls_are_used(with_tls: Slapd, certificates: Certificates) -> None:
    authority = {"ca_file": str(certificates.authority)}
    assert roles(authorizer_of(with_tls.tls_url, **authority), "alice") == {"data-access"}
    by_start = authorizer_of(with_tls.url, start_tls=True, **authority)
    assert roles(by_start, "alice") == {"data-access"}


@pytest.mark.parametrize("way", ["ldaps", "start_tls"])
def test_a_certificate_that_is_not_trusted_is_refused_unless_told_otherwise(
    with_tls: Slapd, certificates: Certificates, tmp_path: Path, way: str
) -> None:
    other = Certificates(tmp_path)
    url = with_tls.tls_url if way == "ldaps" else with_tls.url
    start = {"start_tls": True} if way == "start_tls" else {}
    for options in ({"ca_file": str(other.authority)}, {}):
        with pytest.raises(BackendUnavailable, match="certificate is not trusted"):
            authorizer_of(url, **start, **options).grant(user("alice"))
    careless = authorizer_of(url, tls_verify=False, **start)
    assert roles(careless, "alice") == {"data-access"}


def test_a_certificate_of_another_host_is_refused(tmp_path: Path) -> None:
    class Elsewhere(Certificates):
        def issued(self, host: str) -> Any:
            return super().issued("elsewhere.example.org")

    certificates = Elsewhere(tmp_path)
    with started(Slapd, certificates=certificates) as slapd:
        authorizer = authorizer_of(slapd.tls_url, ca_file=str(certificates.authority))
        with pytest.raises(BackendUnavailable, match=r"not trusted.*Hostname mismatch"):
            authorizer.grant(user("alice"))


def test_a_directory_without_tls_is_told_apart(directory: Slapd) -> None:
    with pytest.raises(BackendUnavailable, match="does not take start_tls"):
        authorizer_of(directory.url, start_tls=True).grant(user("alice"))
    with pytest.raises(BackendUnavailable):
        authorizer_of(directory.url.replace("ldap:", "ldaps:")).grant(user("alice"))


# --- away, and not letting us in


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ldap_password": "wr0ng-xyzzy"}, "that user or ldap_password is wrong"),
        ({"bind_dn": f"CN=nobody,{SUFFIX}"}, "that user or ldap_password is wrong"),
        ({"bind_dn": None, "ldap_user": "dataserver"}, "distinguished name"),
        ({"search_base": f"OU=Nowhere,{SUFFIX}"}, "search_base"),
        ({"search_base": "DC=elsewhere,DC=org"}, "search_base"),
        ({"search_base": "DC==,,"}, "search_base"),
        ({"bind_dn": None, "ldap_password": None}, "search_base"),
    ],
)
def test_what_is_wrong_with_the_server_account_is_said_without_the_password(
    directory: Slapd, options: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    authorizer = authorizer_of(directory.url, **options)
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match=said) as caught:
            authorizer.grant(user("alice"))
    everything = str([vars(record) for record in caplog.records]) + repr(caught.value)
    assert "xyzzy" not in everything
    assert READER_PASSWORD not in everything


def test_a_bind_user_may_be_named_by_ldap_user(directory: Slapd) -> None:
    old = authorizer_of(directory.url, bind_dn=None, ldap_user=READER)
    assert roles(old, "bob") == {"data-access"}


def test_a_wrong_password_is_not_tried_at_every_login(directory: Slapd) -> None:
    # which would lock the account
    authorizer = authorizer_of(directory.url, ldap_password="wr0ng")
    tried: list[object] = []
    connected = authorizer._directory._connected

    def counted() -> Any:
        tried.append(None)
        return connected()

    authorizer._directory._connected = counted  # type: ignore[method-assign]  # only counts
    for _ in range(20):
        with pytest.raises(BackendUnavailable, match="ldap_password is wrong"):
            authorizer.grant(user("alice"))
    assert len(tried) == 1


def until_granted(authorizer: Authorizer, name: str) -> set[str]:
    end = time.monotonic() + 15
    while True:
        try:
            return roles(authorizer, name)
        except BackendUnavailable:
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Slapd]:
    with started(Slapd, directory=tmp_path / "slapd") as slapd:
        slapd.add_group("data-access", [slapd.add_person("alice")])
        yield slapd


def test_a_restart_that_nobody_noticed_loses_no_question(own: Slapd) -> None:
    authorizer = authorizer_of(own.url)
    assert roles(authorizer, "alice") == {"data-access"}
    own.kill()
    own.start()
    assert roles(authorizer, "alice") == {"data-access"}


def test_a_killed_directory_is_away_and_found_again(
    own: Slapd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    authorizer = authorizer_of(own.url)
    assert roles(authorizer, "alice") == {"data-access"}
    own.kill()
    begin = time.monotonic()
    for _ in range(20):
        with pytest.raises(BackendUnavailable, match=r"ldap://127\.0\.0\.1"):
            authorizer.grant(user("alice"))
    assert time.monotonic() - begin < 2
    own.start()
    assert until_granted(authorizer, "alice") == {"data-access"}
    said = [r.message for r in caplog.records if r.name == "polytope_server.circuit_breaker"]
    assert said == [
        "A server is away; it is asked again from time to time",
        "A server is there again",
    ]


@pytest.mark.parametrize("way", ["ldap", "ldaps", "start_tls"])
@pytest.mark.parametrize("is_connected", [True, False])
def test_a_directory_that_hangs_is_not_waited_for_longer_than_configured(
    with_tls: Slapd, certificates: Certificates, way: str, is_connected: bool
) -> None:
    options: dict[str, Any] = {"timeout": 0.5}
    if way != "ldap":
        options["ca_file"] = str(certificates.authority)
    if way == "start_tls":
        options["start_tls"] = True
    authorizer = authorizer_of(with_tls.tls_url if way == "ldaps" else with_tls.url, **options)
    if is_connected:
        assert roles(authorizer, "alice") == {"data-access"}
    with_tls.pause()
    try:
        begin = time.monotonic()
        with pytest.raises(BackendUnavailable):
            authorizer.grant(user("alice"))
        waited = time.monotonic() - begin
        with pytest.raises(BackendUnavailable):  # at once
            authorizer.grant(user("alice"))
        assert time.monotonic() - begin - waited < 0.2
    finally:
        with_tls.resume()
    assert 0.4 < waited < 2
    assert until_granted(authorizer, "alice") == {"data-access"}


def test_waiting_for_a_free_connection_ends(with_tls: Slapd) -> None:
    authorizer = authorizer_of(with_tls.url, timeout=0.5, pool_size=1)
    assert roles(authorizer, "alice") == {"data-access"}
    with_tls.pause()
    longest: list[float] = []

    def ask() -> None:
        begin = time.monotonic()
        with pytest.raises(BackendUnavailable):
            authorizer.grant(user("alice"))
        longest.append(time.monotonic() - begin)

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    with_tls.resume()
    assert len(longest) == 10
    assert max(longest) < 2


def talking(answer: bytes) -> tuple[int, Callable[[], None]]:
    """Somebody on a port who says this to everybody."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1], listener.close


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x30\x00",
        b"\x30\x05\x02\x01\x01\x61\x00",
        b"\x30\x0c\x02\x01\x07\x61\x07\x0a\x01\x00\x04\x00\x04\x00",
        b"0\x84\xff\xff\xff\xff" + b"x" * 100,
        bytes(range(256)),
    ],
    ids=range(7),
)
def test_what_is_no_directory_is_away(answer: bytes) -> None:
    port, close = talking(answer)
    try:
        authorizer = authorizer_of(f"ldap://127.0.0.1:{port}", timeout=1)
        with pytest.raises(BackendUnavailable, match=f"127.0.0.1:{port}"):
            authorizer.grant(user("alice"))
    finally:
        close()


def ber(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return bytes([tag, len(content)]) + content


def message(request: bytes, operation: int, result: int) -> bytes:
    """An answer to a request, with a result and nothing else."""
    start = 2 if request[1] < 128 else 2 + request[1] - 128
    number = request[start : start + 2 + request[start + 1]]
    said = ber(operation, ber(10, bytes([result])), ber(4), ber(4))
    return ber(0x30, number, said)


@contextlib.contextmanager
def directory_that(*answers: Callable[[bytes], bytes], slowly: bool = False) -> Iterator[str]:
    """Its address. It says these one after the other, to the first who comes, to the next, and so on."""
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        while not ended.is_set():
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                for answer in answers:
                    if not (asked := connection.recv(1000)):
                        break
                    data = answer(asked)
                    for piece in (
                        (data[at : at + 1] for at in range(len(data))) if slowly else [data]
                    ):
                        connection.sendall(piece)
                        ended.wait(0.05 if slowly else 0)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        try:
            yield f"ldap://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()


BIND, SEARCH = 0x61, 0x65


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (3, "timeLimitExceeded"),
        (10, "refers to another directory"),
        (14, "saslBindInProgress"),
        (51, "busy"),
    ],
)
def test_a_search_that_was_not_done_is_not_somebody_without_roles(result: int, said: str) -> None:
    with (
        directory_that(
            lambda asked: message(asked, BIND, 0), lambda asked: message(asked, SEARCH, result)
        ) as url,
        pytest.raises(BackendUnavailable, match=said),
    ):
        authorizer_of(url).grant(user("alice"))


@pytest.mark.parametrize("result", [5, 10, 14, 49, 51, 52])
def test_nothing_is_asked_of_a_directory_that_did_not_let_us_in(result: int) -> None:
    with (
        directory_that(
            lambda asked: message(asked, BIND, result), lambda asked: message(asked, SEARCH, 0)
        ) as url,
        pytest.raises(BackendUnavailable, match=r"does not let|is busy|is unavailable"),
    ):
        authorizer_of(url).grant(user("alice"))


@pytest.mark.parametrize("comes", ["slowly", "for ever"])
def test_an_answer_that_does_not_end_is_given_up(comes: str) -> None:
    endless = {
        "slowly": lambda asked: message(asked, BIND, 0) * 1000,
        "for ever": lambda asked: b"0\x84\x7f\xff\xff\xff" + bytes(6 << 20),
    }[comes]
    with directory_that(endless, slowly=comes == "slowly") as url:
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match="in time" if comes == "slowly" else "longer"):
            authorizer_of(url, timeout=0.5 if comes == "slowly" else 20).grant(user("alice"))
        assert time.monotonic() - began < (2 if comes == "slowly" else 15)


# --- the configuration


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "directory.example.org"}, r"here\.url: must be an address such as ldaps://"),
        ({"url": "http://directory"}, r"here\.url"),
        ({"url": "ldap://joe:xyzzy@directory"}, r"here\.url"),
        ({"url": "ldap://directory/dc=org"}, r"here\.url"),
        ({"url": "ldap://directory:99999"}, r"here\.url"),
        ({"search_base": ""}, r"here\.search_base"),
        ({"search_base": "example.org"}, r"here\.search_base: .* distinguished name"),
        ({"bind_dn": "dataserver"}, r"here\.bind_dn: .* distinguished name"),
        ({"ldap_user": "joe"}, "one of bind_dn and ldap_user"),
        ({"ldap_password": None}, "both a user"),
        ({"ldap_password": ""}, "both a user"),
        ({"bind_dn": None}, "both a user"),
        ({"user_filter": "objectClass=person"}, r"here\.user_filter: .* parentheses"),
        ({"user_filter": "(a=b))(c=d)"}, r"here\.user_filter: .* parentheses"),
        ({"user_filter": "(a=b)(c=d)"}, r"here\.user_filter: .* parentheses"),
        ({"user_filter": "(&(nonsense))"}, "user_filter: must be a filter"),
        ({"uid_attribute": "cn)(x"}, r"here\.uid_attribute"),
        ({"timeout": 0}, r"here\.timeout"),
        ({"pool_size": 0}, r"here\.pool_size"),
        ({"url": "ldaps://d", "start_tls": True}, "ldaps:// is TLS already"),
        ({"ca_file": "/etc/ca.pem"}, "where there is a ca_file"),
        ({"url": "ldaps://d", "ca_file": "/nowhere/ca.pem"}, "ca_file: .* No such file"),
        ({"url": "ldaps://d", "ca_file": __file__}, "ca_file: must be a file of certificates"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_key(options: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        authorizer_of("ldap://127.0.0.1", **options)
    assert "xyzzy" not in str(caught.value)


def test_a_password_in_clear_over_the_network_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    authorizer_of(f"ldap://127.0.0.1:{free_port()}")
    authorizer_of("ldap://directory.example.org", start_tls=True)
    authorizer_of("ldaps://directory.example.org")
    assert caplog.records == []
    authorizer_of("ldap://directory.example.org")
    assert "unprotected" in caplog.text
