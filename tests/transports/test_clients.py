"""boto3 clients are shared, and not kept for ever."""

from __future__ import annotations

from torch_s3dcp import S3ClientConfig, S3Credentials
from torch_s3dcp.transports import BotoTransport


def transport_to(port: int) -> BotoTransport:
    keys = S3Credentials("key", "secret")
    config = S3ClientConfig(endpoint_url=f"http://127.0.0.1:{port}", credentials=keys)
    return BotoTransport("us-east-1", config)


def test_clients_of_settings_that_nobody_uses_any_more_are_forgotten() -> None:
    first = transport_to(1).client
    often = transport_to(2).client
    assert transport_to(1).client is first
    for port in range(3, 23):
        assert transport_to(port).client is transport_to(port).client
        assert transport_to(2).client is often
    assert transport_to(1).client is not first
    assert first.meta.endpoint_url == "http://127.0.0.1:1", "who has it can still use it"
