"""The configurations in examples/, and one as operators of the previous server have it."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from polytope_server.cli import main
from polytope_server.config.builtin import ANNOUNCED
from polytope_server.config.loading import Loaded, load
from polytope_server.errors import ConfigurationError

DIRECTORY = Path(__file__).parents[3] / "examples"
SETS = (
    ["one-machine.yaml"],
    ["cluster.yaml"],
    ["cluster.yaml", "cluster-identity.yaml"],
)
VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
HASH = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo"
NOT_YET = "is not part of this release; its options are not checked"

Read = Callable[..., Loaded]


def names(files: Sequence[str]) -> set[str]:
    """The variables that these files use."""
    return {
        name
        for file in files
        for line in (DIRECTORY / file).read_text().splitlines()
        for name in VARIABLE.findall(line.partition("# ")[0])
    }


def environ(files: Sequence[str]) -> dict[str, str]:
    known = {"ALICE_PASSWORD": HASH, "BOB_PASSWORD": HASH}
    return {name: known.get(name, f"the-secret-in-{name}") for name in names(files)}


def loaded(*files: str) -> Loaded:
    paths = [DIRECTORY / file for file in files]
    return load(paths, strict=True, environ=environ(files), system_file=DIRECTORY / "none")


def surprises(warnings: Sequence[str]) -> list[str]:
    """All but those that a back-end is still to come."""
    there_will_be = {name for group in ANNOUNCED.values() for name in group}
    return [
        line
        for line in warnings
        if not (NOT_YET in line and any(f"'{name}'" in line for name in there_will_be))
    ]


@pytest.mark.parametrize("files", SETS, ids=" and ".join)
def test_an_example_is_accepted_without_a_warning(
    files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environ(files).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("POLYTOPE_SYSTEM_CONFIG", "")
    arguments = [part for file in files for part in ("-f", str(DIRECTORY / file))]
    with pytest.raises(SystemExit) as ended:
        main(["config", "check", "--strict", *arguments])
    output = capsys.readouterr()
    assert ended.value.code in (0, None), output.err
    assert "The configuration is good" in output.out
    assert surprises(output.err.splitlines()) == []


@pytest.mark.parametrize("files", SETS, ids=" and ".join)
def test_the_head_of_an_example_says_which_variables_it_needs(files: list[str]) -> None:
    file = files[-1]
    head = (DIRECTORY / file).read_text().partition("\n\n")[0]
    assert set(re.findall(r"\b[A-Z0-9_]+_(?:PASSWORD|KEY|SECRET)\b", head)) == names([file])


@pytest.mark.parametrize("name", sorted({name for files in SETS for name in names(files)}))
def test_a_variable_that_is_not_set_is_told(name: str) -> None:
    files = next(files for files in SETS if name in names(files))
    without = {key: value for key, value in environ(files).items() if key != name}
    paths = [DIRECTORY / file for file in files]
    with pytest.raises(ConfigurationError, match=name):
        load(paths, strict=True, environ=without, system_file=DIRECTORY / "none")


def test_the_cluster_stands_on_its_four_servers_and_users_may_do_what_they_should() -> None:
    config = loaded("cluster.yaml").config
    chosen = [config.request_store, config.queue, config.staging, config.caching]
    assert [choice and choice.name for choice in chosen] == ["mongodb", "rabbitmq", "s3", "redis"]
    both = loaded("cluster.yaml", "cluster-identity.yaml").config
    assert list(both.authentication) == ["example", "staff"], "both realms are there"
    assert both.api_keys.lifetime == 30 * 86400, "the later file wins"
    assert both.api_keys.max_per_user == config.api_keys.max_per_user
    roles = both.collections["forecasts"].roles
    assert isinstance(roles, dict)
    assert {"example", "staff", "partner"} == set(roles)
    assert both.collections["forecasts"].limits.total == 80
    (datasource,) = both.collections["reruns"].datasources
    assert datasource["match"]["class"] == ["rd"], (
        "no more than it says: what is inherited is replaced"
    )


def test_every_example_is_named_in_the_readme() -> None:
    text = (DIRECTORY / "README.md").read_text()
    for file in DIRECTORY.glob("*.yaml"):
        assert f"]({file.name})" in text
        assert any(file.name in files for files in SETS), "it is tested"


# --- the previous server

PREVIOUS = """\
version: "1"
developer: {disable_schema_check: true}
logging: {mode: json, level: DEBUG}
frontend: {server: gunicorn, handler: falcon, bind_to: 0.0.0.0, port: 32001, proxy_support: true}
broker: {interval: 5}
worker: {poll_interval: 0.2}
deployment: {worker: {replicas: 12}}
garbage-collector: {interval: 10m, age: 72h, threshold: 1T, metric_age: 14d}
request_store:
  mongodb: {uri: "mongodb://store:27017", username: server, password: "${MONGO}", collection: all-requests}
caching: {redis: {host: memory, port: 6380, db: 1}}
queue: {rabbitmq: {host: broker, port: 5673, name: work, user: server, password: "${RABBIT}"}}
staging:
  s3:
    host: http://minio
    port: 9001
    bucket: fields
    access_key: ${ACCESS}
    secret_key: ${SECRET}
    url: https://data.weather.example
    should_set_policy: true
