"""The whole configuration as every process sees it: typed, checked, frozen.

Sizes are in bytes and durations in seconds, once read. What a section says when it is left out
stands here as the default. Options of a back-end stay plain until that back-end reads them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)

from polytope_server.config.api_keys import ApiKeysSection
from polytope_server.config.identity import RealmSection
from polytope_server.config.identity_services import PeerSection
from polytope_server.config.section import (
    Duration,
    HomePath,
    Roles,
    Secret,
    Section,
    Size,
    Text,
    Whole,
    is_address,
)
from polytope_server.config.tracing import TracingSection
from polytope_server.errors import ConfigurationError
from polytope_server.language.options import CoercionOptions

_ORIGIN = re.compile(r"\*|https?://[^\s/?#@]+", re.ASCII)
_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_GIB: Final = 1024 * _MIB
_HOUR_S: Final = 3600.0
_DAY_S: Final = 24 * _HOUR_S

CHOICES: Final[Mapping[str, str]] = {
    "request_store": "{sqlite: {path: /data/requests.db}}",
    "queue": "{sqlite: {path: /data/queue.db}}",
    "staging": "{local: {root_dir: /data/staging}}",
    "caching": "{memory: {}}",
}
"""The sections that hold exactly one back-end, each with an example."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The back-end that was chosen, by name, and its options as they were written."""

    name: str
    options: Mapping[str, Any] = field(repr=False)


def _choice(value: Any) -> Choice:
    if isinstance(value, Choice):
        return value
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ValueError(
            "a mapping with exactly one back-end, such as {sqlite: {path: ...}}, or {memory: {}} for "
            "one without options; to take the place of an earlier file's, write !replace before it"
        )
    ((name, options),) = value.items()
    if not isinstance(options, Mapping):
        raise ValueError("a back-end with a mapping of its options; {} if there are none")  # noqa: TRY004
    return Choice(str(name), options)


def _upper(value: Any) -> Any:
    level = value.strip().upper() if isinstance(value, str) else value
    return "WARNING" if level == "WARN" else level


def _public_url(url: str) -> str:
    if not is_address(url):
        raise ValueError(
            "an address such as https://polytope.example.org, without user, query and fragment"
        )
    return url.rstrip("/")


def _origin(value: str) -> str:
    if not _ORIGIN.fullmatch(value):
        raise ValueError("* or an origin such as https://portal.example.org, without a path")
    return value


def _environment(value: Mapping[str, str]) -> Mapping[str, str]:
    if any(not name or "=" in name for name in value):
        raise ValueError("a mapping of variable names, which hold no =, to texts")
    return value


OneBackend = Annotated[
    Choice,
    PlainValidator(_choice),
    WithJsonSchema({"type": "object", "minProperties": 1, "maxProperties": 1}),
]
Unread = Annotated[Any, Field(repr=False)]
"""Accepted, because older files hold it, and read by no process."""
Raw = Annotated[Mapping[str, Any], Field(repr=False)]
"""A mapping that is kept as it was written."""
Interval = Annotated[Duration, Field(ge=0.01)]
"""A pause; never none, for that would be a loop that spins."""
Age = Annotated[Duration, Field(ge=1)]
"""An age at which something is removed or given up; a second at the least."""
Port = Annotated[Whole, Field(ge=0, le=65535)]
"""A TCP port; 0 takes any that is free."""
Positive = Annotated[Whole, Field(ge=1)]
NotNegative = Annotated[Whole, Field(ge=0)]
SomeSize = Annotated[Size, Field(ge=1)]
Host = Annotated[Text, StringConstraints(strip_whitespace=True, min_length=1)]


class LoggingSection(Section):
    """``logging``"""

    mode: Literal["json", "console", "prettyprint", "logserver"] = "json"
    """One JSON object a line; text for people; JSON with indents; or the fields of a syslog collector."""
    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)
    ] = "INFO"
    """What is less grave is not logged."""
    primary_fields: tuple[str, ...] = ("asctime", "request_id", "message")
    """Shown first, in this order."""
    defaults: Mapping[str, Any] = Field(default_factory=lambda: {"app": "polytope-server"})
    """Constant fields of every record."""
    reserved_attrs: tuple[str, ...] = ("args", "msg", "msecs", "relativeCreated", "process")
    """Attributes of records that are left out."""


