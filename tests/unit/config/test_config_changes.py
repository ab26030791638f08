"""What a new configuration changes for whom: names only, and every key either now or at a restart."""

from collections.abc import Callable
from typing import Any

import pytest

from polytope_server.config.changes import LIVE, Changes, changes, taken_up, users
from polytope_server.config.loading import Loaded
from polytope_server.config.model import Config

Read = Callable[..., Loaded]

BASE = """
authentication:
  r:
    authenticators:
      local: {type: plain, users: [{uid: joe, password: joes-secret}, {uid: ann, password: anns-secret}]}
    authorizers:
      local: {type: plain, roles: {staff: [joe]}}
datasources:
  a: {type: echo}
  b: {type: dummy, parents: []}
collections:
  one: {roles: {r: [default]}, datasources: [a]}
  two: {roles: {r: [default]}, datasources: [b], limits: {total: 3}}
request_store: {sqlite: {path: /r}}
queue: {sqlite: {path: /q}}
staging: {local: {root_dir: /s}}
"""


def differ(read: Read, more: str, *, process: str = "frontend") -> Changes:
    return changes(read(BASE).config, read(BASE, more).config, process=process)


@pytest.mark.parametrize("process", ["frontend", "broker", "worker", "garbage-collector"])
def test_the_same_changes_nothing(read: Read, process: str) -> None:
    assert differ(read, "{}", process=process) == Changes()
    assert not differ(read, "{}", process=process)


def test_the_order_of_those_who_are_asked_in_turn_counts(read: Read) -> None:
    one, two = "{type: plain, users: [{uid: joe, password: a}]}", "{type: plain, users: []}"
    first = f"authentication: {{r: {{authenticators: {{x: {one}, y: {two}}}}}, s: {{}}}}"
    for other in (
        f"authentication: {{r: {{authenticators: {{y: {two}, x: {one}}}}}, s: {{}}}}",
        f"authentication: {{s: {{}}, r: {{authenticators: {{x: {one}, y: {two}}}}}}}",
    ):
        found = changes(read(first).config, read(other).config, process="frontend")
        assert "r" in found.realms_changed


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            "collections: {three: {roles: staff, datasources: [a]}}",
            Changes(collections_added=("three",)),
        ),
        ("collections: {one: null}", Changes(collections_removed=("one",))),
        ("collections: {one: {roles: {r: [staff]}}}", Changes(collections_changed=("one",))),
        ("collections: {two: {limits: {total: 4}}}", Changes(collections_changed=("two",))),
        ("datasources: {b: {max_bytes: 5}}", Changes(collections_changed=("two",))),
        ("datasources: {unused: {type: echo}}", Changes()),
        (
            "authentication: {r: {authorizers: {local: {roles: {staff: [ann]}}}}}",
            Changes(realms_changed=("r",)),
        ),
        (
            "authentication: {r: {authenticators: {local: {users: !replace "
            "[{uid: joe, password: another}]}}}}",
            Changes(realms_changed=("r",), users_removed=1),
        ),
        (
            "authentication: {s: {authenticators: {x: {type: plain, users: [{uid: joe, password: p}]}}}}",
            Changes(realms_changed=("s",), users_added=1),
        ),
        ("authentication: null", Changes(realms_changed=("r",), users_removed=2)),
        (
            "authentication: !replace {s: {}, r: {}}",
            Changes(realms_changed=("r", "s"), users_removed=2),
        ),
        ("coercion: {allow_lists: [x]}", Changes(settings_changed=("coercion.allow_lists",))),
        ("logging: {level: debug}", Changes(settings_changed=("logging.level",))),
        ("logging: {mode: console}", Changes(need_restart=("logging.mode",))),
        ("frontend: {port: 1}", Changes(need_restart=("frontend.port",))),
        ("caching: {memory: {max_entries: 5}}", Changes(need_restart=("caching",))),
        ("request_store: {sqlite: {path: /x}}", Changes(need_restart=("request_store",))),
        ("queue: null", Changes(need_restart=("queue",))),
        ("reload: {interval: 5}", Changes(need_restart=("reload.interval",))),
        ("broker: {interval: 5}\nworker: {slots: 7}", Changes()),
        ("admin: {users: [root]}\nusage: {keep: 1d}", Changes()),
        ("version: '2'\nfrontend: {host: x}\ndeployment: {a: b}", Changes()),
    ],
)
def test_what_is_different_is_named(read: Read, more: str, expected: Changes) -> None:
    assert differ(read, more) == expected


def test_each_process_names_what_it_reads_itself(read: Read) -> None:
    more = """
        frontend: {threads: 3}
        broker: {interval: 5}
        worker: {slots: 7}
        garbage-collector: {age: 2h, health_port: 5}
        caching: {memory: {max_entries: 5}}
        queue: {sqlite: {path: /other}}
        staging: {local: {root_dir: /other}}
    """
    named = {
        process: list(differ(read, more, process=process).need_restart)
        for process in ("frontend", "broker", "worker", "garbage-collector", "object-store")
    }
    assert named == {
        "frontend": ["caching", "frontend.threads", "queue", "staging"],
        "broker": ["broker.interval", "queue"],
        "worker": ["queue", "staging", "worker.slots"],
        "garbage-collector": ["garbage-collector.health_port", "queue", "staging"],
        "object-store": ["staging"],
    }


def test_no_value_is_told(read: Read) -> None:
    found = differ(
        read,
        "authentication: {r: {authenticators: {local: {users: [{uid: eve, password: eves-secret}]}}}}\n"
        "frontend: {signing_key: a-key-of-some-length}",
    )
    for text in ("eve", "secret", "a-key"):
        assert text not in repr(found)


def test_what_may_change_is_taken_up_and_the_rest_is_kept(read: Read) -> None:
    running = read(BASE).config
    more = """
        logging: {level: debug, mode: console}
        garbage-collector: {age: 2h, health_port: 5}
        frontend: {port: 1}
        collections: {one: null}
        authentication: {r: {authenticators: {local: {users: [{uid: eve, password: p}]}}}}
        queue: {sqlite: {path: /other}}
    """
    new = read(BASE, more).config
    taken = taken_up(running, new)
    assert (taken.logging.level, taken.logging.mode) == ("DEBUG", "json")
    assert (taken.garbage_collector.age, taken.garbage_collector.health_port) == (7200, None)
    assert taken.frontend == running.frontend
    assert taken.queue == running.queue
    assert (taken.collections, taken.authentication) == (new.collections, new.authentication)
    assert users(taken) == 3
    again = changes(taken, new, process="frontend")
    assert not again, "all that may change has been taken up"
    assert again.need_restart == ("frontend.port", "logging.mode", "queue")


def test_every_live_key_exists() -> None:
    for field, keys in LIVE.items():
        section: Any = getattr(Config(), field)
        assert keys is None or keys <= type(section).model_fields.keys()
