"""Any files as the configuration: taken or refused with a ConfigurationError, and no secret ever shown."""

import copy
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from damage import damaged
from effort import bounded, tries
from hypothesis import given, target
from hypothesis import strategies as st

from polytope_server.collection import collections_of
from polytope_server.config.changes import changes, taken_up, users
from polytope_server.config.loading import Loaded, load
from polytope_server.config.show import show
from polytope_server.errors import ConfigurationError

SECRET = "hunter2"
"""In every secret below, and nowhere else."""
ENVIRON = {"PW": "hunter2-from-the-environment", "HOME": "/home/op", "N": "5", "HALF": "\udcff"}
SECONDS = 8.0
MIB = 300
PROCESSES = ("frontend", "broker", "worker", "garbage-collector", "object-store")

VALID = """
logging: {mode: json, level: INFO, defaults: {app: x}}
frontend: {port: 5000, public_url: "https://polytope.example.org", long_poll: 5s, max_request: 1M,
           signing_key: hunter2-signing-key}
broker: {interval: 10, max_queued: 40, lease: 15s}
worker: {slots: 2, timeout: 1d, environment: {MARS_TOKEN: hunter2, SAFE: visible, OTHER: !file key}}
garbage-collector: {interval: 60, age: 24h, threshold: 10G}
request_store: {sqlite: {path: ~/requests.sqlite}}
queue: {rabbitmq: {host: mq, password: "${PW}", credentials: [{a: hunter2}]}}
staging: {polytope: {host: store, port: 8000, token: hunter2-token-of-the-store, root_dir: /data}}
caching: {redis: {url: "redis://:hunter2@cache:6379/0"}}
coercion: {number_allow_zero: true, allow_ranges: [step]}
authentication:
  r:
    authenticators:
      local: {type: plain, users: [{uid: u, password: hunter2, attributes: {ecmwf-apikey: hunter2}},
                                   {uid: v, password: !file key, attributes: {site: hunter2}}]}
      web: {type: keycloak, url: "https://c", client_id: i, keycloak_realm: r, client_secret: hunter2}
    authorizers: {local: {type: plain, roles: {staff: [u]}, user-attributes: {"u*": {key: hunter2}}}}
admin: {users: [op], roles: {}}
tracing: {endpoint: "http://127.0.0.1:4318", headers: {authorization: Bearer hunter2}}
federation: {peer: {secret: hunter2, allowed-realms: [p]}}
api-keys: {authenticator: {type: jwt, cert_url: "https://c", client_id: i}}
datasources:
  f: {type: fdb, fdb_config: {type: local}, match: {class: [od, rd], date: ">30d", step: 0/to/24},
      defaults: {expver: 1}}
  e: {type: echo, override_apikey: hunter2, wordpass: hunter2}
  m: {type: mars, mars: {apiKey: hunter2}, tmp_dir: /tmp}
  d: {type: dummy}
collections:
  c: {roles: {r: [default]}, limits: {total: 5, per-user: 1, per-role: {r: {staff: 3}}},
      datasources: [{name: f, match: {class: null}}, e]}
  d: {roles: default, datasources: [m, {name: d, match: {class: [], stream: oper}, patch: {domain: g}}]}
"""


