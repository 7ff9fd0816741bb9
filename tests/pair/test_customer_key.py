"""SSE-C: saves and loads with a key of the user's own, over https, on a real server."""

from __future__ import annotations

import base64
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import trustme
from botocore.exceptions import ClientError
from support.canary import CUSTOMER_KEY, CUSTOMER_MARK
from support.dcp import READERS, assert_same, blank, failures, quiet, randn
from support.tls import over_tls, trust
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp import S3ClientConfig, S3FileSystem, S3StorageReader, S3StorageWriter
from torch_s3dcp.exceptions import AccessDeniedError, ConfigurationError, StorageError
from torch_s3dcp.testing.servers import SeaweedServer

pytestmark = pytest.mark.server

MIB = 2**20
KEY = CUSTOMER_KEY
OTHER = CUSTOMER_MARK.encode() + b"another."
STATE = {
    "large": randn(3 * MIB),  # 12 MiB: an upload in three parts
    "small": randn(5, 7, seed=1),
    "nested": {"half": randn(9, seed=2, dtype=torch.bfloat16), "step": 7},
}
CONFIG = S3ClientConfig(sse_customer_key=KEY, part_size=5 * MIB, force_path_style=True)


@pytest.fixture(scope="module")
def endpoint(seaweed: SeaweedServer, authority: trustme.CA) -> Iterator[str]:
    with over_tls(seaweed.endpoint_url, authority) as address:
        yield address


@pytest.fixture
def address(
    seaweed: SeaweedServer,
    seaweed_bucket: str,
    endpoint: str,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Where to save; the server is found by the environment."""
    trust(authority, tmp_path, monkeypatch)
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    return f"s3://{seaweed_bucket}/run"


def save(address: str, config: S3ClientConfig = CONFIG, state: Any = STATE) -> None:
    writer = S3StorageWriter(address, s3client_config=config, thread_count=2)
    with quiet():
        dcp.save(state, storage_writer=writer, no_dist=True)


def load(address: str, config: S3ClientConfig = CONFIG, reader: str = "direct") -> Any:
    state = blank(STATE)
    storage = S3StorageReader(address, s3client_config=config, reader_constructor=reader)
    with quiet():
        dcp.load(state, storage_reader=storage, no_dist=True)
    return state


def failure_of(action: Callable[[], Any]) -> BaseException:
    with pytest.raises(CheckpointException) as caught:
        action()
    return failures(caught.value)[0]


@pytest.mark.parametrize("reader", READERS)
def test_what_was_saved_with_a_key_is_loaded_with_it(reader: str, address: str) -> None:
    save(address)
    assert_same(load(address, reader=reader), STATE)


@pytest.mark.parametrize("algorithm", ["CRC32C", "SHA256"])
def test_each_way_of_uploading_and_an_overwrite(algorithm: str, address: str) -> None:
    config = CONFIG.replace(checksum_algorithm=algorithm)
    save(address, state={"large": randn(3 * MIB, seed=5)})
    save(address, config)
    assert_same(load(address), STATE)


def test_the_server_gives_nothing_away_without_the_key(
    address: str, seaweed: SeaweedServer, seaweed_bucket: str
) -> None:
    save(address)
    client = seaweed.client()
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=seaweed_bucket)["Contents"]]
    assert len(keys) == 3
    for key in keys:
        with pytest.raises(ClientError):
            client.get_object(Bucket=seaweed_bucket, Key=key)


def test_a_load_with_another_key_or_none_says_so(address: str) -> None:
    save(address)
    wrong = failure_of(lambda: load(address, CONFIG.replace(sse_customer_key=OTHER)))
    assert isinstance(wrong, AccessDeniedError)
    missing = failure_of(lambda: load(address, CONFIG.replace(sse_customer_key=None)))
    assert isinstance(missing, StorageError)
    assert "customer" in str(missing).lower()


@pytest.mark.parametrize("key", [OTHER, None])
def test_a_save_over_a_checkpoint_of_another_key_fails_before_it_writes(
    key: bytes | None, address: str, seaweed: SeaweedServer, seaweed_bucket: str
) -> None:
    save(address)
    client = seaweed.client()
    before = client.list_objects_v2(Bucket=seaweed_bucket)["Contents"]
    error = failure_of(lambda: save(address, CONFIG.replace(sse_customer_key=key)))
    assert isinstance(error, StorageError)
    if key is None:
        assert "sse_customer_key" in str(error)
    assert client.list_objects_v2(Bucket=seaweed_bucket)["Contents"] == before
    assert_same(load(address), STATE)


def test_copies_and_streams_have_the_key(address: str) -> None:
    files = S3FileSystem(s3client_config=CONFIG)
    with files.create_stream(f"{address}/file", "wb") as stream:
        stream.write(b"0123456789")
    files.rename(f"{address}/file", f"{address}/renamed")
    with files.create_stream(f"{address}/renamed", "rb") as stream:
        assert stream.read() == b"0123456789"
    bare = S3FileSystem(s3client_config=CONFIG.replace(sse_customer_key=None))
    with bare.create_stream(f"{address}/renamed", "rb") as stream, pytest.raises(StorageError):
        stream.read()


def test_async_save_in_a_thread_works_and_in_a_process_is_refused(address: str) -> None:
    writer = S3StorageWriter(address, s3client_config=CONFIG)
    with quiet():
        dcp.async_save(STATE, storage_writer=writer, no_dist=True).result()
    assert_same(load(address), STATE)
    with pytest.raises(ConfigurationError, match="not sent to another process"):
        pickle.dumps(writer)


def test_the_key_shows_up_nowhere(address: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "torch_s3dcp")
    save(address)
    load(address)
    shown = []
    for broken in (
        CONFIG.replace(sse_customer_key=OTHER),
        CONFIG.replace(endpoint_url="https://127.0.0.1:1", max_attempts=1),
    ):
        for action in (load, save):
            error = failure_of(lambda: action(address, broken))  # noqa: B023
            shown += [str(error), repr(error), *traceback.format_exception(error)]
            shown.append(pickle.dumps(error).decode("latin-1"))
    writer = S3StorageWriter(address, s3client_config=CONFIG)
    reader = S3StorageReader(address, s3client_config=CONFIG)
    objects = (CONFIG, writer, reader, writer.transport)
    shown += [text for thing in objects for text in (str(thing), repr(thing))]
    shown += [
        logging.Formatter().format(record)
        for record in caplog.records
        if record.name.startswith("torch_s3dcp")
    ]
    forms = [
        form
        for key in (KEY, OTHER)
        for form in (key.decode("latin-1"), repr(key)[2:-1], base64.b64encode(key).decode())
    ]
    forms += [KEY.hex(), OTHER.hex()]
    assert len(shown) > 20
    for text in shown:
        assert not [form for form in forms if form in text]
