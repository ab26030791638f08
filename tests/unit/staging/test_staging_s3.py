"""Staging in a bucket: the contract, kept on two S3 servers that have nothing in common."""

from typing import Any

import pytest
from staging.s3_staging import new_bucket, opened

from polytope_server.staging import Staging
from polytope_server.testing.staging import StagingContract, StorageFullContract


@pytest.fixture
def bucket() -> str:
    return new_bucket()


@pytest.fixture
def server(radosgw: Any) -> Any:
    return radosgw


@pytest.fixture
def staging(server: Any, bucket: str) -> Staging:
    return opened(server, bucket=bucket, prefix="deep/er/", use_presigned_url=True)


@pytest.fixture
def again(server: Any, staging: Staging, bucket: str) -> Staging:
    return opened(server, bucket=bucket, prefix="deep/er/")


class TestOnRadosGw(StagingContract, StorageFullContract):
    """The contract, kept on Ceph, with signed links."""

    links_answer_head = False

    @pytest.fixture
    def full(self, radosgw: Any, bucket: str) -> Staging:
        staging = opened(radosgw, bucket=bucket)
        radosgw.limit(bucket, max_bytes=1 << 20)
        return staging


class TestOnSeaweedFs(StagingContract):
    """The contract, kept on SeaweedFS, with signed links."""

    links_answer_head = False

    @pytest.fixture
    def server(self, seaweedfs: Any) -> Any:
        return seaweedfs
