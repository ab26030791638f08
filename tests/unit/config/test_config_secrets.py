"""No secret is ever shown: not by `show`, not in an error, a warning or a repr."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from polytope_server.config.loading import Loaded
from polytope_server.config.schema import schema
from polytope_server.config.secrecy import looks_secret, masked
from polytope_server.config.show import show
from polytope_server.errors import ConfigurationError

Read = Callable[..., Loaded]

SECRETS = """
frontend: {signing_key: hunter2-signing-key-of-some-length, signing_keey: hunter2}
worker: {environment: {MARS_TOKEN: hunter2, SAFE: visible}}
request_store: {mongodb: {uri: "mongodb://user:hunter2@db/x", password: hunter2}}
queue: {rabbitmq: {password: "${PW}", host: mq, credentials: {a: [hunter2]}}}
staging: {s3: {access_key: hunter2, secret_key: !file key}}
caching: {redis: {url: "redis://:hunter2@cache"}}
federation: {peer: {secret: hunter2, allowed-realms: [p], pepper: hunter2}}
api-keys: {authenticator: {type: ecmwfapi, url: "https://api", pepper: hunter2}}
telemetry: {basic_auth: {users: [{name: u, password: hunter2}]}}
authentication:
  r:
    authenticators:
      local: {type: plain, users: [{uid: u, password: hunter2, attributes: {site: hunter2}}]}
      web: {type: jwt, cert_url: "https://c", client_id: i, client_secret: hunter2}
      kc: {type: keycloak, url: "https://c", client_id: i, keycloak_realm: r, client_secret: hunter2,
           proxy: "http://u:hunter2@proxy"}
datasources:
  m: {type: mars, override_apikey: hunter2, mars: {apiKey: hunter2, list: [{token: hunter2}]}}
  f: {type: federated, url: "https://u:hunter2@peer", secret: hunter2}
  e: {type: echo, pasword: hunter2}
