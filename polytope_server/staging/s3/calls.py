"""Calls to one bucket of an S3 server, in our words and with our patience."""

import functools
import logging
import os
import re
import ssl
import threading
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, Final

import boto3.session
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectionError,  # noqa: A004 -- its name for all that goes wrong on the way there
    HTTPClientError,
    ReadTimeoutError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from polytope_server.config.staging import S3Section
from polytope_server.errors import (
    BackendUnavailable,
    ConfigurationError,
    ObjectNotFound,
    StorageFull,
)
from polytope_server.staging.patience import Away, patiently

PATIENCE_S: Final = 2.0
"""How long a call is tried again: enough for a connection that was cut."""
CONNECT_S: Final = 5.0

_CONNECTIONS: Final = 256  # idle ones that are kept: as many as there ever were at once
_FULL: Final = frozenset(
    {
        "QuotaExceeded",
        "InsufficientStorage",
        "StorageFull",
        "XMinioStorageFull",
        "XMinioAdminBucketQuotaExceeded",
    }
)
_PASSING: Final = frozenset(
    {
        "InternalError",
        "ServiceUnavailable",
        "SlowDown",
        "RequestTimeout",
        "Throttling",
        "ThrottlingException",
        "OperationAborted",
    }
)
_CLOCKS: Final = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_OPERATORS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "InvalidAccessKeyId": "does not know the access key; see staging.s3.access_key",
        "SignatureDoesNotMatch": "does not accept our signature; staging.s3.secret_key is not the one that "
        "belongs to the access key, or something on the way changes what is signed",
        "AccessDenied": "does not allow this to us; see the permissions that staging needs, in "
        "docs/backends.md",
        "NoSuchBucket": "has no such bucket; see staging.s3.bucket",
        "InvalidBucketName": "does not take the name of the bucket; see staging.s3.bucket",
        "BucketAlreadyExists": "has a bucket of that name that is not ours; see staging.s3.bucket",
        "TooManyBuckets": "allows us no more buckets; see staging.s3.bucket",
        "AuthorizationHeaderMalformed": "is of another region; see staging.s3.region",
        "IllegalLocationConstraintException": "is of another region; see staging.s3.region",
        "InvalidLocationConstraint": "knows no such region; see staging.s3.region",
        "PermanentRedirect": "has the bucket in another region; see staging.s3.region and staging.s3.host",
    }
)
"""What the operator can put right, by S3's name of it."""
_UNTRUSTED: Final = re.compile(
    r"certificate verify failed: (?P<failed>.*?)(?: \(_ssl|$)|(?P<other>host ?name '.*' doesn't match .*)",
    re.IGNORECASE,
)
_LOOK: Final = "list_objects_v2"
_CERTIFICATE: Final = "certificate"
_NO_TLS: Final = "no TLS"


