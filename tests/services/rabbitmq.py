"""RabbitMQ: one node that knows nobody else, with a name server of its own."""

import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pika
import pika.exceptions

from services.base import Server
from services.certificates import Certificates

USER: Final = "guest"
PASSWORD: Final = "guest"
_SCRIPTS: Final = Path("/usr/lib/rabbitmq/bin")
"""Those on the PATH are wrappers that become another user and change the directory."""
_CONFIGURATION: Final = """\
listeners.tcp.1 = 127.0.0.1:{port}
loopback_users = none
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 50MB
log.console = false
"""
_TLS: Final = """\
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {authority}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = {client_needed}
"""


class RabbitMq(Server):
    """A node with the user `USER`, who may do everything in every virtual host made by `virtual_host`.

    Args:
        tls: also listen with TLS, on ``port("tls")``, with a certificate of `certificates`.
        client_certificates: refuse whoever has none, there.
    """

    name = "rabbitmq"
    installation = "apt-get install rabbitmq-server"
    programs = ("epmd",)
    start_s = 45.0

    def __init__(
        self,
        directory: Path | None = None,
        *,
        tls: bool = False,
        client_certificates: bool = False,
    ) -> None:
        super().__init__(directory)
        self._tls, self._client_certificates = tls, client_certificates
        self.certificates = Certificates(self.directory / "certificates")

    @classmethod
    def program(cls, name: str) -> str:
        if (_SCRIPTS / name).exists():
            return str(_SCRIPTS / name)
        return super().program(name)

    @classmethod
    def check(cls) -> None:
        cls.program("rabbitmq-server")
        super().check()

    # --- life

    def _launch(self) -> None:
        self._write_configuration()
        # Otherwise the node starts one as a daemon, which outlives everything.
        epmd = ("-port", str(self.port("epmd")), "-address", "127.0.0.1")
        self._spawn("epmd", [self.program("epmd"), *epmd])
        self._spawn(
            "rabbitmq",
            [self.program("rabbitmq-server")],
            environment=self._environment(),
            with_us=signal.SIGTERM,  # to a shell, which passes it on
        )

    def _write_configuration(self) -> None:
        cookie = self.directory / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(secrets.token_hex(16))
            cookie.chmod(0o400)
        (self.directory / "enabled_plugins").write_text("[].")
        text = _CONFIGURATION.format(port=self.port())
        if self._tls:
            own = self.certificates.issued("localhost")
            text += _TLS.format(
                port=self.port("tls"),
                authority=self.certificates.authority,
                certificate=own.certificate,
                key=own.key,
                client_needed=str(self._client_certificates).lower(),
            )
        (self.directory / "rabbitmq.conf").write_text(text)

    def _environment(self) -> dict[str, str]:
        here = self.directory
        return {
            "RABBITMQ_NODENAME": f"t{self.port()}@localhost",
            "RABBITMQ_DIST_PORT": str(self.port("distribution")),
            "ERL_EPMD_PORT": str(self.port("epmd")),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(here / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(here / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(here / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(here / "mnesia"),
            "RABBITMQ_LOG_BASE": str(here / "log"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(here / "gen"),
            "RABBITMQ_SCHEMA_DIR": str(here / "schema"),
            "RABBITMQ_PID_FILE": str(here / "pid"),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _answers(self) -> bool:
        with self.connected() as connection:
            connection.channel()
        return True

    def stop(self) -> None:
        """The name server last: the node says goodbye to it."""
        node = self._children.get("rabbitmq")
        if node is not None and node.poll() is None:
            node.send_signal(signal.SIGTERM)
            try:
                node.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.kill()
        super().stop()

    def log(self) -> str:
        files = sorted((self.directory / "log").glob("*.log"))
        return "\n".join([super().log(), *(file.read_text(errors="replace") for file in files)])

    # --- for tests

    @contextmanager
    def connected(self, virtual_host: str = "/") -> Iterator[pika.BlockingConnection]:
        """A connection of its own, for what an operator does by hand."""
        connection = pika.BlockingConnection(
            pika.ConnectionParameters(
                "127.0.0.1",
                self.port(),
                virtual_host,
                pika.PlainCredentials(USER, PASSWORD),
                socket_timeout=5,
                stack_timeout=10,
            )
        )
        try:
            yield connection
        finally:
            with suppress(pika.exceptions.AMQPError):  # a test may have killed the node meanwhile
                connection.close()

    def virtual_host(self) -> str:
        """A new one, in which there is nothing."""
        name = f"test-{secrets.token_hex(6)}"
        self.control("add_vhost", name)
        self.control("set_permissions", "-p", name, USER, ".*", ".*", ".*")
        return name

    def control(self, *arguments: str) -> str:
        """What ``rabbitmqctl`` says to that. Takes half a second and more."""
        return subprocess.run(
            [self.program("rabbitmqctl"), *arguments],
            cwd=self.directory,
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": str(self.directory),
                **self._environment(),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
