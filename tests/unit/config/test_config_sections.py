"""Sections with their defaults, durations, sizes, old names, and the words in which faults are told."""

import re
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytope_server.config.builtin import SECTIONS, section_of
from polytope_server.config.loading import Loaded
from polytope_server.config.model import Choice, Config, FrontendSection, WorkerSection
from polytope_server.config.section import (
    Section,
    duration_s,
    duration_text,
    size_bytes,
    size_text,
)
from polytope_server.errors import ConfigurationError

Read = Callable[..., Loaded]


def refused(read: Read, *texts: str, **options: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(*texts, **options)
    return [line.partition(".yaml:")[2] for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *((60, 60), ("60", 60), ("0.5", 0.5), (0.5, 0.5), ("0", 0), (0, 0), ("60s", 60)),
        *(("1d", 86400), ("24h", 86400), ("1d2h30m10s", 95410), ("1h30m", 5400), (" 5m ", 300)),
    ],
)
def test_durations_are_units_in_order_or_plain_seconds(text: Any, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "1w", "24H", "1.5h", "30m1h", "1h1h", "-5", "-5s", "5 s", "s", "1d 2h", "inf"),
        *("nan", "1e3", "٣s", True, None, [], "9" * 30, "9" * 400 + "d", float("nan")),
    ],
)
def test_what_is_no_whole_duration_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="a duration"):
        duration_s(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *((100, 100), ("100", 100), ("100B", 100), ("1K", 1024), ("1k", 1024), ("1KB", 1024)),
        *(("1KiB", 1024), ("10G", 10 << 30), ("10GB", 10 << 30), ("1.5G", 3 << 29)),
        *(("1P", 1 << 50), ("2 MiB", 2 << 20), ("0", 0), (2**53 + 1, 2**53 + 1)),
    ],
)
def test_sizes_are_1024_based_with_decimals(text: Any, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "1E", "1X", "-1", "1.5.5G", "1 0G", "٣", True, None, [], "9" * 400, "1e3"]
)
def test_what_is_no_whole_size_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="a size"):
        size_bytes(text)


@given(st.integers(0, 10**9))
def test_durations_and_sizes_survive_being_shown(number: int) -> None:
    assert duration_s(duration_text(float(number))) == number
    assert size_bytes(size_text(number)) == number


def test_everything_has_its_default(read: Read) -> None:
    config = read("{}\n---\nversion: '1'\n").config
    assert config == Config(version="1")
    assert config.caching == Choice("memory", {})
    assert (config.request_store, config.queue, config.staging) == (None, None, None)
    assert (config.frontend.bind_to, config.frontend.port) == ("localhost", 5000)
    assert config.frontend.max_request == 1 << 20
    assert config.worker.max_result == 1 << 40
    assert config.broker.max_age == 7 * 86400
    assert config.garbage_collector.threshold == 10 << 30


def test_the_configuration_cannot_be_changed(read: Read) -> None:
    config = read("frontend: {port: 1}").config
    with pytest.raises(ValueError, match="frozen"):
        config.frontend.port = 2


