"""The reference of all keys as a page of Markdown, made from the models, so that it cannot be wrong."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

from polytope_server.config.builtin import RENAMED, SECTIONS
from polytope_server.config.schema import schema
from polytope_server.config.section import duration_text, size_text

EXAMPLES: Final[Mapping[str, str]] = {
    "logging": "logging: {mode: console, level: DEBUG}",
    "frontend": """\
        frontend:
          bind_to: 0.0.0.0
          port: 5000
          public_url: https://polytope.example.org
          signing_key: ${SIGNING_KEY}
          max_upload: 10G""",
    "broker": "broker: {interval: 5, max_queued: 80, max_attempts: 2, health_port: 5101}",
    "worker": """\
        worker:
          slots: 4
          timeout: 6h
          memory_limit: 8G
          environment: {OMP_NUM_THREADS: 1}""",
    "garbage-collector": "garbage-collector: {interval: 5m, age: 48h, threshold: 500G}",
    "reload": "reload: {interval: 10s, grace: 5m}",
    "usage": "usage: {path: /data/usage.jsonl, interval: 10s}",
    "tracing": "tracing: {endpoint: http://collector:4318/v1/traces, sample_ratio: 0.1}",
    "request_store.sqlite": "request_store: {sqlite: {path: /data/requests.sqlite}}",
    "request_store.mongodb": """\
        request_store:
          mongodb:
            uri: mongodb://db1.example.org,db2.example.org,db3.example.org/?replicaSet=rs0
            username: polytope
            password: ${MONGO_PASSWORD}
            auth_source: request_store
            tls_ca_file: /etc/polytope/ca.pem""",
    "queue.sqlite": "queue: {sqlite: {path: /data/queue.sqlite}}",
    "queue.rabbitmq": """\
        queue:
          rabbitmq:
            host: rabbitmq.example.org
            tls: true
            virtual_host: polytope
            name: polytope
            user: polytope
            password: ${RABBITMQ_PASSWORD}""",
    "staging.local": "staging: {local: {root_dir: /data/staging}}",
    "staging.polytope": """\
        staging:
          polytope:
            host: object-store
            port: 8000
            url: https://data.example.org
            token: ${STORE_TOKEN}
            root_dir: /data/objects""",
    "staging.s3": """\
        staging:
          s3:
            host: https://objects.internal.example.org
            port: 443
            bucket: results
            prefix: polytope/
            access_key: ${S3_ACCESS_KEY}
            secret_key: ${S3_SECRET_KEY}
            url: https://objects.example.org
            use_presigned_url: true""",
    "caching.memory": "caching: {memory: {max_entries: 50000}}",
    "caching.redis": """\
        caching:
          redis: {host: cache, port: 6379, db: 0, password: "${REDIS_PASSWORD}", tls: true}""",
    "caching.memcached": "caching: {memcached: {host: cache, port: 11211}}",
    "caching.mongodb": """\
        caching:
          mongodb:
            uri: mongodb://db:27017
            username: polytope
            password: "${MONGO_PASSWORD}"
            collection: cache""",
    "authentication": """\
        authentication:
          example:
            authenticators:
              local: {type: plain, users: [{uid: alice, password: "${ALICE_PASSWORD}"}]}
            authorizers:
              local: {type: plain, roles: {operator: [alice]}}""",
    "api-keys": """\
        api-keys:
          enabled: true
          lifetime: 30d
          max_per_user: 5
          authenticator: {type: ecmwfapi, url: https://api.ecmwf.int/v1}""",
    "federation": """\
        federation:
          partner: {secret: "${PARTNER_SECRET}", allowed-realms: [partner]}""",
    "authentication.ecmwfapi": """\
        authentication:
          ecmwf:
            authenticators:
              keys: {type: ecmwfapi, url: https://api.ecmwf.int/v1, timeout: 5}""",
    "authentication.jwt": """\
        authentication:
          example:
            authenticators:
              tokens:
                type: jwt
                cert_url: https://login.example.org/realms/data/protocol/openid-connect/certs
                issuer: https://login.example.org/realms/data
                client_id: polytope
                audience: [polytope]""",
    "authentication.openid_offline_access": """\
        authentication:
          example:
            authenticators:
              keys:
                type: openid_offline_access
                iam_url: https://login.example.org
                iam_realm: data
                cert_url: https://login.example.org/realms/data/protocol/openid-connect/certs
                public_client_id: polytope
                private_client_id: polytope-server
                private_client_secret: ${CLIENT_SECRET}
                jwt_aud: polytope
                jwt_iss: https://login.example.org/realms/data""",
    "authentication.keycloak": """\
        authentication:
          example:
            authenticators:
              passwords:
                type: keycloak
                url: https://login.example.org
                keycloak_realm: data
                client_id: polytope-server
                client_secret: ${CLIENT_SECRET}
                attributes: {ecmwf-email: email}""",
    "authentication.federation": """\
        authentication:
          partner:
            authenticators:
              peer: {type: federation, secret: "${PARTNER_SECRET}", allowed-realms: [partner]}""",
    "authentication.auth-o-tron": """\
        authentication:
          auth-o-tron: {url: https://auth.example.org, secret: "${AUTH_SECRET}"}""",
    "authentication.plain": """\
        authentication:
          example:
            authenticators:
              local:
                type: plain
                users:
                  - uid: alice
                    password: "${ALICE_PASSWORD}"
                    attributes: {site: reading}""",
    "authorization.plain": """\
        authentication:
          example:
            authorizers:
              local:
                type: plain
                roles: {operator: [alice], researcher: [alice, bob]}
                user-attributes: {"a*": {site: reading}}""",
    "authorization.ldap": """\
        authentication:
          example:
            authorizers:
              directory:
                type: ldap
                url: ldaps://directory.example.org
                search_base: DC=example,DC=org
                filter: OU=Polytope
                bind_dn: CN=polytope,OU=Service Accounts,DC=example,DC=org
                ldap_password: "${LDAP_PASSWORD}"
                uid_attribute: sAMAccountName""",
    "admin": "admin: {users: [polytope, ops]}",
    "coercion": "coercion: {allow_lists: [levelist], number_allow_zero: true}",
    "datasource": """\
        datasources:
          base: {type: echo, defaults: {class: od}, match: {class: [od, rd]}}
          recent: {parents: [base], match: {date: "0/to/-30"}, roles: {example: [operator]}}""",
    "datasource.fdb": """\
        datasources:
          forecasts:
            type: fdb
            match: {class: [od], stream: [oper, enfo]}
            fdb_config:
              type: local
              schema: /data/fdb/schema
              spaces: [{handler: Default, roots: [{path: /data/fdb/root}]}]""",
    "datasource.echo": "datasources: {echo: {type: echo}}",
    "datasource.dummy": "datasources: {dummy: {type: dummy, bytes_per_second: 10M}}",
    "datasource.raise": "datasources: {broken: {type: raise, error_message: the tape is broken}}",
    "collections": """\
        datasources: {forecasts: {type: echo}}
        collections:
          forecasts:
            roles: {example: [researcher]}
            limits: {total: 40, per-user: 4, per-role: {example: {operator: 10}}}
            datasources: [forecasts]""",
}
"""By place: configurations that can be loaded as they stand, each showing its section."""

