"""Objects in a bucket of an S3 server.

::

    calls       what the server is asked: patience, time-outs, and its errors in our words
    bucket      the same, of a bucket that is made when the server first answers
    parts       how much of uploads is on its way, and in memory
    upload, reader, policy
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import quote

from polytope_server.config.staging import S3Section
from polytope_server.request import file_name
from polytope_server.staging import StoredObject, checked_name
from polytope_server.staging.s3.bucket import Bucket
from polytope_server.staging.s3.calls import Refusal, server_time
from polytope_server.staging.s3.parts import Parts
from polytope_server.staging.s3.reader import S3Reader
from polytope_server.staging.s3.upload import S3Upload

__all__ = ["S3Staging"]

_PAGE: Final = 1000
_RESOLUTION_S: Final = 1.0
"""Of times in headers, which are cut off."""


class S3Staging:
    """See `polytope_server.staging.Staging`. The bucket is made when the server first answers.

    Holds one chunk per reader, one part per writer, and the parts that are on their way: `max_threads` times
    `buffer_size` in all.

    Raises:
        ConfigurationError: the server is there, and the operator must do something first.
    """

    Config = S3Section

    def __init__(self, config: S3Section) -> None:
        self._config = config
        self._prefix = config.prefix
        self._calls = Bucket(config)
        self._parts = Parts(threads=config.max_threads, first_bytes=config.buffer_size)
        self._calls.open()

    def ping(self) -> None:
        self._calls.look()

    def create(self, name: str, *, media_type: str) -> S3Upload:
        headers = {
            "ContentType": media_type,
            "ContentDisposition": _attachment(file_name(checked_name(name))),
        }
        return S3Upload(
            self._calls,
            self._parts,
            self._key(name),
            headers=headers,
            first_bytes=self._config.buffer_size,
        )

    def read(self, name: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        if length is not None and length <= 0:
            self.stat(name)
            return iter(())
        try:
            return S3Reader(self._calls, self._key(name), offset=offset, length=length)
        except Refusal as exc:
            if exc.code == "InvalidRange":  # so there is such an object
                return iter(())
            raise

    def stat(self, name: str) -> StoredObject:
        found = self._calls("head_object", Key=self._key(name))
        return _stored(name, found["ContentLength"], found["LastModified"])

    def delete(self, name: str) -> None:
        self._calls("delete_object", Key=self._key(name))

    def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Sequence[StoredObject]:
        found: list[StoredObject] = []
        if prefix and not _is_name(prefix):
            return found  # no name begins like that
        where: dict[str, Any] = {"StartAfter": self._prefix + after} if after else {}
        while len(found) < limit:
            page = self._calls(
                "list_objects_v2",
                Prefix=self._prefix + prefix,
                Delimiter="/",  # what is below is somebody else's
                MaxKeys=min(_PAGE, limit - len(found)),
                **where,
            )
            for each in page.get("Contents", ()):
                name = each["Key"].removeprefix(self._prefix)
                if _is_name(name) and name > after:
                    found.append(_stored(name, each["Size"], each["LastModified"]))
            if not page.get("IsTruncated"):
                break
            where = {"ContinuationToken": page["NextContinuationToken"]}
        return found

    def remove_stale_uploads(self, *, age_s: float) -> int:
        """Removes those without a part for so long; their writers, if alive, hear of it."""
        removed = 0
        where: dict[str, Any] = {}
        while True:
            page = self._calls("list_multipart_uploads", Prefix=self._prefix, **where)
            newest = server_time(page) + _RESOLUTION_S - age_s
            for each in page.get("Uploads", ()):
                key, upload = each["Key"], each["UploadId"]
                is_ours = _is_name(key.removeprefix(self._prefix))
                if (
                    is_ours
                    and each["Initiated"].timestamp() <= newest
                    and self._last_part_at(key, upload) <= newest
                    and self._abort(key, upload)
                ):
                    removed += 1
            if not page.get("IsTruncated"):
                return removed
            where = {
                "KeyMarker": page["NextKeyMarker"],
                "UploadIdMarker": page["NextUploadIdMarker"],
            }

    def url(
        self,
        name: str,
        *,
        download_name: str,
        media_type: str,
        sha256: str,  # noqa: ARG002 -- S3 has no header for it
        expires_s: int,
    ) -> str | None:
        key = self._key(name)
        if self._config.use_presigned_url:
            return self._calls.link(
                Key=key,
                ResponseContentType=media_type,
                ResponseContentDisposition=_attachment(download_name),
                expires_s=max(1, min(expires_s, self._config.link_expiry_s)),
            )
        public = self._config.public_url
        return f"{public}/{self._config.bucket}/{quote(key)}" if public else None

    def free_bytes(self) -> None:
        """None, always: S3 does not tell."""

    def _key(self, name: str) -> str:
        return self._prefix + checked_name(name)

    def _last_part_at(self, key: str, upload: str) -> float:
        """When its last part came, in Unix seconds; zero if there is none, or no such upload any more."""
        latest, where = 0.0, 0
        while True:
            try:
                page = self._calls("list_parts", Key=key, UploadId=upload, PartNumberMarker=where)
            except Refusal as exc:
                if exc.code == "NoSuchUpload":
                    return 0.0
                raise
            times = [each["LastModified"].timestamp() for each in page.get("Parts", ())]
            latest = max(latest, *times) if times else latest
            if not page.get("IsTruncated"):
                return latest
            where = page["NextPartNumberMarker"]

    def _abort(self, key: str, upload: str) -> bool:
        """Have an upload forgotten; whether there was one."""
        try:
            self._calls("abort_multipart_upload", Key=key, UploadId=upload)
        except Refusal as exc:
            if exc.code == "NoSuchUpload":
                return False
            raise
        return True


def _is_name(text: str) -> bool:
    try:
        checked_name(text)
    except ValueError:
        return False
    return True


def _stored(name: str, size_bytes: int, modified_at: Any) -> StoredObject:
    # lists tell fractions of seconds that headers do not
    return StoredObject(
        name=name, size_bytes=size_bytes, modified_at=float(int(modified_at.timestamp()))
    )


def _attachment(name: str) -> str:
    return f'attachment; filename="{name}"'