def test_all_faults_are_told_at_once_each_with_file_line_and_shape(read: Read) -> None:
    lines = refused(
        read,
        """
        frontend:
          port: many
          threads: 0
          public_url: polytope.example.org
          proxy_support: maybe
          long_poll: 5 minutes
        garbage-collector: {age: 1w, interval: "0", threshold: 10Q}
        """,
        """
        logging: {mode: loud, level: TRACE}
        queue: {}
        staging: {local: {root_dir: /a}, polytope: {}}
        broker: 5
        """,
    )
    assert [line.partition(": ")[2] for line in lines] == [
        "logging.mode: must be one of 'json', 'console', 'prettyprint' or 'logserver'",
        "logging.level: must be one of 'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'",
        "frontend.port: must be a whole number",
        "frontend.public_url: must be an address such as https://polytope.example.org, without "
        "user, query and fragment",
        "frontend.proxy_support: must be true or false",
        "frontend.long_poll: must be a duration such as 90s or 1d12h (units d h m s, in this order)",
        "frontend.threads: must be at least 1",
        "broker: must be a mapping of keys to values",
        "garbage-collector.interval: must be at least 0.01",
        "garbage-collector.age: must be a duration such as 90s or 1d12h (units d h m s, in this "
        "order)",
        "garbage-collector.threshold: must be a size such as 10G or 512MiB (units K M G T P, "
        "1024-based)",
        "queue: must be a mapping with exactly one back-end, such as {sqlite: {path: ...}}, or "
        "{memory: {}} for one without options; to take the place of an earlier file's, write "
        "!replace before it",
        "staging: must be a mapping with exactly one back-end, such as {sqlite: {path: ...}}, or "
        "{memory: {}} for one without options; to take the place of an earlier file's, write "
        "!replace before it",
    ]
    assert {line.partition(":")[0] for line in lines} == {"2", "3", "4", "5", "6", "7", "8"}


def test_no_word_of_the_model_library_reaches_the_operator(read: Read) -> None:
    wrong = ["[[]]", "{a: {}}", "text", "5", "true", "[1, {a: b}]", "-1", "''"]
    for section, model in Config.model_fields.items():
        name = model.alias or section
        kind = model.annotation
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else {}
        texts = [f"{name}: {bad}" for bad in wrong]
        texts += [
            f"{name}: {{{info.alias or key}: {bad}}}"
            for key, info in fields.items()
            for bad in wrong
        ]
        for text in texts:
            try:
                read(text)
            except ConfigurationError as exc:
                for line in str(exc).splitlines():
                    assert ".yaml:1: " in line
                    said = line.partition(".yaml:")[2].lower()
                    for word in ("input", "pydantic", "valid ", "value error", "of another shape"):
                        assert word not in said


@pytest.mark.parametrize(
    "text", ["queue: {}", "queue: {sqlite: {path: a}, rabbitmq: {}}", "queue: x"]
)
def test_exactly_one_backend_must_be_chosen(read: Read, text: str) -> None:
    (line,) = refused(read, text)
    assert line.startswith("1: queue: must be a mapping with exactly one back-end")


def test_a_later_file_can_choose_another_backend(read: Read) -> None:
    later = "queue: !replace {rabbitmq: {host: mq}}"
    assert read("queue: {sqlite: {path: q}}", later).config.queue == Choice(
        "rabbitmq", {"host": "mq"}
    )


def test_a_backend_without_options_must_say_so(read: Read) -> None:
    (line,) = refused(read, "request_store:\n  sqlite:\n")
    assert "or {memory: {}} for one without options" in line


def test_a_process_that_needs_a_backend_is_told_how_to_choose_one() -> None:
    config = Config(queue={"sqlite": {"path": "q"}})
    assert config.backend("queue") == Choice("sqlite", {"path": "q"})
    with pytest.raises(ConfigurationError, match=r"request_store: .* {sqlite: {path: "):
        config.backend("request_store")


def test_options_of_our_own_backends_are_checked(read: Read) -> None:
    lines = refused(
        read,
        """
        request_store: {sqlite: {}}
        queue: {sqlite: {path: [a]}}
        caching: {memory: {max_entries: 0}}
        authentication:
          r:
            authenticators: {a: {users: []}, b: {type: plan}, c: {type: plain, users: [{uid: x}]}}
            authorizers: {d: {type: plain, roles: {x: {y: z}}}}
        """,
    )
    places = [line.partition(": ")[2].partition(": ")[0] for line in lines]
    assert places == [
        "request_store.sqlite.path",
        "queue.sqlite.path",
        "caching.memory.max_entries",
        "authentication.r.authenticators.a.type",
        "authentication.r.authenticators.b",
        "authentication.r.authenticators.c.users[0].password",
        *[place for place in places if place.startswith("authentication.r.authorizers.d.roles.x")],
    ]
    assert len(places) > 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("metric_store: {mongodb: {}}", "metric_store: there is no metric store any more"),
        ("request_store: {dynamodb: {}}", "request_store.dynamodb: DynamoDB cannot"),
        ("queue: {sqs: {}}", "queue.sqs: SQS cannot"),
        ("queue: {sqlight: {}}", "there is no such back-end: 'sqlight'; did you mean 'sqlite'?"),
    ],
)
def test_backends_that_there_will_not_be_are_refused_by_name(
    read: Read, text: str, said: str
) -> None:
    (line,) = refused(read, text)
    assert said in line


