"""Ranges by signed URL: on a server that checks signatures, and where they lead on AWS."""

from __future__ import annotations

import logging
import urllib.parse
from typing import Any

import pytest

from torch_s3dcp import S3ClientConfig, S3Credentials
from torch_s3dcp.exceptions import EndpointError
from torch_s3dcp.testing.servers import SeaweedServer
from torch_s3dcp.transports import BotoTransport
from torch_s3dcp.transports.connections import ConnectFailed, Connections

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
    ordinary: list[str] = []

    def note(request: Any, **_: Any) -> None:
        ordinary.append(request.url)

    transport = BotoTransport()
    transport.client.meta.events.register_first("before-send.s3.GetObject", note)
    etag = transport.put(seaweed_bucket, key, b"0123456789").etag
    with caplog.at_level(logging.DEBUG, "torch_s3dcp"):
        for start in range(5):
            with transport.get(seaweed_bucket, key, start, 10, if_match=etag) as body:
                assert body.readall() == b"0123456789"[start:]
                assert body.retries == 0
    transport.client.meta.events.unregister("before-send.s3.GetObject", note)
    assert "signed URL" not in caplog.text
    assert ordinary == []


@pytest.mark.parametrize("region", ["us-east-1", "us-west-2", "eu-central-1", "ap-east-1"])
@pytest.mark.parametrize("style", ["path", "virtual"])
def test_both_ways_lead_to_the_same_host(
    region: str, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore would sign URLs for a host name without the region."""
    config = S3ClientConfig(
        credentials=S3Credentials("key", "secret"),
        force_path_style=style == "path",
        max_attempts=2,
        pause_factor=0,
    )
    transport = BotoTransport(region, config)
    asked: list[urllib.parse.SplitResult] = []

    def send(_: Any, method: str, address: str, headers: Any, *_a: Any, **_o: Any) -> None:
        asked.append(urllib.parse.urlsplit(address))
        raise ConnectFailed("no network here")

    monkeypatch.setattr(Connections, "send", send)
    with pytest.raises(EndpointError):
        transport.get("bucket", "key", 0, 10, if_match='"etag"')
    assert ["X-Amz-Signature" in url.query for url in asked] == [True, False]
    assert len({url.netloc for url in asked}) == 1
    assert region in asked[0].netloc or region == "us-east-1"
