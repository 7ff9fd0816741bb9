"""Writers of S3Client: what is written is stored whole, or not at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clients import BLOB, BUCKET, KEY, MIB, client_of

from torch_s3dcp import S3Client, S3ClientConfig, S3Writer
from torch_s3dcp.exceptions import (
    BucketNotFoundError,
    EndpointError,
    ObjectNotFoundError,
)
from torch_s3dcp.testing.servers import MotoServer
from torch_s3dcp.testing.wrappers import Fault, FaultTransport, RecordingTransport
from torch_s3dcp.transports import BotoTransport, MemoryTransport


@pytest.fixture
def memory() -> MemoryTransport:
    transport = MemoryTransport(BUCKET)
    transport.put(BUCKET, KEY, BLOB)
    return transport


def pieces(sizes: Iterable[int]) -> list[bytes]:
    return [bytes([index % 251]) * size for index, size in enumerate(sizes, 1)]


@given(st.lists(st.integers(0, 5000), max_size=20))
def test_what_is_written_is_stored(sizes: list[int]) -> None:
    memory = MemoryTransport(BUCKET)
    with client_of(memory).put_object(BUCKET, KEY) as writer:
        for piece in pieces(sizes):
            before = writer.tell()
            assert writer.write(piece) == len(piece)
            assert writer.tell() == before + len(piece)
    with memory.get(BUCKET, KEY) as body:
        assert body.readall() == b"".join(pieces(sizes))


@pytest.mark.parametrize(
    "sizes",
    [
        [8 * MIB],
        [8 * MIB - 1, 1, 1],
        [20 * MIB, 3],
        [1, 8 * MIB, 8 * MIB, 8 * MIB, 5],
        [72 * MIB],
    ],
)
def test_large_writes_against_a_server(
    moto_server: MotoServer, moto_bucket: str, moto_client: S3Client, sizes: list[int]
) -> None:
    with moto_client.put_object(moto_bucket, KEY) as writer:
        for piece in pieces(sizes):
            writer.write(piece)
    stored = moto_server.client().get_object(Bucket=moto_bucket, Key=KEY)["Body"].read()
    assert stored == b"".join(pieces(sizes))


@pytest.fixture
def moto_client(moto_server: MotoServer, monkeypatch: pytest.MonkeyPatch) -> S3Client:
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    config = S3ClientConfig(force_path_style=True)
    return S3Client("us-east-1", endpoint=moto_server.endpoint_url, s3client_config=config)


@pytest.mark.parametrize("size", [0, 10, 9 * MIB, 80 * MIB])
@pytest.mark.parametrize("error", [ArithmeticError("mine"), KeyboardInterrupt()])
def test_an_exception_inside_leaves_no_object(
    moto_server: MotoServer,
    moto_bucket: str,
    moto_client: S3Client,
    size: int,
    error: BaseException,
) -> None:
    writer = moto_client.put_object(moto_bucket, KEY)

    def fail() -> None:
        with writer:
            writer.write(bytes(size))
            raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error
    assert writer.closed
    with pytest.raises(ObjectNotFoundError):
        moto_client.head_object(moto_bucket, KEY)
    listing = moto_server.client().list_multipart_uploads(Bucket=moto_bucket)
    assert listing.get("Uploads", []) == []


def test_abort_leaves_what_was_there(memory: MemoryTransport) -> None:
    writer = client_of(memory).put_object(BUCKET, KEY)
    writer.write(b"newer")
    writer.abort()
    writer.abort()
    writer.close()
    assert writer.closed
    with memory.get(BUCKET, KEY) as body:
        assert body.readall() == BLOB


def test_the_object_appears_when_the_writer_is_closed() -> None:
    memory = MemoryTransport(BUCKET)
    writer = client_of(memory).put_object(BUCKET, KEY)
    writer.write(BLOB)
    with pytest.raises(ObjectNotFoundError):
        memory.head(BUCKET, KEY)
    writer.close()
    writer.close()
    assert memory.head(BUCKET, KEY).size == 3000
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"more")


def test_a_writer_left_open_stores_nothing_and_holds_no_interpreter_up(
    moto_bucket: str, moto_client: S3Client
) -> None:
    program = (
        "from torch_s3dcp import *; import sys; c = S3ClientConfig(force_path_style=True);"
        "w = S3Client('us-east-1', s3client_config=c).put_object(sys.argv[1], 'key');"
        "w.write(b'data')"
    )
    subprocess.run([sys.executable, "-c", program, moto_bucket], check=True, timeout=60)
    with pytest.raises(ObjectNotFoundError):
        moto_client.head_object(moto_bucket, KEY)


def test_a_failed_upload_comes_out_of_close() -> None:
    writer = client_of(MemoryTransport()).put_object("absent", KEY)
    with pytest.raises(BucketNotFoundError):
        writer.close()
    assert writer.closed
    with pytest.raises(BucketNotFoundError), client_of(MemoryTransport()).put_object("absent", KEY):
        pass


def test_a_failed_upload_comes_out_of_write_and_of_close() -> None:
    error = EndpointError("gone")
    transport = FaultTransport(MemoryTransport(BUCKET), [Fault("upload", error=error, times=None)])
    writer = client_of(transport).put_object(BUCKET, KEY)

    def write_much() -> None:
        for _ in range(100):
            writer.write(bytes(MIB))

    with pytest.raises(EndpointError) as caught:
        write_much()
    assert caught.value is error
    with pytest.raises(EndpointError) as caught:
        writer.close()
    assert caught.value is error


def test_a_writer_is_a_file_to_write(memory: MemoryTransport) -> None:
    with client_of(memory).put_object(BUCKET, KEY) as writer:
        assert isinstance(writer, S3Writer)
        assert writer.writable()
        assert not writer.readable()
        assert (writer.bucket, writer.key, writer.tell()) == (BUCKET, KEY, 0)
        assert writer.write(memoryview(b"12345678").cast("I")) == 8
        assert writer.write(memoryview(b"abcd")[::1]) == 4
    with memory.get(BUCKET, KEY) as body:
        assert body.readall() == b"12345678abcd"


@pytest.mark.parametrize("wrapped", [False, True])
def test_storage_class(
    moto_server: MotoServer, moto_bucket: str, moto_client: S3Client, wrapped: bool
) -> None:
    transport: Any = moto_client.transport
    assert isinstance(transport, BotoTransport)
    client = S3Client(transport=RecordingTransport(transport) if wrapped else transport)
    for name in ("STANDARD_IA", None):
        with client.put_object(moto_bucket, f"key-{name}", storage_class=name) as writer:
            writer.write(b"data")
    found = moto_server.client().list_objects_v2(Bucket=moto_bucket)["Contents"]
    classes = {entry["Key"]: entry["StorageClass"] for entry in found}
    assert classes == {"key-STANDARD_IA": "STANDARD_IA", "key-None": "STANDARD"}