def test_every_installed_backend_of_ours_has_the_model_that_is_checked() -> None:
    for (abstraction, name), path in SECTIONS.items():
        (entry,) = entry_points(group=f"polytope_server.{abstraction}", name=name)
        model = section_of(abstraction, name)
        assert model is entry.load().Config
        assert f"{model.__module__}:{model.__name__}" == path


def test_old_keys_are_read_under_their_new_names_which_win(read: Read) -> None:
    old = "deployment: {worker: {replicas: 8}}\ntimeout: 90\n"
    loaded = read(old, strict=True)
    assert loaded.config.broker.max_queued == 8
    assert loaded.config.worker.drain_timeout == 90
    assert sum("which is its name now" in line for line in loaded.warnings) == 2
    assert loaded.origins["broker.max_queued"].endswith("1.yaml:1")
    config = read(old, "broker: {max_queued: 3}\nworker: {drain_timeout: 1m}\n").config
    assert (config.broker.max_queued, config.worker.drain_timeout) == (3, 60)
    config = read(old, "worker: null\nbroker:\n").config
    assert (config.broker.max_queued, config.worker.drain_timeout) == (8, 90)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("staging: {s3_boto3: {host: x}}", Choice("s3", {"host": "x"})),
        ("caching: {globalvar: {}}", Choice("memory", {})),
    ],
)
def test_old_names_of_backends_are_understood(read: Read, text: str, choice: Choice) -> None:
    loaded = read(text, strict=True)
    assert choice in (loaded.config.staging, loaded.config.caching)
    assert any("which is its name now" in line for line in loaded.warnings)


def test_what_older_files_hold_and_nobody_reads_is_accepted(read: Read) -> None:
    loaded = read(
        """
        version: "1"
        developer: {disable_schema_check: true}
        frontend: {server: flask, handler: flask, host: polytope.example.org}
        broker: {user_limit: 4, host: broker, port: 5001}
        worker: {host: worker, port: 5002}
        garbage-collector: {metric_age: 30d}
        testrunner: {a: b}
        profiling: {a: b}
        build: {a: b}
        image_registry: x
        tag: y
        deployment: {anything: [1]}
        telemetry: {port: 8000}
        metrics: {prefix: polytope}
        admin: {roles: {r: [a]}}
        """,
        strict=True,
    )
    told = "\n".join(loaded.warnings)
    for place in (
        *("frontend.server", "frontend.host", "broker.user_limit", "broker.host", "broker.port"),
        *("worker.host", "worker.port", "metric_age", "telemetry"),
    ):
        assert f"{place}: not read" in told


def test_auth_o_tron_leaves_no_realm_open(read: Read) -> None:
    loaded = read(
        """
        authentication:
          auth-o-tron: {url: "http://auth", secret: x}
          local: {authenticators: {a: {type: plain, users: []}}}
        api-keys: {enabled: true}
        """
    )
    assert not loaded.config.api_keys.enabled
    (realm,) = loaded.config.authentication.values()
    (alone,) = realm.authenticators.values()
    assert alone == {"type": "auth-o-tron", "url": "http://auth", "secret": "x"}
    told = [line for line in loaded.warnings if "not read" in line]
    assert [line.partition(": ")[2] for line in told] == [
        "authentication.local: not read: authentication.auth-o-tron is used alone",
        "api-keys: not read: authentication.auth-o-tron is used alone",
    ]


