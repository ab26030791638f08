"""From the section of the configuration to what the driver wants."""

import math
import ssl
from pathlib import Path

import pika

from polytope_server.config.rabbitmq import RabbitMqSection
from polytope_server.errors import ConfigurationError


def parameters(config: RabbitMqSection, *, use: str) -> pika.ConnectionParameters:
    """Of a connection for this use, whose name the server shows.

    Raises:
        ConfigurationError: a file of certificates cannot be used.
    """
    host, port = config.address
    return pika.ConnectionParameters(
        host=host,
        port=port,
        virtual_host=config.virtual_host,
        credentials=pika.PlainCredentials(
            config.user, config.password.get_secret_value(), erase_on_connect=False
        ),
        heartbeat=math.ceil(config.keep_alive_interval),
        socket_timeout=config.timeout,
        stack_timeout=2 * config.timeout,
        ssl_options=pika.SSLOptions(_context(config), host) if config.tls else None,
        client_properties={"connection_name": f"polytope-server {config.name} {use}"},
    )


def _context(config: RabbitMqSection) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if config.ca_file is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(cafile=config.ca_file)
        except OSError as exc:
            raise _unusable("ca_file", config.ca_file, exc) from exc
    if not config.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if config.cert_file is not None:
        try:
            context.load_cert_chain(config.cert_file, config.key_file)
        except OSError as exc:
            raise _unusable("cert_file", config.cert_file, exc) from exc
    return context


def _unusable(key: str, path: Path, error: OSError) -> ConfigurationError:
    why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return ConfigurationError(f"queue.rabbitmq.{key}: {path} cannot be used: {why or 'not PEM'}")
