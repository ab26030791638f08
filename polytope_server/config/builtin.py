"""Which back-ends there are, and where the models of our own ones are, which import no driver."""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final

from polytope_server.config.section import Section, nearest
from polytope_server.errors import ConfigurationError
from polytope_server.registry import backends, load_backend

SECTIONS: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        ("request_store", "sqlite"): "polytope_server.config.embedded:SqliteStoreSection",
        ("request_store", "mongodb"): "polytope_server.config.mongodb:MongoStoreSection",
        ("queue", "sqlite"): "polytope_server.config.embedded:SqliteQueueSection",
        ("queue", "rabbitmq"): "polytope_server.config.rabbitmq:RabbitMqSection",
        ("staging", "local"): "polytope_server.config.staging:LocalStagingSection",
        ("staging", "polytope"): "polytope_server.config.staging:ObjectStoreSection",
        ("staging", "s3"): "polytope_server.config.staging:S3Section",
        ("caching", "memory"): "polytope_server.config.caching:MemoryCacheSection",
        ("caching", "redis"): "polytope_server.config.caching:RedisCacheSection",
        ("caching", "memcached"): "polytope_server.config.caching:MemcachedCacheSection",
        ("caching", "mongodb"): "polytope_server.config.caching:MongoCacheSection",
        ("authentication", "plain"): "polytope_server.config.identity:PlainAuthenticatorSection",
        ("authentication", "ecmwfapi"): "polytope_server.config.identity_services:EcmwfApiSection",
        ("authentication", "jwt"): "polytope_server.config.identity_services:JwtSection",
        (
            "authentication",
            "openid_offline_access",
        ): "polytope_server.config.identity_services:OpenidOfflineAccessSection",
        ("authentication", "keycloak"): "polytope_server.config.identity_services:KeycloakSection",
        (
            "authentication",
            "federation",
        ): "polytope_server.config.identity_services:FederationSection",
        (
            "authentication",
            "auth-o-tron",
        ): "polytope_server.config.identity_services:AuthOTronSection",
        ("authorization", "plain"): "polytope_server.config.identity:PlainAuthorizerSection",
        ("authorization", "ldap"): "polytope_server.config.ldap:LdapAuthorizerSection",
        ("datasource", "fdb"): "polytope_server.config.datasources:FdbConfig",
        ("datasource", "echo"): "polytope_server.config.datasources:EchoConfig",
        ("datasource", "dummy"): "polytope_server.config.datasources:DummyConfig",
        ("datasource", "raise"): "polytope_server.config.datasources:RaiseConfig",
    }
)
"""Abstraction and name to the class of the options."""

ANNOUNCED: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "datasource": frozenset(
            {"mars", "polytope", "gribjump", "webmars", "federated", "ionbeam"}
        ),
    }
)
"""Back-ends that files may name but that this release does not have, unless somebody has added them."""

REFUSED: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        ("request_store", "dynamodb"): "DynamoDB cannot hold the requests; use sqlite or mongodb",
        ("queue", "sqs"): "SQS cannot be the queue; use sqlite or rabbitmq",
    }
)
"""Back-ends of older servers that there will not be, and what to use."""

RENAMED: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {("staging", "s3_boto3"): "s3", ("caching", "globalvar"): "memory"}
)
"""Old names of back-ends."""


def section_of(abstraction: str, name: str) -> type[Section] | None:
    """The model of a back-end's options; None if the back-end is announced but not there yet.

    Raises:
        ConfigurationError: there is no such back-end, or somebody else's cannot be loaded.
    """
    if path := SECTIONS.get((abstraction, name)):
        module, _, attribute = path.partition(":")
        found: type[Section] = getattr(import_module(module), attribute)
        return found
    installed = backends(abstraction).names
    if name in installed:
        config = getattr(load_backend(abstraction, name), "Config", None)
        if not (isinstance(config, type) and issubclass(config, Section)):
            raise ConfigurationError(
                f"{abstraction}: {name!r} has no Config that is a subclass of {Section.__module__}.Section"
            )
        return config
    if (abstraction, name) in REFUSED:
        raise ConfigurationError(REFUSED[abstraction, name])
    announced = ANNOUNCED.get(abstraction, frozenset())
    if name in announced:
        return None
    raise ConfigurationError(
        f"there is no such back-end: {name!r}{nearest(name, installed | announced)}"
    )