def test_unknown_keys_are_warned_of_with_the_nearest_name_and_refused_when_strict(
    read: Read,
) -> None:
    text = "fronted: {port: 1}\nfrontend: {prot: 1}\nbroker: {limit_of_users: 5}\n"
    told = read(text).warnings
    assert any("1.yaml:1: fronted: unknown key; did you mean 'frontend'?" in w for w in told)
    assert any("1.yaml:2: frontend.prot: unknown key; did you mean 'port'?" in w for w in told)
    assert any("1.yaml:3: broker.limit_of_users: unknown key" in w for w in told)
    assert len(refused(read, text, strict=True)) == 3


def test_unknown_keys_are_told_beside_other_faults_when_strict(read: Read) -> None:
    lines = refused(read, "frontend: {prot: 1, port: x}\n", strict=True)
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("text", "ranges", "lists"),
    [
        ("{}", 4, 9),
        ("coercion: null", 4, 9),
        ("coercion: {allow_lists: [levelist, class]}", 4, 10),
        ("coercion: {allow_lists: null}", 4, 0),
        ("coercion: {allow_ranges: !replace [date]}", 1, 9),
    ],
)
def test_coercion_lists_add_to_the_defaults(read: Read, text: str, ranges: int, lists: int) -> None:
    coercion = read(text).config.coercion
    assert (len(coercion.allow_ranges), len(coercion.allow_lists)) == (ranges, lists)
    assert coercion.number_allow_zero is False


def test_later_files_can_take_the_coercion_defaults_away(read: Read) -> None:
    config = read("coercion: {allow_lists: [a]}", "coercion: {allow_lists: null}").config
    assert config.coercion.allow_lists == ()


def test_ages_that_would_remove_everything_are_refused_or_warned_of(read: Read) -> None:
    for key in ("age", "upload_age", "dangling_age"):
        (line,) = refused(read, f"garbage-collector: {{{key}: 0}}")
        assert line.endswith("must be at least 1")
    loaded = read('garbage-collector: {age: "24"}')
    assert loaded.config.garbage_collector.age == 24
    assert any("garbage-collector.age: is 24 seconds" in line for line in loaded.warnings)


@pytest.mark.parametrize(
    ("url", "result"),
    [
        ("https://polytope.example.org/", "https://polytope.example.org"),
        ("http://[::1]:5000/base", "http://[::1]:5000/base"),
    ],
)
def test_a_public_url_ends_without_a_slash(url: str, result: str) -> None:
    assert FrontendSection(public_url=url).public_url == result


@pytest.mark.parametrize(
    "url",
    [
        *(
            "polytope",
            "//host",
            "ftp://host",
            "http://",
            "http://user:hunter2@host",
            "http://h?a=b",
        ),
        *("http://h#a", "http://h:99999", "http://h:x", "http://[::1", "http://h\n", "http://h:0"),
    ],
)
def test_a_public_url_that_cannot_begin_a_link_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FrontendSection.read({"public_url": url}, where="frontend")
    assert str(caught.value).startswith("frontend.public_url: must be an address such as ")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("origin", ["*", "https://a.example.org", "http://localhost:8080"])
def test_an_allowed_origin_is_a_star_or_an_origin(origin: str) -> None:
    assert FrontendSection(allow_origin=origin).allow_origin == origin


@pytest.mark.parametrize("origin", ["", "a.example.org", "https://a/b", "https://a, https://b"])
def test_other_origins_are_refused(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="an origin such as"):
        FrontendSection.read({"allow_origin": origin}, where="frontend")


