"""Collections: who may use them, how much at once, and which datasource takes a request."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Protocol, Self

from polytope_server.config.builtin import section_of
from polytope_server.config.model import CoercionSection, CollectionSection, Config, LimitsSection
from polytope_server.config.section import DatasourceSection, place_text
from polytope_server.errors import ConfigurationError, InvalidRequest, NotSupported
from polytope_server.language import rules
from polytope_server.language.coercion import Canonical, coerce, coerce_key, joined
from polytope_server.language.keys import FEATURE, abbreviated
from polytope_server.language.options import CoercionOptions
from polytope_server.language.roles import Roles, roles_of
from polytope_server.language.text import Parsed
from polytope_server.language.written import read_written, unfit
from polytope_server.request import Verb
from polytope_server.user import User

_NOBODYS: Final = "it is not available on this server"


class Traits(Protocol):
    """What kinds of requests a type of datasources takes; see `config.section.DatasourceSection`."""

    @property
    def verbs(self) -> frozenset[Verb]: ...
    @property
    def takes_feature(self) -> bool: ...
    @property
    def takes_free_text(self) -> bool: ...


FindTraits = Callable[[str], Traits | None]
"""From a type of datasources; None if it is not there (yet)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many requests of a collection may be active at once: in all (None: any number), of one user."""

    total: int | None = None
    per_user: int = 0
    per_role: Mapping[str, Mapping[str, int]]

    def for_user(self, user: User) -> int:
        """0 is no limit. The largest of the user's roles replaces `per_user`, even by less."""
        by_role = self.per_role.get(user.realm, {})
        return max((by_role.get(role, 0) for role in roles_of(user)), default=0) or self.per_user

    @classmethod
    def of(cls, section: LimitsSection) -> Self:
        return cls(total=section.total, per_user=section.per_user, per_role=section.per_role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Who takes a request, and in what form: all values are text, but ``feature`` is a mapping.

    Lists are joined. The form of free text is empty. Only datasources that are given features, or
    that read the user's own text, get other mappings.
    """

    datasource: str
    request: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasourceRule:
    """A datasource of one collection: what it takes, and what it is opened with.

    Defaults and patches are as they were written, known to be good: dates in them may be relative.
    """

    name: str
    """Its own in the collection, and the same in all processes."""
    label: str
    kind: str
    options: Mapping[str, Any]
    traits: Traits | None
    roles: Roles
    defaults: Mapping[str, Any]
    rules: Sequence[rules.Rule]
    patch: Mapping[str, Any]
    coercion: CoercionOptions

    def is_open_to(self, user: User) -> bool:
        """Whether the user may use it at all; without roles everybody may."""
        return self.roles.is_empty or self.roles.has(user)

    def refusals(
        self, verb: Verb, request: Mapping[str, Canonical], *, is_free_text: bool
    ) -> Iterator[str]:
        """What kinds of requests it does not take, that this one, with its defaults, is of."""
        if self.traits is None:
            yield _NOBODYS
            return
        if verb not in self.traits.verbs:
            yield f"it does not {verb}"
        if is_free_text and not self.traits.takes_free_text:
            yield "it takes keys and values, such as 'class: od', and no free text"
        if self.traits.takes_feature and FEATURE not in request:
            yield f"the key {FEATURE} is missing"
        if not self.traits.takes_feature and FEATURE in request:
            yield f"the key {FEATURE} is not allowed"

    def matches(self, request: Mapping[str, Canonical], now: datetime) -> Iterator[str]:
        """Why a canonical request with its defaults is not what the datasource is for."""
        for rule in self.rules:
            if reason := rule.refusal(request, now):
                yield reason
        if self._reads_text:
            return
        ruled = frozenset((*(rule.key for rule in self.rules), *self.defaults, *self.patch))
        for key in request:
            if full := abbreviated(key, full=ruled):
                yield f"the key {key} may be read as {full}; write it in full, or leave it out"

    def with_defaults(
        self, request: Mapping[str, Canonical], now: datetime
    ) -> dict[str, Canonical]:
        """Besides what is there, the defaults of keys that are not."""
        absent = {key: value for key, value in self.defaults.items() if key not in request}
        return {**self._coerced(absent, now), **request}

    def patched(self, request: Mapping[str, Canonical], now: datetime) -> dict[str, Canonical]:
        """With patches over it; null takes a key away."""
        kept = {key: value for key, value in request.items() if key not in self.patch}
        forced = {key: value for key, value in self.patch.items() if value is not None}
        return {**kept, **self._coerced(forced, now)}

    def unfit(self, final: Mapping[str, Any]) -> Iterator[str]:
        """What cannot be handed to the datasource, for it could mean something else there."""
        if self._reads_text:
            return
        takes_objects = self.traits is not None and self.traits.takes_feature
        for key, reason in unfit(final, takes_objects=takes_objects):
            yield f"{key}: {reason}"

    @property
    def _reads_text(self) -> bool:
        """Whether it looks at what the user wrote, and at no canonical form."""
        return self.traits is not None and self.traits.takes_free_text

    def _coerced(self, written: Mapping[str, Any], now: datetime) -> dict[str, Canonical]:
        options = self.coercion.for_operators(*written)
        return {key: coerce_key(key, v, options, now=now) for key, v in written.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """A collection as configured."""

    name: str
    roles: Roles
    limits: Limits
    datasources: Sequence[DatasourceRule]
    coercion: CoercionOptions

    def may_use(self, user: User) -> bool:
        """Whether the user may request anything; without roles nobody may."""
        return self.roles.has(user)

    def route(self, *, user: User, verb: Verb, parsed: Parsed, now: datetime) -> Routed:
        """The first datasource that takes the request, and what it will be given.

        Args:
            parsed: from `language.text.parse`.
            now: in UTC.

        Raises:
            InvalidRequest: a value is wrong, or no datasource takes it; the reasons of each are named.
            NotSupported: none of those that the user may use does what is asked, whatever the request.
        """
        request = None
        if isinstance(parsed, Mapping):
            request = coerce(parsed, self.coercion, now=now)
        self._check_verb(user, verb)
        lines = []
        for rule in self.datasources:
            if not rule.is_open_to(user):
                lines.append(f"  {rule.label}: not authorised")
                continue
            whole = rule.with_defaults(request or {}, now)
            reasons = list(rule.refusals(verb, whole, is_free_text=request is None))
            reasons += rule.matches(whole, now)
            final = {} if request is None else joined(rule.patched(whole, now))
            reasons += rule.unfit(final)
            if not reasons:
                return Routed(datasource=rule.name, request=final)
            # of what is not there, nothing else is of interest
            said = reasons[:1] if rule.traits is None else dict.fromkeys(reasons)
            lines.append(f"  {rule.label}: {'; '.join(said)}")
        raise InvalidRequest("\n".join(["No datasource takes this request:", *lines]))

    def _check_verb(self, user: User, verb: Verb) -> None:
        open_to = [rule.traits for rule in self.datasources if rule.is_open_to(user)]
        if open_to and all(traits and verb not in traits.verbs for traits in open_to):
            raise NotSupported(f"The collection {self.name} does not {verb}.")


def collections_of(config: Config) -> Mapping[str, Collection]:
    """All collections of a configuration, with every rule read.

    Raises:
        ConfigurationError: one line for each default, rule or patch that is wrong.
    """
    return build_collections(config.collections, config.coercion, datasource_section)


def datasource_section(kind: str) -> type[DatasourceSection] | None:
    """The class of a datasource type's options; None if the type is announced but not there.

    Raises:
        ConfigurationError: there is no such type, or its options are not those of a datasource.
    """
    section = section_of("datasource", kind)
    if section is not None and not issubclass(section, DatasourceSection):
        raise ConfigurationError(
            f"datasource: {kind!r} has no Config that is a subclass of "
            f"{DatasourceSection.__module__}.DatasourceSection"
        )
    return section


def build_collections(
    sections: Mapping[str, CollectionSection], coercion: CoercionSection, traits: FindTraits
) -> Mapping[str, Collection]:
    """See `collections_of`."""
    options = coercion.options()
    faults: list[str] = []
    built: dict[str, Collection] = {}
    for name, section in sections.items():
        where = f"collections.{name}"
        found = []
        names: Counter[str] = Counter()
        for index, entry in enumerate(section.datasources):
            try:
                place = f"{where}.datasources[{index}]"
                rule = _Builder(entry, options, traits, where=place, names=names).rule()
            except ConfigurationError as exc:
                faults.append(str(exc))
            else:
                found.append(rule)
        try:
            roles = Roles.read(section.roles, where=f"{where}.roles")
        except ConfigurationError as exc:
            faults.append(str(exc))
            continue
        built[name] = Collection(
            name=name,
            roles=roles,
            limits=Limits.of(section.limits),
            datasources=tuple(found),
            coercion=options,
        )
    if faults:
        raise ConfigurationError("\n".join(faults))
    return MappingProxyType(built)


class _Builder:
    """One datasource of a collection, from all its options; every fault in them is told at once."""

    def __init__(
        self,
        entry: Mapping[str, Any],
        options: CoercionOptions,
        traits: FindTraits,
        *,
        where: str,
        names: Counter[str],
    ) -> None:
        self._section = DatasourceSection.read(entry, where=where)
        self._entry, self._options, self._where = entry, options, where
        self._traits = traits(self._section.type)
        self._names = names
        self._faults: list[str] = []

    def rule(self) -> DatasourceRule:
        section = self._section
        name = section.name or section.type
        written = read_written(
            match=section.match,
            defaults=section.defaults,
            patch=section.patch,
            options=self._options,
            now=datetime.now(UTC),
            takes_objects=_takes_objects(self._traits),
            report=self._report,
        )
        rule = DatasourceRule(
            name=self._own(name),
            label=section.label or name,
            kind=section.type,
            options=self._entry,
            traits=self._traits,
            roles=Roles.read(section.roles, where=f"{self._where}.roles"),
            defaults=written.defaults,
            rules=written.rules,
            patch=written.patch,
            coercion=self._options,
        )
        if self._faults:
            raise ConfigurationError("\n".join(self._faults))
        return rule

    def _own(self, name: str) -> str:
        """A datasource may stand in a collection several times, each time with options of its own."""
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}#{self._names[name]}"

    def _report(self, part: str, key: str, text: str) -> None:
        self._faults.append(f"{self._where}.{place_text((part, key))}: {text}")


def _takes_objects(traits: Traits | None) -> bool | None:
    """See `language.written.read_written`."""
    return None if traits is None or traits.takes_free_text else traits.takes_feature