class Refusal(BackendUnavailable):
    """The server has answered, and it was no. `code` is S3's name for why."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def is_the_operators(self) -> bool:
        """Whether no time puts it right, but the configuration, here or there."""
        return self.code in _OPERATORS or self.code in (_CERTIFICATE, _NO_TLS)


class Calls:
    """What the server of a configuration is asked, always about its bucket. Safe between threads.

    Raises:
        ConfigurationError: a client cannot be made of this configuration.
    """

    def __init__(self, config: S3Section) -> None:
        self.endpoint, self.bucket = config.endpoint, config.bucket
        self._prefix = config.prefix
        self.timeout_s = config.timeout
        self.long_patience_s = 1.5 * config.timeout
        """Where much would be lost otherwise: enough for a server to be started again, or for another attempt
        when the first one has not been answered."""
        session = _session()
        self._client = _client(session, config, self.endpoint)
        public = config.public_url
        self._public = _client(session, config, public) if public else self._client

    def __call__(
        self,
        operation: str,
        *,
        patience_s: float = PATIENCE_S,
        cancelled: threading.Event | None = None,
        **parameters: Any,
    ) -> Mapping[str, Any]:
        """One call, again if the server is away for a moment; so it must do no harm twice.

        Args:
            operation: S3's, as boto3 spells it.
            patience_s, cancelled: see `patiently`.

        Raises:
            ObjectNotFound, StorageFull, BackendUnavailable
            Refusal: for any other reason that the server gives.
        """
        call = getattr(self._client, operation)

        def attempt() -> Mapping[str, Any]:
            if "Body" in parameters:
                parameters["Body"].seek(0)  # an earlier attempt may have sent some of it
            try:
                answer: Mapping[str, Any] = call(Bucket=self.bucket, **parameters)
            except ClientError as exc:
                raise self._refused(operation, exc) from exc
            except SSLError as exc:
                raise self._without_tls(exc) from exc
            except (ConnectionError, HTTPClientError) as exc:
                raise self._away(exc) from exc
            except (BotoCoreError, ResponseParserError) as exc:
                raise BackendUnavailable(
                    f"staging: what answers at {self.endpoint} is no S3 server"
                ) from exc
            return answer

        return patiently(attempt, patience_s=patience_s, cancelled=cancelled)

    def look(self) -> None:
        """Return if the bucket is there and we may look into it; else its errors say best why not."""
        found = self(_LOOK, Prefix=self._prefix, MaxKeys=1, patience_s=0.0)
        if found.get("Name") != self.bucket:
            raise BackendUnavailable(f"staging: what answers at {self.endpoint} is no S3 server")

    def link(self, *, expires_s: int, **parameters: Any) -> str:
        """A signed link to get an object, by the server's public address. Asks nobody."""
        return str(
            self._public.generate_presigned_url(
                "get_object", Params={"Bucket": self.bucket, **parameters}, ExpiresIn=expires_s
            )
        )

    def _refused(self, operation: str, error: ClientError) -> Exception:
        """What the server's no means to us."""
        told = error.response.get("Error", {})
        code = str(told.get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if not code or code.isdigit():
            # an answer to HEAD says no more than its status; neither does what is no S3 server
            if status < 500 and operation != _LOOK:
                self.look()  # which is told why not
            if status == 404 and operation in ("head_object", "get_object"):
                return ObjectNotFound("There is no such object in staging.")
        who = f"staging: the S3 server at {self.endpoint}"
        if code == "NoSuchKey":
            return ObjectNotFound("There is no such object in staging.")
        if code in _FULL or status == 507:
            return StorageFull(f"{who} has no room in the bucket {self.bucket!r}: {code}")
        if code in _PASSING or status >= 500 or status == 429:
            reason = f"{status}, or is no S3 server" if not code or code.isdigit() else code
            return Away(f"{who} is not ready: {reason}")
        if code in _CLOCKS:
            text = "finds that our clocks differ; both machines must have the right time"
        else:
            text = _OPERATORS.get(code, f"answered {status} {code}")
            if code == "NoSuchBucket" and operation == "create_bucket":
                # Ceph does so with a Host that is not the name it was given
                text = (
                    "takes the host for the name of a bucket; in staging.s3.host, write the name that the "
                    "server itself knows (rgw dns name of Ceph), or its IP address"
                )
        return Refusal(f"{who} {text} ({operation}, bucket {self.bucket!r})", code=code)

    def _away(self, error: Exception) -> Away:
        match error:
            case ReadTimeoutError():
                how = f"has not answered for {self.timeout_s:g} seconds"
            case ConnectionClosedError() if self.endpoint.startswith("http:"):
                how = "closes the connection without an answer; if it speaks TLS only, see staging.s3.host"
            case ConnectionClosedError():
                how = "closes the connection without an answer"
            case _:
                how = "does not answer"
        return Away(f"staging: the S3 server at {self.endpoint} {how}")

    def _without_tls(self, error: SSLError) -> Exception:
        why = str(error)
        found = _UNTRUSTED.search(why)
        if found:
            return Refusal(
                f"staging: the certificate of the S3 server at {self.endpoint} is not trusted: "
                f"{found['failed'] or found['other']}; see staging.s3.host and staging.s3.ca_file",
                code=_CERTIFICATE,
            )
        if any(each in why for each in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")):
            return Refusal(
                f"staging: what answers at {self.endpoint} speaks no TLS; see staging.s3.host and "
                "staging.s3.use_ssl",
                code=_NO_TLS,
            )
        return self._away(error)


def server_time(answer: Mapping[str, Any]) -> float:
    """When that was answered by the server's clock, in whole seconds, or by ours if it did not say."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return float(int(time.time()))


@functools.cache
def _session() -> boto3.session.Session:
    """One that reads neither AWS's variables of who we are nor files in somebody's home directory.

    It has read the description of S3, which takes most of the time that making a client takes.
    """
    nowhere = (None, None, os.devnull, None)
    variables = {
        "profile": (None, None, None, None),
        "config_file": nowhere,
        "credentials_file": nowhere,
    }
    # it writes the signature of each link, and all that it is of: with both, everybody has the link
    logging.getLogger("botocore.auth").setLevel(logging.INFO)
    return boto3.session.Session(botocore_session=botocore.session.Session(session_vars=variables))


def _client(session: boto3.session.Session, config: S3Section, endpoint: str) -> Any:
    """boto3's client; all that could come from the environment instead is said here."""
    access_key = config.access_key.get_secret_value()
    is_tls = endpoint.startswith("https:")
    options: dict[str, Any] = {
        "signature_version": "s3v4" if access_key else UNSIGNED,
        "s3": {
            "addressing_style": config.addressing_style,
            # TLS protects the bytes; without it, their hash in the signature does
            "payload_signing_enabled": not is_tls,
            "use_accelerate_endpoint": False,
            "us_east_1_regional_endpoint": "regional",
        },
        # servers older than these checksums refuse them, or store what goes around the bytes
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "connect_timeout": min(CONNECT_S, config.timeout),
        "read_timeout": config.timeout,
        # we have a patience of our own, and two would multiply
        "retries": {"mode": "standard", "total_max_attempts": 1},
        "max_pool_connections": _CONNECTIONS,
        "proxies": {},
        "use_dualstack_endpoint": False,
        "use_fips_endpoint": False,
        "ignore_configured_endpoint_urls": True,
        "disable_request_compression": True,
        "tcp_keepalive": True,
    }
    try:
        return session.client(
            "s3",
            region_name=config.region,
            endpoint_url=endpoint,
            # given even if nothing is signed: else they are looked for
            aws_access_key_id=access_key or "nobody",
            aws_secret_access_key=config.secret_key.get_secret_value() or "nothing",
            verify=_verify(config),
            config=Config(**options),
        )
    except (BotoCoreError, ValueError) as exc:
        raise ConfigurationError(f"staging.s3: {exc}") from exc


def _verify(config: S3Section) -> bool | str:
    """What boto3 takes for it."""
    if not config.verify or config.ca_file is None:
        return config.verify
    try:
        ssl.create_default_context(cafile=config.ca_file)
    except OSError as exc:  # of which those of TLS are a kind
        raise ConfigurationError(
            f"staging.s3.ca_file: must be a file of certificates that can be read: {exc.strerror}"
        ) from exc
    return str(config.ca_file)