def test_variables_for_slots_are_texts_with_names_that_can_be_set() -> None:
    section = WorkerSection.read({"environment": {"A": 1, "B": True, "C": "x"}}, where="worker")
    assert section.environment == {"A": "1", "B": "true", "C": "x"}
    with pytest.raises(ConfigurationError, match="variable names"):
        WorkerSection.read({"environment": {"A=B": "x"}}, where="worker")


EXAMPLE = """
version: "1"
developer: {disable_schema_check: true}
logging: {mode: json, level: INFO}
frontend: {server: gunicorn, handler: flask, bind_to: 0.0.0.0, port: 5000, proxy_support: true}
broker: {interval: 2}
worker: {poll_interval: 0.5}
deployment: {worker: {replicas: 8}}
garbage-collector: {interval: 5m, age: 48h, threshold: 500G, metric_age: 30d}
request_store: {mongodb: {uri: "mongodb://db:27017", username: polytope, password: "${PW}"}}
caching: {redis: {host: cache, port: 6379, db: 0}}
queue: {rabbitmq: {host: mq, port: 5672, name: polytope, user: polytope, password: "${PW}"}}
staging:
  s3: {host: "http://objects", port: 9000, bucket: results, access_key: "${PW}", secret_key: "${PW}",
       url: "https://download.example.org", should_set_policy: true}
authentication:
  example:
    authenticators:
      local:
        type: plain
        users:
          - {uid: alice, password: "${PW}", attributes: {ecmwf-email: alice@example.org}}
          - {uid: bob, password: "${PW}"}
    authorizers:
      local:
        type: plain
        roles: {operator: [alice], researcher: [alice, bob]}
        user-attributes: {"a*": {site: reading}}
federation:
  partner: {secret: "${PW}", allowed-realms: [partner]}
admin: {roles: {example: [operator]}}
coercion: {number_allow_zero: true, allow_lists: [levelist]}
datasources:
  model-base:                       # never used directly, only inherited
    type: fdb
    repr: recent forecasts
    defaults: {class: od, expver: 1, domain: g}
    match: {class: [od], stream: [oper, enfo], date: "0/to/-30", target: []}
    fdb_config: {type: remote, engine: remote, host: fdb-catalogue, port: 10000, schema: /etc/fdb/schema}
  recent: {parents: [model-base]}
  recent-pf:
    parents: [model-base]
    repr: recent ensemble
    match: {stream: enfo, type: pf}   # the scalar replaces the inherited list
    roles: {example: [operator]}
  archive:
    type: mars
    protocol: remote
    command: /usr/local/bin/mars
    timeout: 3600
    override_apikey: "${PW}"
    match: {class: [od, ea], date: [">30d"]}
    patch: {expect: any}
  features:
    type: polytope
    obey_schedule: true
    match: {class: [od], levtype: [sfc, pl]}
    gribjump_config: {type: remote, uri: "gribjump:9001"}
    datacube: {type: gribjump}
    options:
      pre_path: [class, expver]
      axis_config: [{axis_name: date, transformations: [{name: merge, linkers: [T, "00"]}]}]
  partner: {type: federated, url: "https://partner.example", secret: "${PW}", collection: climate}
  debug: {type: echo}
collections:
  forecasts:
    roles: {example: [researcher, operator]}
    limits: {total: 20, per-user: 4, per-role: {example: {operator: 10}}}
    datasources: [features, recent-pf, recent, {name: archive, match: {class: [ai]}}]
  climate: {roles: {example: [default]}, limits: {per-user: 2}, datasources: [partner]}
  debug: {roles: {example: [operator]}, datasources: [debug]}
"""