collections: {c: {roles: r, datasources: [m, f, {name: e, apikey: hunter2}]}}
"""


@pytest.fixture
def loaded(read: Read, tmp_path: Path) -> Loaded:
    (tmp_path / "key").write_text("hunter2\n", encoding="utf-8")
    return read(SECRETS, environ={"PW": "hunter2"})


def test_show_hides_every_secret(loaded: Loaded) -> None:
    shown = "\n".join(show(loaded))
    assert "hunter2" not in shown
    assert "mongodb://***@db/x" in shown
    assert "SAFE: visible" in shown
    assert 'password: "***"  # environment PW in ' in shown
    assert 'secret_key: "***"  # file ' in shown


@pytest.mark.parametrize(
    "name",
    [
        *("password", "db_passwd", "ecmwf-apikey", "api_key", "apiKey", "secretKey", "access_key"),
        *("token", "MARS_TOKEN", "credentials", "Authorization", "key", "jwt", "override_apikey"),
    ],
)
def test_names_that_sound_like_secrets_are_known(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize("name", ["keyboard", "monkey", "author", "port", "compass", "uid", "path"])
def test_other_names_are_not_hidden(name: str) -> None:
    assert not looks_secret(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/path?a=b", "https://host/path?a=b"),
        ("mongodb://u:hunter2@a,b/x", "mongodb://***@a,b/x"),
        ("redis://:hun/ter@2@host:1", "redis://***@host:1"),
        ("https://hunter2@host", "https://***@host"),
        ("https://host/?token=hunter2&a=b", "https://host/?token=***&a=b"),
        ("host=db password=hunter2;port=1", "host=db password=***;port=1"),
        ("alice@example.org", "alice@example.org"),
    ],
)
def test_secrets_inside_of_texts_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_no_repr_no_warning_and_no_origin_holds_a_secret(loaded: Loaded) -> None:
    texts = [repr(loaded), str(loaded.config), repr(loaded.config), repr(loaded.tree)]
    texts += [
        repr(getattr(loaded.config, name))
        for name in type(loaded.config).model_fields
        if name not in ("api_keys", "federation", "telemetry", "authentication", "datasources")
    ]
    texts += [repr(realm) for realm in loaded.config.authentication.values()]
    texts += [repr(collection) for collection in loaded.config.collections.values()]
    texts += [*loaded.warnings, *loaded.origins, *loaded.origins.values()]
    assert "hunter2" not in "\n".join(texts)


def test_no_error_holds_a_value_that_may_be_a_secret(read: Read) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(
            """
            frontend: {signing_key: hunter2, port: hunter2, public_url: "http://u:hunter2@h"}
            logging: {mode: hunter2, level: hunter2}
            request_store: {sqlite: {path: {hunter: hunter2}}}
            queue: [hunter2]
            broker: hunter2
            authentication:
              r:
                authenticators:
                  a: {type: plain, users: [{uid: "a:b", password: {x: hunter2}}, hunter2]}
                  b: hunter2
            datasources: {e: {type: echo, match: {password: {x: hunter2}}, roles: [[hunter2]]}}
            collections: {c: {roles: {a: {b: hunter2}}, datasources: [e]}, d: hunter2}
            """
        )
    assert len(str(caught.value).splitlines()) > 12
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_pieces_of_a_hash_that_became_keys_are_not_told(read: Read) -> None:
    hashed = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$hunter2"
    users = f"[{{uid: u, password: {hashed}}}]"
    with pytest.raises(ConfigurationError, match="must be a whole Argon2 hash") as caught:
        read(f"authentication: {{r: {{authenticators: {{a: {{type: plain, users: {users}}}}}}}}}")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        read("frontend: {'p=4$c2FsdHNhbHQ$hunter2': 1}", strict=True)
    assert "frontend.(a key): unknown key" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_what_show_says_is_yaml_that_loads_to_the_same(read: Read, tmp_path: Path) -> None:
    text = """
    frontend: {bind_to: "10", port: 0, public_url: "https://a.example.org/x"}
    logging: {defaults: {"odd: name": "a: b # c", t: "true", n: "12", e: "", l: "x\\ny\\u2028", q: '"',
      z: [[1], {b: 2}]}}
    garbage-collector: {age: 36h}
    datasources:
      e: {type: echo, match: {a: ["0010", "no", "10:00", 1.50], b: []}, patch: {k: null}}
    collections: {c: {roles: {r: [a]}, datasources: [e, {name: e, patch: {"z": [1, 2]}}]}}
    """
    loaded = read(text)
    shown = "\n".join(show(loaded))
    # of a datasource nothing is left to inherit: the collection shows it whole
    again = read(shown, "datasources: {e: {}}")
    for section in ("frontend", "logging", "garbage_collector", "coercion"):
        assert getattr(again.config, section) == getattr(loaded.config, section)
    datasources = loaded.config.collections["c"].datasources
    shown_datasources = again.config.collections["c"].datasources
    assert len(datasources) == len(shown_datasources) == 2
    for written, found in zip(datasources, shown_datasources, strict=True):
        assert {key: found[key] for key in written} == written


def test_show_gives_the_origin_of_every_value(read: Read) -> None:
    lines = list(show(read("frontend: {port: '${P}'}", environ={"P": "7"})))
    assert any(line.startswith('  port: "7"  # environment P in ') for line in lines)
    assert "  threads: 16  # default" in lines
    assert "  long_poll: 5s  # default" in lines
    leaves = [line for line in lines if not line.endswith(":")]
    assert all("  # " in line for line in leaves)


def test_the_schema_describes_every_key_and_every_backend_of_ours() -> None:
    made = schema()
    assert json.loads(json.dumps(made)) == made
    definitions = made["$defs"]
    worker = definitions["WorkerSection"]["properties"]
    assert worker["slots"]["description"].startswith("Requests worked on at once")
    assert "10G" in worker["max_result"]["examples"]
    assert "garbage-collector" in made["properties"]
    queue = made["properties"]["queue"]
    assert (queue["minProperties"], queue["maxProperties"]) == (1, 1)
    assert queue["properties"]["sqlite"] == {"$ref": "#/$defs/SqliteQueueSection"}
    assert definitions["SqliteQueueSection"]["required"] == ["path"]
    assert "parents" in definitions["DatasourceSection"]["properties"]

    def references(part: object) -> list[str]:
        if isinstance(part, dict):
            own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
            return own + [r for value in part.values() for r in references(value)]
        return [r for item in part for r in references(item)] if isinstance(part, list) else []

    assert {r.removeprefix("#/$defs/") for r in references(made)} <= definitions.keys()


def test_of_back_ends_that_are_not_there_only_well_known_options_are_shown(read: Read) -> None:
    loaded = read(
        """
        datasources:
          m:
            type: mars
            command: /bin/mars
            opener: hunter2
            uri: mongodb://db/x
            username: joe
            port: 5672
            more: {where: [hunter2], host: other}
            match: {class: [od]}
            repr: tape
        collections: {c: {roles: r, datasources: [m]}}
        """
    )
    shown = "\n".join(show(loaded))
    assert "hunter2" not in shown
    for text in ("mongodb://db/x", "5672", "host: other"):
        assert text in shown
    for text in ("/bin/mars", "- od", "repr: tape", "mars"):
        assert text in shown
    assert "joe" not in shown
    assert loaded.config.collections["c"].datasources[0]["opener"] == "hunter2"
