"""What a newly read configuration changes for a process that runs: values in, values out.

Some of it is taken up while the process runs; the rest stays as it is until the next start.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from polytope_server.config.identity import RealmSection
from polytope_server.config.model import Choice, Config
from polytope_server.config.realms import realms
from polytope_server.config.section import Section

LIVE: Final[Mapping[str, frozenset[str] | None]] = MappingProxyType(
    {
        "authentication": None,
        "api_keys": None,
        "federation": None,
        "coercion": None,
        "datasources": None,
        "collections": None,
        "logging": frozenset({"level"}),
        "garbage_collector": frozenset(
            {"interval", "age", "threshold", "dangling_age", "upload_age"}
        ),
    }
)
"""What changes while processes run: fields of `Config`, whole or only some keys of them."""

_WITH_STORE: Final = frozenset({"frontend", "broker", "worker", "garbage-collector"})
_READ_BY: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "frontend": frozenset({"frontend"}),
        "caching": frozenset({"frontend"}),
        "api_keys": frozenset({"frontend"}),
        "broker": frozenset({"broker"}),
        "worker": frozenset({"worker"}),
        "garbage_collector": frozenset({"garbage-collector"}),
        "usage": frozenset({"garbage-collector"}),
        "admin": frozenset(),
        "request_store": _WITH_STORE,
        "queue": _WITH_STORE,
        "staging": frozenset({"frontend", "worker", "garbage-collector", "object-store"}),
    }
)
"""Which processes read a field of `Config`; one that is not here concerns all. A command reads `admin`."""


class _Login(NamedTuple):
    """A user who stands in the configuration."""

    realm: str
    authenticator: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What is different: names and counts, never a value, for that may be a secret."""

    collections_added: tuple[str, ...] = ()
    collections_removed: tuple[str, ...] = ()
    collections_changed: tuple[str, ...] = ()
    realms_changed: tuple[str, ...] = ()
    """Also those that came or went."""
    users_added: int = 0
    users_removed: int = 0
    settings_changed: tuple[str, ...] = ()
    """Of the rest of what is taken up."""
    need_restart: tuple[str, ...] = ()
    """Keys that this process has read for good when it started."""

    def __bool__(self) -> bool:
        """Whether there is anything to be taken up."""
        return bool(self.named())

    def named(self) -> dict[str, Any]:
        """What is taken up, by name and without what is empty, for the log."""
        names = (f.name for f in fields(self) if f.name != "need_restart")
        return {name: value for name in names if (value := getattr(self, name))}


def taken_up(running: Config, new: Config) -> Config:
    """*running* with what may change live from *new*."""
    update: dict[str, Any] = {}
    for name, keys in LIVE.items():
        value = getattr(new, name)
        if keys is not None:
            value = getattr(running, name).model_copy(
                update={key: getattr(value, key) for key in keys}
            )
        update[name] = value
    return running.model_copy(update=update)


def changes(running: Config, new: Config, *, process: str) -> Changes:
    """What *new* changes for a process that was started with, or has taken up, *running*."""
    before, after = running.collections, new.collections
    logins, new_logins = set(_logins(running)), set(_logins(new))
    rest = [
        name
        for field in LIVE.keys() - {"authentication", "collections", "datasources"}
        for name, is_live in _different(running, new, field)
        if is_live
    ]
    return Changes(
        collections_added=_in_order(after.keys() - before.keys()),
        collections_removed=_in_order(before.keys() - after.keys()),
        collections_changed=_in_order(
            name for name in before.keys() & after.keys() if before[name] != after[name]
        ),
        realms_changed=_in_order(_changed_realms(realms(running), realms(new))),
        users_added=len(new_logins - logins),
        users_removed=len(logins - new_logins),
        settings_changed=_in_order(rest),
        need_restart=_in_order(_need_restart(running, new, process)),
    )


def _changed_realms(
    before: Mapping[str, RealmSection], after: Mapping[str, RealmSection]
) -> Iterator[str]:
    """In each realm, and between them, the first who accepts somebody counts: order is part of it."""
    stayed = [realm for realm in before if realm in after]
    is_in_order = stayed == [realm for realm in after if realm in before]
    for realm in before.keys() | after.keys():
        old, new = before.get(realm), after.get(realm)
        is_same = old is not None and new is not None and old.written() == new.written()
        if not (is_same and is_in_order):
            yield realm


def users(config: Config) -> int:
    """How many users the configuration itself names."""
    return len(set(_logins(config)))


def _logins(config: Config) -> Iterator[_Login]:
    for realm, section in realms(config).items():
        for name, options in section.authenticators.items():
            listed = options.get("users")
            for user in listed if isinstance(listed, list | tuple) else ():
                if isinstance(user, Mapping):
                    yield _Login(realm, name, str(user.get("uid")))


def _need_restart(running: Config, new: Config, process: str) -> Iterator[str]:
    for field in type(running).model_fields:
        if process in _READ_BY.get(field, {process}):
            yield from (name for name, is_live in _different(running, new, field) if not is_live)


def _different(running: Config, new: Config, field: str) -> Iterator[tuple[str, bool]]:
    """Keys of one field of `Config` whose values differ, and whether each may change live.

    What is neither a section nor a back-end is read by no process.
    """
    old_value, new_value = getattr(running, field), getattr(new, field)
    section = _alias(running, field)
    live: Collection[str] | None = LIVE.get(field, frozenset())
    match old_value, new_value:
        case (Section(), Section()):
            for key, info in type(old_value).model_fields.items():
                is_read = info.annotation is not Any
                if is_read and getattr(old_value, key) != getattr(new_value, key):
                    yield f"{section}.{_alias(old_value, key)}", live is None or key in live
        case (Choice(), _) | (_, Choice()):
            if old_value != new_value:
                yield section, live is None


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names))


def _alias(section: Section, field: str) -> str:
    return type(section).model_fields[field].alias or field
