"""A server that is gone for a while: the proxy can be, and saves and loads outlast it."""

from __future__ import annotations

import socket
import time
import urllib.parse
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from torch_s3dcp import S3ClientConfig, S3Credentials, S3StorageReader, S3StorageWriter
from torch_s3dcp.testing import FaultProxy, S3Request

GONE = 1.5


def config_for(server: Any, proxy: FaultProxy) -> S3ClientConfig:
    return S3ClientConfig(
        endpoint_url=proxy.endpoint_url,
        force_path_style=True,
        credentials=S3Credentials(server.access_key, server.secret_key),
    )


def gone_at_first(proxy: FaultProxy, operation: str) -> list[S3Request]:
    """The server goes down when the first such request for data arrives."""
    seen: list[S3Request] = []

    def decide(request: S3Request) -> None:
        if not seen:
            proxy.go_down(GONE)
        seen.append(request)

    proxy.add(decide, operation=operation, key="*.distcp")
    return seen


@pytest.mark.parametrize("operation", ["GetObject", "UploadPart"])
def test_saves_and_loads_outlast_an_outage(
    seaweed: Any, seaweed_bucket: str, operation: str
) -> None:
    state = {f"x{i}": torch.arange(1_500_000) + i for i in range(3)}
    path = f"s3://{seaweed_bucket}/run"
    with FaultProxy(seaweed) as proxy:
        config = config_for(seaweed, proxy)
        saved = gone_at_first(proxy, operation) if operation == "UploadPart" else []
        dcp.save(state, storage_writer=S3StorageWriter(path, s3client_config=config), no_dist=True)
        seen = saved or gone_at_first(proxy, operation)
        loaded = {name: torch.zeros_like(value) for name, value in state.items()}
        dcp.load(loaded, storage_reader=S3StorageReader(path, s3client_config=config), no_dist=True)
        assert len(seen) > 1, "the first did not come through"
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_connections_are_refused_until_it_is_back(seaweed: Any) -> None:
    with FaultProxy(seaweed) as proxy:
        place = urllib.parse.urlsplit(proxy.endpoint_url)
        address = (str(place.hostname), int(place.port or 0))
        with socket.create_connection(address) as before:
            before.settimeout(20)
            proxy.go_down(GONE)
            assert before.recv(1) == b"", "what was open has ended"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address).close()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                socket.create_connection(address).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        else:
            pytest.fail("it did not come back")
