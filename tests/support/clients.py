"""What tests of S3Client read and write."""

from __future__ import annotations

from typing import Any

from torch_s3dcp import S3Client, S3ClientConfig

BUCKET, KEY = "bucket", "key"
BLOB = bytes((5 * i + i // 256) % 256 for i in range(3000))
MIB = 1024 * 1024


def client_of(transport: Any, max_attempts: int = 10) -> S3Client:
    return S3Client(transport=transport, s3client_config=S3ClientConfig(max_attempts=max_attempts))