class _Loader(yaml.SafeLoader):
    """Our tags as text that stands for them; dates and the like stay text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


_Loader.add_constructor("!file", lambda _loader, node: f"!file {node.value}")
TREE = yaml.load(VALID, Loader=_Loader)
SECTIONS = sorted(TREE)

LISTED_WORDS = """
    0 1 -1 5 05 0x1f 1e5 9999999999999999999 1.5 no yes true null ~ "" [] {} 10s 1d12h -5s 99999999d 1K
    10T 1e9G ${N} ${NO_SUCH} ${ $N $X $$ ~ ~/x ~nobody/x ${HALF}
    $argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2g $argon2 x !file
    !replace od 2t 0/to/24 0/to/24/by/0 >30d <1d >x 20240101 2024-02-30 -5/to/-1 http://x
    https://u:p@h/?q=1 http://[::1]:0 localhost 127.0.0.1 * default plain jwt fdb echo dummy raise mars
    f e sqlite local memory polytope s3 \ufeff \x7f \u00b2 a:b . .. a.b [0] << =
"""
WORDS = [*LISTED_WORDS.split(), "!file missing", "!file /", "!file \x00", "a b", "\x85", "\u2028"]
LISTED_KEYS = """
    type name roles match defaults patch datasources collections class date step feature Class levtyp
    users uid password attributes authenticators authorizers limits total per-user per-role port url
    host token path root_dir << ~ a.b x port_ prot interval metrics_port threads
"""
KEYS = LISTED_KEYS.split()
SCALARS = st.none() | st.booleans() | st.integers() | st.sampled_from(WORDS) | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of everything in a tree, the tree itself left out."""
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    for key, value in items:
        yield (*place, key)
        yield from places(value, (*place, key))


PLACES = sorted(places(TREE), key=str)


def at(tree: Any, place: Sequence[Any]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


@st.composite
def trees(draw: st.DrawFn, *, most: int = 3) -> dict[str, Any]:
    """The valid tree, some places of it otherwise. A secret goes, or stays with its own key."""
    tree = copy.deepcopy(TREE)
    for _ in range(draw(st.integers(0, most))):
        place = draw(st.sampled_from(PLACES))
        try:
            above, value = at(tree, place[:-1]), at(tree, place)
        except (LookupError, TypeError):
            continue  # gone with another
        key = place[-1]
        match draw(
            st.sampled_from(["other", "none", "gone", "among", "beside", "deeper", "renamed"])
        ):
            case "other":
                above[key] = draw(VALUES)
            case "none":
                above[key] = None
            case "gone":
                del above[key]
            case "among":
                above[key] = [value, draw(VALUES)]
            case "beside" if isinstance(value, dict):
                value[draw(st.sampled_from(KEYS))] = draw(VALUES)
            case "deeper":
                above[key] = {draw(st.sampled_from(KEYS)): value}
            case "renamed" if isinstance(above, dict) and SECRET not in json.dumps(value):
                above[draw(st.sampled_from([*KEYS, *SECTIONS]))] = above.pop(key)
    return tree


def text_of(tree: Any) -> str:
    """YAML that says the same, with our tags; JSON strings are YAML strings."""
    return re.sub(r'"!(file|replace) ?([^"]*)"', r'!\1 "\2"', json.dumps(tree))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("configuration")
    (directory / "key").write_text("hunter2-in-a-file\n")
    return directory


def loaded_from(directory: Path, *texts: bytes, strict: bool = False) -> Loaded | None:
    """Loaded, with collections; None if it is the operator's mistake."""
    files = []
    for number, text in enumerate(texts):
        file = directory / f"{number}.yaml"
        file.write_bytes(text)
        files.append(file)
    try:
        loaded = load(files, environ=ENVIRON, strict=strict, system_file=None)
        collections_of(loaded.config)
    except ConfigurationError as exc:
        says_what_is_wrong(str(exc))
        return None
    return loaded


def says_what_is_wrong(text: str) -> None:
    assert text
    assert SECRET not in text


def shows_no_secret(loaded: Loaded) -> None:
    lines = [*show(loaded), *loaded.warnings, *map(str, loaded.origins.items()), repr(loaded)]
    lines.append(repr(loaded.config))
    for line in lines:
        assert SECRET not in line, line
        line.encode()


def test_the_valid_one_is_valid(directory: Path) -> None:
    """Or nothing below would show anything."""
    for text in (VALID, text_of(TREE)):
        loaded = loaded_from(directory, text.encode())
        assert loaded is not None
        assert users(loaded.config) == 2
        assert set(collections_of(loaded.config)) == {"c", "d"}
        shows_no_secret(loaded)


PIECES = [b": ", b"\n  ", b"- ", b"&a ", b"*a", b"<<: ", b"!file ", b"!replace ", b"{", b"]", b"'",
          b'"', b"|", b"\t",
          b"---\n", b"%YAML 9.9\n", b"${", b"\xc2\x85", b"\\ud800", b"\xed\xa0\x80",
          b"!!python/name:os.system "]  # fmt: skip


@given(
    text=damaged(st.just(VALID.encode()), PIECES)
    | damaged(trees().map(lambda tree: yaml.safe_dump(tree).encode()), PIECES)
    | st.binary(max_size=60)
    | st.lists(st.sampled_from([*PIECES, b"a", b"1", b",", b"\n"])).map(b"".join),
    strict=st.booleans(),
)
@tries(60)
def test_a_file_is_taken_or_refused(directory: Path, text: bytes, strict: bool) -> None:
    """Damage may cut a secret in two, so that no more can be said about what is shown."""
    (directory / "0.yaml").write_bytes(text)
    with bounded(seconds=SECONDS, mib=MIB):
        try:
            loaded = load([directory / "0.yaml"], environ=ENVIRON, strict=strict, system_file=None)
            collections_of(loaded.config)
        except ConfigurationError as exc:
            str(exc).encode()
        else:
            "\n".join([*show(loaded), *loaded.warnings]).encode()


@given(tree=trees(), strict=st.booleans())
@tries(50)
def test_no_secret_is_shown_whatever_is_wrong_around_it(
    directory: Path, tree: dict[str, Any], strict: bool
) -> None:
    loaded = loaded_from(directory, text_of(tree).encode(), strict=strict)
    if loaded is not None:
        target(len(loaded.origins), label="values")
        shows_no_secret(loaded)


@given(tree=trees(most=2), names=st.sets(st.sampled_from(SECTIONS)))
@tries(12)
def test_several_files_are_as_one(directory: Path, tree: dict[str, Any], names: set[str]) -> None:
    whole = loaded_from(directory, text_of(tree).encode())
    if whole is None:
        return
    twice = loaded_from(directory, *[text_of(tree).encode()] * 2)
    assert twice is not None
    assert twice.config == whole.config
    parts = [
        {key: value for key, value in tree.items() if (key in names) is is_first}
        for is_first in (True, False)
    ]
    parted = loaded_from(directory, *[text_of(part).encode() for part in parts])
    assert parted is not None
    assert parted.config == whole.config


@given(before=trees(most=2), after=trees(most=2), process=st.sampled_from(PROCESSES))
@tries(24)
def test_what_a_reload_takes_up_is_all_that_may_change(
    directory: Path, before: dict[str, Any], after: dict[str, Any], process: str
) -> None:
    one = loaded_from(directory, text_of(before).encode())
    other = loaded_from(directory, text_of(after).encode())
    if one is None or other is None:
        return
    running, new = one.config, other.config
    found = changes(running, new, process=process)
    assert SECRET not in str(found.named()) + str(found.need_restart)
    json.dumps(found.named())
    now = taken_up(running, new)
    rest = changes(now, new, process=process)
    assert not rest
    assert rest.need_restart == found.need_restart
    assert not changes(running, running, process=process)
    assert collections_of(now).keys() == collections_of(new).keys()
    back = changes(new, running, process=process)
    assert back.collections_added == found.collections_removed
    assert back.users_added == found.users_removed


BOMBS = (
    "a: &a [x, x, x, x, x, x, x, x]\n",
    *(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
)


@given(
    head=st.sampled_from(["", "frontend: ", "datasources: {x: {type: fdb, match: {class: ", "".join(BOMBS)]),
    piece=st.sampled_from(["[", "{a: ", "- ", "a: b\n", "- a\n", "? ", "\t", "${N}", "$", "#\n",
                           "---\n{}\n", "!a ", "&a ", "x: &y {<<: *y}\n", "'", '"\\', "\U0001f300", "a" * 50,
                           "<<: {a: b}\n"]),
    count=st.integers(1, 60_000),
)  # fmt: skip
@tries(15)
def test_a_long_file_is_no_trouble(directory: Path, head: str, piece: str, count: int) -> None:
    text = (head + piece * count)[:200_000]
    with bounded(seconds=SECONDS, mib=MIB):
        loaded_from(directory, text.encode())
