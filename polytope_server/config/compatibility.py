"""What older servers read: keys under other names, sections that are not read any more, or gone."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from polytope_server.config.builtin import RENAMED
from polytope_server.config.findings import Findings
from polytope_server.config.section import Place, place_text
from polytope_server.config.tree import Node, at, leaves, put

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
        ("garbage-collector", "metric_age"): "not read: metrics are not stored",
        ("telemetry",): "not read: this release has no telemetry service",
        ("federation",): "not read: this release takes no users of other servers",
        ("api-keys", "authenticator"): "not read: this release has no keys but its own",
        ("admin", "roles"): "not read: nothing asks for these roles; see admin.users",
    }
)

_AUTH_O_TRON: Final[Place] = ("authentication", "auth-o-tron")
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
    auth_o_tron = at(tree, _AUTH_O_TRON)
    if auth_o_tron is not None and auth_o_tron.value is not None:
        # it has always switched the realms beside it off; to let them in would open doors
        text = "not part of this release; the realms beside it stay unread, so nobody can log in"
        findings.warn(tree, _AUTH_O_TRON, text)
        tree = put(tree, ("authentication",), replace(tree.children["authentication"], value={}))
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
