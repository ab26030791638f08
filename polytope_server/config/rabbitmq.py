"""Section of the queue on RabbitMQ."""

from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, StringConstraints, model_validator

from polytope_server.config.section import Duration, HomePath, Secret, Section, Text, Whole

_Name = Annotated[Text, StringConstraints(min_length=1, max_length=127)]


class RabbitMqSection(Section):
    """``queue.rabbitmq``"""

    host: Annotated[Text, StringConstraints(strip_whitespace=True, min_length=1)] = "localhost"
    """Where the server, or the load balancer before its nodes, is."""
    port: Annotated[Whole, Field(ge=1, le=65535)] = 5672
    """Where it listens; with `tls`, 5671 unless given."""
    virtual_host: _Name = "/"
    """In which everything of this deployment lies."""
    name: _Name = "default"
    """Of the queue. What else we make there begins with this name and a dot."""
    user: _Name = "guest"
    """Who logs in; needs configure, write and read on the names above. The server takes `guest` on
    loopback only, unless it was told otherwise."""
    password: Secret = SecretStr("guest")
    """Of the user."""
    queue_type: Literal["auto", "quorum", "classic"] = "auto"
    """Of a queue that is not there yet; `auto` is a quorum queue where the server has them. A queue that is
    there is used as it is."""
    keep_alive_interval: Annotated[Duration, Field(ge=1, le=3600)] = 30.0
    """Between heartbeats; a server that misses two is taken for gone."""
    timeout: Annotated[Duration, Field(ge=0.5, le=300)] = 5.0
    """How long the server may take to answer, before it counts as away."""
    tls: bool = False
    """Speak TLS, and verify the server's certificate."""
    ca_file: HomePath | None = None
    """Authorities, as PEM, that may vouch for the server, in place of the system's."""
    cert_file: HomePath | None = None
    """Our certificate, as PEM, for a server that wants one."""
    key_file: HomePath | None = None
    """The key of `cert_file`, if it is not in the same file."""
    tls_verify: bool = True
    """False takes any certificate from whoever answers, who then learns the password."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        given = [
            key
            for key in ("ca_file", "cert_file", "key_file")
            if getattr(self, key) is not None and not self.tls
        ]
        if given:
            raise ValueError(f"with tls: true where there is a {given[0]}")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("with a cert_file where there is a key_file")
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to connect to."""
        if self.tls and "port" not in self.model_fields_set:
            return self.host, 5671
        return self.host, self.port