def test_a_whole_deployment_as_operators_write_it_loads(read: Read) -> None:
    loaded = read(EXAMPLE, environ={"PW": "hunter2"}, strict=True)
    config = loaded.config
    assert config.broker.max_queued == 8
    assert config.worker.poll_interval == 0.5
    assert config.garbage_collector.age == 48 * 3600
    assert config.garbage_collector.threshold == 500 << 30
    assert config.request_store is not None
    assert config.request_store.options["password"] == "hunter2"
    assert config.coercion.number_allow_zero
    assert config.coercion.allow_lists[-1] == "levelist"
    forecasts = config.collections["forecasts"]
    assert forecasts.limits.per_role == {"example": {"operator": 10}}
    features, recent_pf, recent, archive = forecasts.datasources
    assert features["options"]["axis_config"][0]["transformations"][0]["linkers"] == ["T", "00"]
    assert recent_pf["match"]["stream"] == "enfo"
    assert recent_pf["fdb_config"]["port"] == 10000
    assert recent["match"] == {
        "class": ["od"],
        "stream": ["oper", "enfo"],
        "date": "0/to/-30",
        "target": [],
    }
    assert archive["match"]["class"] == ["od", "ea", "ai"]
    assert archive["timeout"] == 3600


def test_the_examples_of_the_documentation_load(read: Read) -> None:
    text = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(examples) == 4
    for example in examples:
        without_files = re.sub(r"!file \S+", "a-key-of-some-length", example)
        read(without_files, environ={"BOB_PASSWORD": "x"}, strict=True)


def test_the_documentation_names_every_key() -> None:
    docs = Path(__file__).parents[3] / "docs"
    pages = ("configuration.md", "configuration-reference.md")
    text = "".join((docs / page).read_text(encoding="utf-8") for page in pages)
    keys = {info.alias or name for name, info in Config.model_fields.items()}
    for info in Config.model_fields.values():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys |= {field.alias or name for name, field in kind.model_fields.items()}
    for (abstraction, name), path in SECTIONS.items():
        model = section_of(abstraction, name)
        assert model is not None, path
        if abstraction in ("request_store", "queue", "staging", "caching"):
            keys |= set(model.model_fields)
    assert not {key for key in keys if not re.search(rf"[`.]{re.escape(key)}\b|# {key}", text)}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("fronted:\n", "1: fronted: unknown key; did you mean 'frontend'?"),
        ("frontend:\n  prot: ~\n", "2: frontend.prot: unknown key; did you mean 'port'?"),
        (
            "staging: {local: {root_dir: /x, root_dri: }}\n",
            "1: staging.local.root_dri: unknown key; did you mean 'root_dir'?",
        ),
        (
            "datasources: {e: {type: echo}}\n"
            "collections:\n  c: {roles: r, datasources: [{name: e, rolse: null}]}\n",
            "3: collections.c.datasources[0].rolse: unknown key; did you mean 'roles'?",
        ),
        (
            "datasources:\n  e: {type: dummy, chunks: }\n",
            "2: datasources.e.chunks: unknown key; did you mean 'chunk'?",
        ),
    ],
)
def test_an_unknown_key_without_a_value_is_told_too(read: Read, text: str, line: str) -> None:
    assert any(warning.endswith(f".yaml:{line}") for warning in read(text).warnings)
    with pytest.raises(ConfigurationError) as caught:
        read(text, strict=True)
    assert str(caught.value).endswith(f".yaml:{line}")
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_key_may_be_taken_away_again_by_null(read: Read) -> None:
    loaded = read("fronted: {port: 1}\n", "fronted: null\n", strict=True)
    assert not any("fronted" in warning for warning in loaded.warnings)


def test_a_password_that_was_cut_at_its_comma_is_noticed_and_not_told(read: Read) -> None:
    users = "[{uid: a, password: hunter2,topsecret}]"
    text = f"authentication: {{r: {{authenticators: {{x: {{type: plain, users: {users}}}}}}}}}\n"
    warning = next(warning for warning in read(text).warnings if "needs quotes" in warning)
    assert "authentication.r.authenticators.x.users[0].(a key): unknown key without" in warning
    with pytest.raises(ConfigurationError, match="text with a comma needs quotes") as caught:
        read(text, strict=True)
    for said in (warning, str(caught.value)):
        assert "topsecret" not in said
        assert "hunter2" not in said
