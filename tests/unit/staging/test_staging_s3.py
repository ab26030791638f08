"""Staging in a bucket: the contract, kept on two S3 servers that have nothing in common."""

import uuid
from collections.abc import Mapping
from typing import Any

import pytest
from s3_staging import new_bucket, opened

from polytope_server.staging import Staging
from polytope_server.testing.staging import StagingContract, StorageFullContract


@pytest.fixture(scope="module")
def bucket() -> str:
    return new_bucket()


class S3Contract(StagingContract):
    """With signed links, a prefix of each test's own, and one bucket for all of them."""

    links_answer_head = False

    @pytest.fixture
    def place(self, bucket: str) -> Mapping[str, str]:
        return {"bucket": bucket, "prefix": f"tests/{uuid.uuid4().hex}/"}

    @pytest.fixture
    def staging(self, server: Any, place: Mapping[str, str]) -> Staging:
        return opened(server, **place, use_presigned_url=True)

    @pytest.fixture
    def again(self, server: Any, place: Mapping[str, str]) -> Staging:
        return opened(server, **place)


class TestOnRadosGw(S3Contract, StorageFullContract):
    """The contract, kept on Ceph."""

    @pytest.fixture
    def server(self, radosgw: Any) -> Any:
        return radosgw

    @pytest.fixture
    def full(self, radosgw: Any) -> Staging:
        bucket = new_bucket()
        staging = opened(radosgw, bucket=bucket)
        radosgw.limit(bucket, max_bytes=1 << 20)
        return staging


class TestOnSeaweedFs(S3Contract):
    """The contract, kept on SeaweedFS."""

    @pytest.fixture
    def server(self, seaweedfs: Any) -> Any:
        return seaweedfs
