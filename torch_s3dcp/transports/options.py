"""What requests carry besides bucket, key and data, under botocore's names of parameters."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from ..config import S3ClientConfig


def payer(config: S3ClientConfig) -> dict[str, Any]:
    """What every request carries."""
    return {"RequestPayer": "requester"} if config.requester_pays else {}


def opening(config: S3ClientConfig) -> dict[str, Any]:
    """What every request carries that reads an object or takes part in writing one.

    Giving up a multipart upload, listings, removals and tagging take no customer's key.
    """
    return {**payer(config), **_customer_key(config)}


def storing(
    config: S3ClientConfig, storage_class: str | None = None, *, checksum: bool = True
) -> dict[str, Any]:
    """What a request carries besides that creates an object or a multipart upload."""
    options = {
        "StorageClass": storage_class or config.storage_class,
        "ServerSideEncryption": config.server_side_encryption,
        "SSEKMSKeyId": config.sse_kms_key_id,
        "ChecksumAlgorithm": config.checksum_algorithm if checksum else None,
        # %20 rather than + for a space: every server reads that.
        "Tagging": urlencode(config.tags, quote_via=quote, safe="") if config.tags else None,
        "ACL": config.acl,
    }
    return {name: value for name, value in options.items() if value is not None}


def copying(config: S3ClientConfig) -> dict[str, Any]:
    """What a copy carries: source and copy have the same customer's key, if any."""
    options = {**opening(config), **storing(config, checksum=False)}
    options.update(copied_from(config))
    if config.tags:
        # Without it S3 leaves the tags aside and takes those of the source.
        options["TaggingDirective"] = "REPLACE"
    return options


def copied_from(config: S3ClientConfig) -> dict[str, Any]:
    """What a request carries about the object that it copies from."""
    return _customer_key(config, "CopySource")


def _customer_key(config: S3ClientConfig, of: str = "") -> dict[str, Any]:
    """botocore encodes the key and adds its MD5."""
    if config.sse_customer_key is None:
        return {}
    return {
        f"{of}SSECustomerAlgorithm": "AES256",
        f"{of}SSECustomerKey": config.sse_customer_key,
    }
