"""The bucket, which is made when the server first answers."""

import logging
import threading
from collections.abc import Mapping
from typing import Any, Final

from polytope_server.config.staging import S3Section
from polytope_server.errors import BackendUnavailable, ConfigurationError
from polytope_server.staging.patience import Away, patiently
from polytope_server.staging.s3.calls import PATIENCE_S, Calls, Refusal
from polytope_server.staging.s3.policy import allow_reading

logger = logging.getLogger(__name__)

_NOWHERE: Final = "us-east-1"
"""The region of buckets that are made without a word about regions."""
_FIRST_LOOK_S: Final = 2.0
"""A process that starts has to tell soon what it waits for."""


class Bucket(Calls):
    """Calls to a bucket that is there: each of them makes it first, until that has succeeded once.

    Raises:
        ConfigurationError: a client cannot be made of this configuration.
    """

    def __init__(self, config: S3Section) -> None:
        super().__init__(config)
        self._config = config
        self._preparing = threading.Lock()
        self._is_prepared = False

    def open(self) -> None:
        """Make it now, if the server is there; does not wait for one that is not.

        Raises:
            ConfigurationError: it is there, and the operator must do something first.
        """
        quick = {"timeout": min(self.timeout_s, _FIRST_LOOK_S)}
        try:
            _is_there(Calls(self._config.model_copy(update=quick)))
            self._prepare()
        except BackendUnavailable as exc:
            if isinstance(exc, Refusal) and exc.is_the_operators:
                raise ConfigurationError(str(exc)) from exc
            logger.warning(
                "the staging is away; its bucket is looked after when it answers",
                extra={"cause": str(exc)},
            )

    def __call__(
        self,
        operation: str,
        *,
        patience_s: float = PATIENCE_S,
        cancelled: threading.Event | None = None,
        **parameters: Any,
    ) -> Mapping[str, Any]:
        if not self._is_prepared:
            patiently(self._prepare, patience_s=patience_s, cancelled=cancelled)
        return super().__call__(operation, patience_s=patience_s, cancelled=cancelled, **parameters)

    def _prepare(self) -> None:
        """Return if all is done, now or before.

        Raises: BackendUnavailable.
        """
        # One thread tries; the others wait for it no longer than they would have tried themselves.
        if not self._preparing.acquire(timeout=self.timeout_s):
            raise Away(f"staging: the bucket at {self.endpoint} is not ready")
        try:
            if not self._is_prepared:
                calls = Calls(self._config)
                _make(calls, region=self._config.region)
                if self._config.should_set_policy:
                    allow_reading(calls, prefix=self._config.prefix)
                self._is_prepared = True
        finally:
            self._preparing.release()


def _make(calls: Calls, *, region: str) -> None:
    """Make the bucket if it is not there; of several who do at the same time, all succeed."""
    if _is_there(calls):
        return
    where: dict[str, Any] = {}
    if region != _NOWHERE:
        where["CreateBucketConfiguration"] = {"LocationConstraint": region}
    try:
        calls("create_bucket", patience_s=calls.long_patience_s, **where)
    except Refusal as exc:
        if exc.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
        calls.look()
    else:
        logger.info("made the bucket", extra={"bucket": calls.bucket})


def _is_there(calls: Calls) -> bool:
    try:
        calls.look()
    except Refusal as exc:
        if exc.code != "NoSuchBucket":
            raise
        return False
    return True
