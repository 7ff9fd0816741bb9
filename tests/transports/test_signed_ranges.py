"""Ranges by signed URL on a server that checks signatures."""

from __future__ import annotations

import logging

import pytest

from torch_s3dcp.testing.servers import SeaweedServer
from torch_s3dcp.transports import BotoTransport

KEYS = (
    "plain",
    "a b/c+d",
    "ümlaut/日本語",
    "percent%20and%2Fmore",
    "question?mark&and=more#hash",
    "quote'\"and(brackets)[x]{y}",
    "a//b/~c",
)


@pytest.mark.parametrize("key", KEYS)
def test_a_real_server_takes_the_signature(
    key: str,
    seaweed: SeaweedServer,
    seaweed_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    transport = BotoTransport()
    etag = transport.put(seaweed_bucket, key, b"0123456789").etag
    with caplog.at_level(logging.DEBUG, "torch_s3dcp"):
        for start in range(5):
            with transport.get(seaweed_bucket, key, start, 10, if_match=etag) as body:
                assert body.readall() == b"0123456789"[start:]
                assert body.retries == 0
    assert "signed URL" not in caplog.text