authentication:
  institute:
    authenticators:
      file:
        type: plain
        users:
          - {uid: carol, password: "${CAROL}", attributes: {ecmwf-email: carol@weather.example}}
          - {uid: dave, password: "${DAVE}"}
    authorizers:
      file: {type: plain, roles: {staff: [carol], guest: [carol, dave]}, user-attributes: {"d*": {site: lab}}}
federation:
  neighbour: {secret: "${PEER}", allowed-realms: [neighbour]}
admin: {roles: {institute: [staff]}}
coercion: {number_allow_zero: true, allow_lists: [levelist]}
datasources:
  base:
    type: fdb
    repr: the operational archive
    defaults: {class: od, expver: 1, domain: g}
    match: {class: [od], stream: [oper, enfo], date: "0/to/-10", target: []}
    fdb_config: {type: remote, engine: remote, host: catalogue, port: 10001, schema: /etc/fdb/schema}
  last-days: {parents: [base]}
  members:
    parents: [base]
    repr: members of the ensemble
    match: {stream: enfo, type: pf}
    roles: {institute: [staff]}
  tapes:
    type: mars
    protocol: remote
    command: /opt/mars/bin/mars
    timeout: 7200
    override_email: robot@weather.example
    override_apikey: "${TAPES}"
    match: {class: [od, rd], date: [">10d"]}
    patch: {expect: any}
  points:
    type: polytope
    repr: points and polygons
    obey_schedule: true
    defaults: {expver: "0001", domain: g}
    match: {class: [od], stream: [oper], levtype: [sfc]}
    gribjump_config: {type: remote, uri: "gribjump:9002"}
    datacube: {type: gribjump}
    options:
      pre_path: [class, expver, levtype, stream, type]
      compressed_axes_config: [longitude, latitude, levtype, step, date, domain, expver, param]
      axis_config:
        - {axis_name: date, transformations: [{name: merge, other_axis: time, linkers: [T, "00"]}]}
        - axis_name: values
          transformations: [{name: mapper, type: octahedral, resolution: 640, axes: [latitude, longitude]}]
        - {axis_name: step, transformations: [{name: type_change, type: int}]}
  neighbour:
    type: federated
    url: https://polytope.neighbour.example
    port: 443
    secret: ${PEER}
    collection: seas
  try-it: {type: echo}
collections:
  weather:
    roles: {institute: [guest, staff]}
    limits: {total: 30, per-user: 2, per-role: {institute: {staff: 6}}}
    datasources: [points, members, last-days, {name: tapes, match: {class: [ai]}}]
  seas: {roles: {institute: [default]}, limits: {per-user: 1}, datasources: [neighbour]}
  try-it: {roles: {institute: [staff]}, datasources: [try-it]}
"""
"""Not a real one, but with the keys that real ones have."""

METRIC_STORE = """\
metric_store:
  mongodb: {uri: "mongodb://store:27017", username: server, password: "${MONGO}", collection: metrics}
"""
SECRETS = {name: f"the-secret-in-{name}" for name in VARIABLE.findall(PREVIOUS)}


def test_a_file_of_the_previous_server_is_accepted_and_means_the_same(read: Read) -> None:
    found = read(PREVIOUS, environ=SECRETS)
    config = found.config
    assert not any("unknown key" in line for line in found.warnings)
    assert config.frontend.port == 32001
    assert config.broker.max_queued == 12
    assert config.garbage_collector.age == 3 * 86400
    assert config.garbage_collector.threshold == 1 << 40
    chosen = {
        name: getattr(config, name) for name in ("request_store", "queue", "staging", "caching")
    }
    written: dict[str, Any] = yaml.safe_load(PREVIOUS)
    for name, choice in chosen.items():
        ((backend, options),) = written[name].items()
        assert choice.name == backend
        assert choice.options.keys() == options.keys()
    (peer,) = config.federation.values()
    assert peer.allowed_realms == ("neighbour",)
    weather = config.collections["weather"]
    assert (weather.limits.total, weather.limits.per_user) == (30, 2)
    assert [each["name"] for each in weather.datasources] == [
        "points",
        "members",
        "last-days",
        "tapes",
    ]
    tapes = weather.datasources[-1]
    assert set(tapes["match"]["class"]) == {"od", "rd", "ai"}


def test_all_that_a_file_of_the_previous_server_is_told_is_what_changed(read: Read) -> None:
    """Each line is something that is not done here (yet), and no more is wrong with the file."""
    found = read(PREVIOUS, environ=SECRETS, strict=True)
    told = surprises(found.warnings)
    changes = ("not read: ", "which is its name now", "put it between quotes")
    assert [line for line in told if not any(change in line for change in changes)] == []


def test_of_its_metric_store_it_is_told_that_there_is_none(read: Read) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(PREVIOUS, METRIC_STORE, environ=SECRETS)
    (line,) = str(caught.value).splitlines()
    assert "metric_store: there is no metric store any more; take this section away" in line
