"""What older servers read: keys under other names, sections that are not read any more, or gone."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from polytope_server.config.builtin import RENAMED
from polytope_server.config.findings import Findings
from polytope_server.config.identity_services import PROXIED
from polytope_server.config.realms import AUTH_O_TRON
from polytope_server.config.section import Place, place_text
from polytope_server.config.tree import Node, at, leaves, put

PROXY_VARIABLE: Final = "POLYTOPE_PROXY"
"""Of the environment: the proxy of authenticators that ask somebody outside."""

_MOVED: Final[Mapping[Place, Place]] = MappingProxyType(
    {
        ("deployment", "worker", "replicas"): ("broker", "max_queued"),
        ("timeout",): ("worker", "drain_timeout"),
    }
)
"""Old keys, each with the one that it is an alias of; the new one wins."""

_NOT_READ: Final[Mapping[Place, str]] = MappingProxyType(
    {
        ("frontend", "server"): "not read: there is one server, gunicorn",
        ("frontend", "handler"): "not read: there is one handler",
        ("frontend", "host"): "not read by the server; see public_url",
        ("broker", "user_limit"): "not read, and never was; limits are those of collections",
        ("broker", "host"): "not read, and never was: nobody calls the broker",
        ("broker", "port"): "not read, and never was; see health_port",
        ("worker", "host"): "not read, and never was: nobody calls a worker",
        ("worker", "port"): "not read, and never was; see health_port",
        ("garbage-collector", "metric_age"): "not read: metrics are not stored",
        ("telemetry",): "not read: this release has no telemetry service",
        ("admin", "roles"): "not read: nothing asks for these roles; see admin.users",
    }
)

_BESIDE_AUTH_O_TRON: Final[tuple[Place, ...]] = (("federation",), ("api-keys",))
_OPEN: Final = frozenset({"match", "defaults", "patch"})


def with_new_names(tree: Node, findings: Findings) -> Node:
    """The same tree as it is written today."""
    for old, new in _MOVED.items():
        written, own = at(tree, old), at(tree, new)
        if written is None or written.value is None or (own and own.value is not None):
            continue
        findings.warn(tree, old, f"read as {place_text(new)}, which is its name now")
        tree = put(tree, new, written)
    for (section, old_name), new_name in RENAMED.items():
        backend = at(tree, (section, old_name))
        if backend is None or at(tree, (section, new_name)) is not None:
            continue
        findings.warn(tree, (section, old_name), f"read as {new_name}, which is its name now")
        tree = put(tree, (section, old_name), None)
        tree = put(tree, (section, new_name), backend)
    return tree


def without_what_is_gone(tree: Node, findings: Findings) -> Node:
    """The same tree without sections that this server does not have, each with an error or warning."""
    store = tree.children.get("metric_store")
    if store is not None:
        if store.value is not None:
            text = "there is no metric store any more; take this section away, and read /metrics"
            findings.error(tree, ("metric_store",), text)
        tree = put(tree, ("metric_store",), None)
    return tree


def with_auth_o_tron_alone(tree: Node, findings: Findings) -> Node:
    """The same tree; if auth-o-tron identifies everybody, as a realm of that name, and without all others.

    It has always switched off what is beside it; to let that in would open doors.
    """
    place = ("authentication", AUTH_O_TRON)
    section = at(tree, place)
    if section is None or section.value is None:
        return tree
    realms = tree.children["authentication"].children
    others = [("authentication", name) for name in realms if name != AUTH_O_TRON]
    for other in (*others, *_BESIDE_AUTH_O_TRON):
        written = at(tree, other)
        if written is not None and written.value not in (None, {}):
            findings.warn(tree, other, "not read: authentication.auth-o-tron is used alone")
            tree = put(tree, other, None)
    if "authenticators" in section.children or not isinstance(section.value, Mapping):
        return tree  # as it comes out of here, or a fault
    kind = Node(value=AUTH_O_TRON, source=section.source)
    made = replace(section, value={"type": kind, **section.children})
    tree = put(tree, place, replace(section, value={}))
    return put(tree, (*place, "authenticators", AUTH_O_TRON), made)


def with_proxy_of_the_environment(tree: Node, environ: Mapping[str, str]) -> Node:
    """The same tree; what has always gone through `POLYTOPE_PROXY` names it as its proxy."""
    address = environ.get(PROXY_VARIABLE)
    if not address:
        return tree
    places: list[Place] = [("api-keys", "authenticator")]
    for realm, section in tree.children.get("authentication", Node(value={})).children.items():
        named = section.children.get("authenticators", Node(value={})).children
        places += [("authentication", realm, "authenticators", name) for name in named]
    for place in places:
        found = at(tree, place)
        kind = found.children.get("type") if found is not None else None
        if found is None or kind is None or kind.value not in PROXIED:
            continue
        if "proxy" not in found.children:
            source = replace(found.source, variables=(PROXY_VARIABLE,))
            tree = put(tree, (*place, "proxy"), Node(value=address, source=source))
    return tree


def warn_of_what_is_not_read(tree: Node, findings: Findings) -> None:
    """One warning for each value that older servers read and this one does not."""
    for place, text in _NOT_READ.items():
        written = at(tree, place)
        if written is not None and written.value not in (None, {}):
            findings.warn(tree, place, text)


def warn_of_other_types(tree: Node, findings: Findings) -> None:
    """One warning for each unquoted value of requests that older servers took for something else."""
    for place, leaf in leaves(tree):
        match place:
            case ("datasources", _, part, *_) | ("collections", _, "datasources", _, part, *_):
                if leaf.older and part in _OPEN:
                    text = f"taken as the text {leaf.value!r}; put it between quotes"
                    findings.warn(tree, place, f"{text} (older servers took it for {leaf.older})")