class FrontendSection(Section):
    """``frontend``"""

    bind_to: Host = "localhost"
    """Where it listens."""
    port: Port = 5000
    """Where it listens; 0 takes any that is free."""
    public_url: Annotated[Text, AfterValidator(_public_url)] | None = None
    """Where clients reach the server; begins every URL that is given out."""
    proxy_support: bool = False
    """Believe one hop of X-Forwarded-For, -Proto and -Host."""
    long_poll: Duration = 5.0
    """How long a status query is held until something changes; 0 answers at once."""
    processes: Positive = 1
    """How many share the port."""
    threads: Annotated[Whole, Field(ge=1, le=1000)] = 16
    """Of each process, for each back-end that it calls."""
    max_request: SomeSize = _MIB
    """Of the body of a submission."""
    max_upload: SomeSize = 2 * _GIB
    """Of the data of an archive request."""
    max_connections: Positive = 1000
    """Of each process."""
    idle_timeout: Interval = 75.0
    """After it, a connection without a request, or in a body that does not go on, is closed."""
    graceful_timeout: Duration = 60.0
    """What responses and downloads may still take after SIGTERM."""
    download_expiry: Interval = _DAY_S
    """How long a link to a result is good for."""
    max_unfinished: Positive = 400
    """Requests that one user may have going at once."""
    min_free: Size = 100 * _MIB
    """Free disk below which no request is accepted."""
    allow_origin: Annotated[Text, AfterValidator(_origin)] | None = None
    """Whose web pages may call the API (CORS): an origin or ``*``."""
    metrics_bind_to: Host = "127.0.0.1"
    """Address of the listener for ``/metrics``."""
    metrics_port: Port | None = None
    """Of the listener for ``/metrics``; there is none if left out."""
    signing_key: Annotated[Secret, Field(min_length=16)] | None = None
    """Signs links to results; if left out, one is made once and kept in the request store."""
    server: Unread = None
    handler: Unread = None
    host: Unread = None


class BrokerSection(Section):
    """``broker``"""

    interval: Interval = 10.0
    """Between cycles if nothing wakes it."""
    max_queued: Positive = 40
    """Messages on the queue at most."""
    lease: Interval = 15.0
    """After it, another broker takes over from one that is silent."""
    max_attempts: Positive = 3
    """How often a request is begun before it fails, if workers die over it."""
    republish_after: Interval = 10.0
    """After it, a request that is queued but not on the queue is published again."""
    max_age: Interval = 7 * _DAY_S
    """Older unfinished requests fail."""
    health_bind_to: Host = "127.0.0.1"
    """Address of the listener for ``/healthz``, ``/readyz`` and ``/metrics``."""
    health_port: Port | None = None
    """Port of that listener; there is none if left out."""
    user_limit: Unread = None
    host: Unread = None
    port: Unread = None


class WorkerSection(Section):
    """``worker``"""

    slots: Positive = 1
    """Requests worked on at once, each in a process of its own."""
    poll_interval: Interval = 1.0
    """Between looks at the queue if nothing wakes it."""
    lease: Annotated[Duration, Field(ge=2)] = 30.0
    """After it, a request of a worker that is silent goes to another one; renewed once a second."""
    timeout: Interval = _DAY_S
    """Of one request."""
    drain_timeout: Duration = 30.0
    """What running requests may still take after SIGTERM, before they are handed back."""
    max_result: SomeSize = 1024 * _GIB
    """Of one request; a larger one fails."""
    memory_limit: SomeSize = 4 * _GIB
    """Address space of a slot's process."""
    recycle_after: Positive = 1000
    """Requests after which a slot's process is replaced."""
    recycle_memory: SomeSize = _GIB
    """Resident memory above which a slot's process is replaced after its request."""
    storage_retry: Duration = 300.0
    """How long a full staging is tried again before the request fails."""
    tmp_dir: HomePath | None = None
    """For temporary files; the system's directory if left out."""
    environment: Annotated[Mapping[str, Text], AfterValidator(_environment)] = Field(
        default_factory=dict, repr=False
    )
    """Variables that slots get besides the few that they always have."""
    health_bind_to: Host = "127.0.0.1"
    """Address of the listener for ``/healthz``, ``/readyz`` and ``/metrics``."""
    health_port: Port | None = None
    """Port of that listener; there is none if left out."""
    host: Unread = None
    port: Unread = None


class GarbageCollectorSection(Section):
    """``garbage-collector``"""

    interval: Interval = 60.0
    """Between passes."""
    age: Age = _DAY_S
    """Finished requests, and their results, that have not changed for so long are removed."""
    threshold: SomeSize = 10 * _GIB
    """When results take more than this, the oldest go, with their requests; uploads do not count."""
    metric_age: Unread = None
    dangling_age: Age = _HOUR_S
    """Of an object that belongs to no request, before it is removed."""
    upload_age: Age = _DAY_S
    """Of a request whose upload never came, before it fails."""
    health_bind_to: Host = "127.0.0.1"
    """Address of the listener for ``/healthz``, ``/readyz`` and ``/metrics``."""
    health_port: Port | None = None
    """Port of that listener; there is none if left out."""


class AdminSection(Section):
    """``admin``"""

    users: tuple[Text, ...] | None = None
    """Names of users and groups of the operating system who may use ``polytope-server admin``; if left
    out, everybody who can read the configuration and the request store."""
    roles: Unread = None


