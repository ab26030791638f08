"""Collections: who may use them, how much at once, and which datasource takes a request."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from polytope_server.config.builtin import section_of
from polytope_server.config.model import CoercionSection, CollectionSection, Config, LimitsSection
from polytope_server.config.section import DatasourceSection
from polytope_server.errors import ConfigurationError, InvalidRequest, NotSupported
from polytope_server.language import rules
from polytope_server.language.coercion import coerce, coerce_key, joined
from polytope_server.language.options import CoercionOptions
from polytope_server.language.roles import Roles
from polytope_server.language.text import Parsed
from polytope_server.request import Verb
from polytope_server.user import User

Traits = Callable[[str], type[DatasourceSection] | None]
"""From a type of datasources to the class of its options; None if it is not there (yet)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many requests of a collection may be active at once: in all (None: any number), of one user."""

    total: int | None = None
    per_user: int = 0
    per_role: Mapping[str, Mapping[str, int]]

    def for_user(self, user: User) -> int:
        """0 is no limit. The largest of the user's roles replaces `per_user`, even by less."""
        by_role = self.per_role.get(user.realm, {})
        return max((by_role.get(role, 0) for role in user.roles), default=0) or self.per_user

    @classmethod
    def of(cls, section: LimitsSection) -> Self:
        return cls(total=section.total, per_user=section.per_user, per_role=section.per_role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Who takes a request, and in what form: text values, lists joined, ``feature`` a mapping."""

    datasource: str
    request: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasourceRule:
    """A datasource of one collection: what it takes, and what it is opened with.

    Defaults and patches are as written, though known to be good: dates in them may be relative.
    """

    name: str
    label: str
    kind: str
    options: Mapping[str, Any]
    section: type[DatasourceSection] | None
    roles: Roles
    defaults: Mapping[str, Any]
    rules: Sequence[rules.Rule]
    patch: Mapping[str, Any]
    coercion: CoercionOptions

    def refusals(
        self, user: User, verb: Verb, request: Mapping[str, Any] | None, now: datetime
    ) -> list[str]:
        """Why it does not take a coerced request (None: free text), each reason; none if it does."""
        if not self.roles.is_empty and not self.roles.has(user):
            return ["you are not authorised for it"]
        if self.section is None:
            return ["it is not available on this server"]
        if verb not in self.section.verbs:
            return [f"it does not {verb}"]
        if request is None:
            if self.section.takes_free_text:
                return []
            return ["it needs keys and values, such as 'class: od'"]
        reasons = []
        if self.section.takes_feature and "feature" not in request:
            reasons.append("the key feature is missing")
        if not self.section.takes_feature and "feature" in request:
            reasons.append("the key feature is not allowed")
        whole = self._with_defaults(request, now)
        reasons.extend(r for rule in self.rules if (r := rule.refusal(whole, now)) is not None)
        return reasons

    def final(self, request: Mapping[str, Any], now: datetime) -> Mapping[str, Any]:
        """The request as it is fetched: defaults under it, patches over it, null takes a key away."""
        whole = dict(self._with_defaults(request, now))
        for key, value in self.patch.items():
            whole.pop(key, None)
            if value is not None:
                whole[key] = coerce_key(key, value, self.coercion, now=now)
        return joined(whole)

    def _with_defaults(self, request: Mapping[str, Any], now: datetime) -> Mapping[str, Any]:
        return {
            key: coerce_key(key, value, self.coercion, now=now)
            for key, value in self.defaults.items()
            if key not in request
        } | dict(request)


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
        """The first datasource that takes the request; *now* is in UTC.

        Raises:
            InvalidRequest: a value is wrong, or no datasource takes it; all reasons are named.
            NotSupported: none of the datasources does what is asked, whatever the request.
        """
        request = None
        if isinstance(parsed, Mapping):
            request = coerce(parsed, self.coercion, now=now)
        verbs = {v for rule in self.datasources if rule.section for v in rule.section.verbs}
        if verb not in verbs:
            raise NotSupported(f"Collection {self.name} does not {verb}.")
        lines = []
        for rule in self.datasources:
            reasons = rule.refusals(user, verb, request, now)
            if not reasons:
                final = rule.final(request, now) if request is not None else {}
                return Routed(datasource=rule.name, request=final)
            lines.append(f"  {rule.label}: {'; '.join(reasons)}")
        raise InvalidRequest("\n".join(["No datasource takes this request:", *lines]))


def collections_of(config: Config) -> Mapping[str, Collection]:
    """All collections of a configuration, with every rule read.

    Raises:
        ConfigurationError: one line for each default, rule or patch that is wrong.
    """
    return build_collections(config.collections, config.coercion, datasource_section)


def datasource_section(kind: str) -> type[DatasourceSection] | None:
    """The class of a datasource type's options; None if the type is announced but not there."""
    section = section_of("datasource", kind)
    if section is not None and not issubclass(section, DatasourceSection):
        raise ConfigurationError(f"the datasource type {kind!r} has no DatasourceSection as Config")
    return section


def build_collections(
    sections: Mapping[str, CollectionSection], coercion: CoercionSection, traits: Traits
) -> Mapping[str, Collection]:
    """See `collections_of`."""
    options = CoercionOptions(
        allow_ranges=frozenset(coercion.allow_ranges),
        allow_lists=frozenset(coercion.allow_lists),
        number_allow_zero=coercion.number_allow_zero,
    )
    faults: list[str] = []
    built = {}
    for name, section in sections.items():
        where = f"collections.{name}"
        found = []
        for index, entry in enumerate(section.datasources):
            place = f"{where}.datasources[{index}]"
            try:
                found.append(_rule(entry, options, traits, where=place))
            except ConfigurationError as exc:
                faults.append(str(exc))
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
    return built


def _rule(
    entry: Mapping[str, Any], options: CoercionOptions, traits: Traits, *, where: str
) -> DatasourceRule:
    kind, name = str(entry["type"]), str(entry["name"])
    faults: list[str] = []
    read_rules: list[rules.Rule] = []
    defaults, patch = (dict(entry.get(part) or {}) for part in ("defaults", "patch"))
    for part, values in (("defaults", defaults), ("patch", patch)):
        for key, value in values.items():
            if part == "patch" and value is None:
                continue
            try:
                coerce_key(key, value, options, now=datetime.now(UTC))
            except ValueError as exc:
                faults.append(f"{where} ({name}).{part}.{key}: {exc}")
    for key, value in (entry.get("match") or {}).items():
        try:
            place = f"{where} ({name}).match.{key}"
            read_rules.append(rules.read(key, value, options, where=place))
        except ConfigurationError as exc:
            faults.append(str(exc))
    if faults:
        raise ConfigurationError("\n".join(faults))
    return DatasourceRule(
        name=name,
        label=str(entry.get("repr") or name or kind),
        kind=kind,
        options=entry,
        section=traits(kind),
        roles=Roles.read(entry.get("roles"), where=f"{where}.roles"),
        defaults=defaults,
        rules=tuple(read_rules),
        patch=patch,
        coercion=options,
    )