_BACKENDS: Final = (
    "request_store",
    "queue",
    "staging",
    "caching",
    "authentication",
    "authorization",
)
_INTRODUCTION: Final = """\
# Reference of the configuration

Made from the server's own models by `polytope-server config reference`; how files become a configuration,
and what surrounds these keys, is in [configuration.md](configuration.md). A duration is `[Nd][Nh][Nm][Ns]`
or a number of seconds, a size a number with K, M, G, T or P behind it, 1024-based. A key without a default
may be left out unless it is *needed*.
"""


def reference() -> str:
    """The page."""
    whole = schema()
    definitions = whole["$defs"]
    lines = [_INTRODUCTION]
    for place, definition in _sections(whole):
        lines += _section(place, definition, definitions)
    return "\n".join(lines)


def example(place: str) -> str:
    """YAML that can be loaded, and that shows the section of that place."""
    return textwrap.dedent(EXAMPLES[place])


def places() -> list[str]:
    """All sections of the page, in its order."""
    return [place for place, _ in _sections(schema())]


def _sections(whole: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Place and schema: sections of the top, then back-ends, then what is in lists and mappings."""
    definitions = whole["$defs"]
    for name, part in whole["properties"].items():
        found = _referred(part, definitions)
        if found and name not in _BACKENDS:
            yield name, found
    yield "federation", definitions["PeerSection"]
    for group in _BACKENDS:
        if group == "authentication":
            yield group, definitions["RealmSection"]
        for (abstraction, name), path in SECTIONS.items():
            if abstraction == group:
                yield f"{group}.{name}", definitions[path.rpartition(":")[2]]
    yield "datasource", definitions["DatasourceSection"]
    for (abstraction, name), path in SECTIONS.items():
        if abstraction == "datasource":
            common = definitions["DatasourceSection"]["properties"]
            own = definitions[path.rpartition(":")[2]]
            keys = {key: value for key, value in own["properties"].items() if key not in common}
            yield f"datasource.{name}", {**own, "properties": keys}
    yield "collections", definitions["CollectionSection"]


def _referred(part: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    reference = part.get("$ref", "") or next(
        (each["$ref"] for each in part.get("allOf", ()) if "$ref" in each), ""
    )
    return definitions.get(reference.rpartition("/")[2])


def _section(
    place: str, definition: Mapping[str, Any], definitions: Mapping[str, Any]
) -> Iterator[str]:
    yield f"## {place}\n"
    old = [name for (group, name), new in RENAMED.items() if f"{group}.{new}" == place]
    if old:
        yield f"Older name: `{', '.join(old)}`.\n"
    rows = list(_rows(definition, definitions, prefix=""))
    if rows:
        yield "| key | type | default | meaning |"
        yield "| --- | --- | --- | --- |"
        yield from rows
        yield ""
    yield f"```yaml\n{example(place)}\n```\n"


def _rows(
    definition: Mapping[str, Any], definitions: Mapping[str, Any], *, prefix: str
) -> Iterator[str]:
    needed = frozenset(definition.get("required", ()))
    for key, part in definition.get("properties", {}).items():
        below = _referred(part, definitions) or _referred(_items(part), definitions)
        if below:
            dots = "[]." if "items" in part else "."
            yield from _rows(below, definitions, prefix=f"{prefix}{key}{dots}")
            continue
        if not _type(part):
            continue  # read by no process
        default = "*needed*" if key in needed else _default(part)
        meaning = part.get("description", "").replace("``", "`").replace("|", "\\|")
        yield f"| `{prefix}{key}` | {_type(part)} | {default} | {meaning} |"


def _items(part: Mapping[str, Any]) -> Mapping[str, Any]:
    items: Mapping[str, Any] = part.get("items", {})
    return items


def _is(part: Mapping[str, Any], kind: str) -> bool:
    examples = part.get("examples", ())
    return ("90s" if kind == "duration" else "10G") in examples


def _alternative(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a key may be besides null."""
    found = [each for each in part.get("anyOf", ()) if each.get("type") != "null"]
    return found[0] if len(found) == 1 else part


def _type(part: Mapping[str, Any]) -> str:
    part = _alternative(part)
    if "anyOf" in part:
        return "text, list or mapping"
    if _is(part, "duration"):
        return "duration"
    if _is(part, "size"):
        return "size"
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if part.get("format") == "password":
        return "secret"
    if part.get("format") == "path":
        return "path"
    kinds = part.get("type", "")
    names = {"array": "list", "object": "mapping", "boolean": "true or false", "string": "text"}
    if isinstance(kinds, list):
        return "text" if kinds[0] == "string" else "whole number"
    return names.get(kinds, "whole number" if kinds == "integer" else kinds)


def _default(part: Mapping[str, Any]) -> str:
    value = part.get("default")
    shape = _alternative(part)
    if value is None or value in ("", [], {}):
        return ""
    if _is(shape, "duration") and value:
        return f"`{duration_text(value)}`"
    if _is(shape, "size"):
        return f"`{size_text(value)}`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