class UsageSection(Section):
    """``usage``: the record of use that every finished request leaves."""

    path: HomePath | None = None
    """File that the collector appends the records to, as JSON lines; if left out, they stay in the request
    store."""
    interval: Interval = 5.0
    """Between looks for new records."""
    keep: Duration = 90 * _DAY_S
    """How long records stay in the request store, if there is no file for them."""
    max_kept: NotNegative = 1_000_000
    """How many records stay there at most; the oldest go first."""


class CoercionSection(Section):
    """``coercion``: values in the files are added to these defaults; null empties a list."""

    allow_ranges: tuple[str, ...] = ("number", "step", "date", "time")
    """Keys for which ``a/to/b/by/c`` is a range."""
    allow_lists: tuple[str, ...] = (
        "class",
        "stream",
        "type",
        "expver",
        "param",
        "number",
        "date",
        "step",
        "time",
    )
    """Keys for which ``a/b/c`` is a list."""
    number_allow_zero: bool = False
    """Whether ensemble number 0 exists."""

    def options(self) -> CoercionOptions:
        """The same as the language takes it."""
        return CoercionOptions(
            allow_ranges=frozenset(self.allow_ranges),
            allow_lists=frozenset(self.allow_lists),
            number_allow_zero=self.number_allow_zero,
        )


class LimitsSection(Section):
    """``collections.<name>.limits``: requests that may be queued or processing at once."""

    total: NotNegative | None = None
    """Of all users together; none if left out, and 0 lets nothing through."""
    per_user: NotNegative = Field(default=0, alias="per-user")
    """Of one user; 0 is no limit."""
    per_role: Mapping[str, Mapping[str, NotNegative]] = Field(
        default_factory=dict, alias="per-role"
    )
    """Realm to role to the limit for one user with it, instead of `per_user`."""


class CollectionSection(Section):
    """``collections.<name>``"""

    roles: Roles = ()
    """Who may use it; nothing here means nobody."""
    limits: LimitsSection = Field(default_factory=LimitsSection)
    datasources: tuple[Mapping[str, Any], ...] = Field(min_length=1, repr=False)
    """Tried in this order; each with all that it inherits, `name` and `type` among it."""


class ReloadSection(Section):
    """``reload``: how a running process takes up a changed configuration."""

    interval: Duration = 2.0
    """Between looks at the files; 0 is off, and leaves SIGHUP."""
    grace: Duration = 120.0
    """Age up to which a request is kept if its collection or datasource is not known here (yet)."""


class Config(Section):
    """The whole configuration."""

    logging: LoggingSection = Field(default_factory=LoggingSection)
    frontend: FrontendSection = Field(default_factory=FrontendSection)
    broker: BrokerSection = Field(default_factory=BrokerSection)
    worker: WorkerSection = Field(default_factory=WorkerSection)
    garbage_collector: GarbageCollectorSection = Field(
        default_factory=GarbageCollectorSection, alias="garbage-collector"
    )
    reload: ReloadSection = Field(default_factory=ReloadSection)
    usage: UsageSection = Field(default_factory=UsageSection)
    request_store: OneBackend | None = None
    queue: OneBackend | None = None
    staging: OneBackend | None = None
    caching: OneBackend = Choice("memory", {})
    authentication: Mapping[str, RealmSection] = Field(default_factory=dict, repr=False)
    """Realms by name."""
    api_keys: ApiKeysSection = Field(default_factory=ApiKeysSection, alias="api-keys")
    federation: Mapping[str, PeerSection] = Field(default_factory=dict)
    """Other servers by name, which speak for users of theirs."""
    admin: AdminSection = Field(default_factory=AdminSection)
    coercion: CoercionSection = Field(default_factory=CoercionSection)
    tracing: TracingSection = Field(default_factory=TracingSection)
    datasources: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict, repr=False)
    """As they stand in the files; `collections` hold them with what they inherit."""
    collections: Mapping[str, CollectionSection] = Field(default_factory=dict)
    telemetry: Raw = Field(default_factory=dict)
    metrics: Raw = Field(default_factory=dict)
    version: Unread = None
    developer: Unread = None
    deployment: Unread = None
    timeout: Unread = None
    testrunner: Unread = None
    profiling: Unread = None
    build: Unread = None
    image_registry: Unread = None
    tag: Unread = None

    def backend(
        self, abstraction: Literal["request_store", "queue", "staging", "caching"]
    ) -> Choice:
        """The back-end that was chosen for what this process needs.

        Raises:
            ConfigurationError: none was chosen.
        """
        choice: Choice | None = getattr(self, abstraction)
        if choice is None:
            raise ConfigurationError(
                f"{abstraction}: this process needs one; for example "
                f"{abstraction}: {CHOICES[abstraction]}"
            )
        return choice
