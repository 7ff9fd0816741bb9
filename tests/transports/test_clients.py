"""boto3 clients are shared, and not kept for ever."""

from __future__ import annotations

import gc
import io
import threading
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.loaders import JSONFileLoader, Loader
from support.scripted import Exchange, Scripted

from torch_s3dcp import S3ClientConfig, S3Credentials
from torch_s3dcp.testing.servers import MotoServer
from torch_s3dcp.transports import BotoTransport

MIB = 2**20


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


@pytest.mark.parametrize("checksum", [None, "SHA256"])
def test_clients_of_the_users_own_are_let_go(
    moto_server: MotoServer, moto_bucket: str, checksum: str | None
) -> None:
    session = boto3.Session("testing", "testing", region_name="us-east-1")
    known = list[weakref.ref[Any]]()
    for number in range(40):
        client = session.client("s3", endpoint_url=moto_server.endpoint_url)
        transport = BotoTransport(config=S3ClientConfig(client=client, checksum_algorithm=checksum))
        transport.upload(moto_bucket, str(number), io.BytesIO(b"x"), expected_size=1)
        known.append(weakref.ref(client))
    del client, transport
    gc.collect()
    assert known[0]() is None
    assert known[-1]() is not None


def test_models_are_read_once_for_all_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Counter[str]()
    load = JSONFileLoader.load_file

    def counted(loader: JSONFileLoader, path: str) -> Any:
        read[path] += 1
        return load(loader, path)

    monkeypatch.setattr(JSONFileLoader, "load_file", counted)
    transport_to(31).client  # noqa: B018 - made by asking for it
    read.clear()
    client: Any = transport_to(32).client
    assert not read
    assert client.meta.service_model.operation_model("GetObject").name == "GetObject"


def test_folders_of_models_that_the_environment_names_are_looked_into(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    transport_to(33).client  # noqa: B018 - made by asking for it
    asked = list[list[str]]()
    load = Loader.load_service_model

    def noted(loader: Loader, *arguments: Any, **options: Any) -> Any:
        asked.append(loader.search_paths)
        return load(loader, *arguments, **options)

    monkeypatch.setattr(Loader, "load_service_model", noted)
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    transport_to(34).client  # noqa: B018 - made by asking for it
    assert asked
    assert all(str(tmp_path) in paths for paths in asked)
    for port in (35, 36, 37):
        transport_to(port).client  # noqa: B018 - made by asking for it
    assert len(asked[0]) <= len(set(asked[0])) + 1, "each session adds the same one"


@pytest.mark.parametrize("checksum", [None, "SHA256"])
@pytest.mark.parametrize("setting", ["max_concurrency", "memory_budget"])
def test_settings_beside_a_client_of_the_users_own_hold(setting: str, checksum: str | None) -> None:
    """Those of its first use are not those of all later ones."""
    few = {"max_concurrency": 1, "memory_budget": 16 * MIB}[setting]
    together = threading.Barrier(3)
    met: list[bool] = []

    def meet(exchange: Exchange) -> bool:
        if exchange.command == "PUT":
            try:
                together.wait(10)
            except threading.BrokenBarrierError:
                met.append(False)
            else:
                met.append(True)
        return False

    def upload(**settings: Any) -> None:
        usual = {"part_size": 8 * MIB, "checksum_algorithm": checksum, "max_concurrency": 3}
        config = S3ClientConfig(client=client, **{**usual, **settings})
        stream: Any = io.BytesIO(bytes(24 * MIB))
        BotoTransport(None, config).upload("bucket", "key", stream, expected_size=24 * MIB)

    with Scripted() as server:
        keys = S3Credentials("key", "secret")
        config = S3ClientConfig(endpoint_url=server.url, credentials=keys, force_path_style=True)
        client = BotoTransport("us-east-1", config).client
        upload(**{setting: few})
        server.stored.clear()
        server.always = meet
        upload()
    assert met == [True] * 3
