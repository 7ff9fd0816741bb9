"""``sequential``: one GET from byte 0; HEAD only for SEEK_END; what was read stays."""

from __future__ import annotations

import io

import pytest

from torch_s3dcp import S3Client, S3ReaderConstructor, SequentialS3Reader
from torch_s3dcp.exceptions import ConfigurationError, EndpointError
from torch_s3dcp.testing.wrappers import Fault, FaultTransport, RecordingTransport
from torch_s3dcp.transports import MemoryTransport, Transport

BUCKET, KEY = "bucket", "key"
MIB = 1024 * 1024


def pattern(size: int) -> bytes:
    return b"".join(i.to_bytes(4, "big") for i in range(-(-size // 4)))[:size]


BLOB = pattern(3000)


@pytest.fixture
def transport() -> RecordingTransport:
    memory = MemoryTransport(BUCKET)
    memory.put(BUCKET, KEY, BLOB)
    return RecordingTransport(memory)


def reader_of(transport: Transport) -> SequentialS3Reader:
    client = S3Client(transport=transport)
    reader = client.get_object(BUCKET, KEY, reader_constructor=S3ReaderConstructor.sequential())
    assert isinstance(reader, SequentialS3Reader)
    return reader


def test_one_request_from_byte_0_serves_all(transport: RecordingTransport) -> None:
    with reader_of(transport) as reader:
        for start, end in ((1000, 1500), (0, 10), (2990, 3000), (500, 2000)):
            reader.seek(start)
            assert reader.read(end - start) == BLOB[start:end]
        assert reader.read() == BLOB[2000:]
    (request,) = transport.requests
    assert (request.operation, request.start, request.end) == ("get", 0, None)
    assert request.bytes == 3000


def test_receives_no_more_than_the_last_byte_wanted(transport: RecordingTransport) -> None:
    with reader_of(transport) as reader:
        reader.seek(100)
        assert reader.read(50) == BLOB[100:150]
    assert transport.summary().received == 150


def test_backward_is_free(transport: RecordingTransport) -> None:
    with reader_of(transport) as reader:
        assert reader.read(2000) == BLOB[:2000]
        for start in (1999, 1000, 0):
            reader.seek(start)
            assert reader.read(1) == BLOB[start : start + 1]
    assert transport.summary().received == 2000


def test_seek_end_first_costs_a_head_and_no_get(transport: RecordingTransport) -> None:
    with reader_of(transport) as reader:
        assert reader.seek(0, io.SEEK_END) == 3000
        assert reader.tell() == 3000
        assert [r.operation for r in transport.requests] == ["head"]
        assert reader.seek(-10, io.SEEK_END) == 2990
        assert reader.read() == BLOB[2990:]
    assert transport.summary().requests == {"head": 1, "get": 1}


def test_seek_end_after_the_get_costs_nothing(transport: RecordingTransport) -> None:
    with reader_of(transport) as reader:
        reader.read(1)
        assert reader.seek(-1, io.SEEK_END) == 2999
        assert reader.read(5) == BLOB[-1:]
    assert transport.summary().requests == {"get": 1}


def test_past_the_end_is_short_or_empty(transport: RecordingTransport) -> None:
    with reader_of(transport) as reader:
        assert reader.seek(9999) == 3000
        assert reader.read(5) == b""
        reader.seek(2998)
        target = bytearray(b"....")
        assert reader.readinto(target) == 2
        assert target == BLOB[2998:] + b".."
        assert reader.read(2**50) == b""


@pytest.mark.parametrize(("offset", "whence"), [(-1, 0), (-6, 1), (-3001, 2)])
def test_a_seek_before_the_start_is_refused(
    transport: RecordingTransport, offset: int, whence: int
) -> None:
    with reader_of(transport) as reader:
        reader.seek(5)
        with pytest.raises(ValueError, match="before the start"):
            reader.seek(offset, whence)
        assert reader.tell() == 5


def test_reads_across_blocks_of_memory() -> None:
    blob = pattern(17 * MIB)
    memory = MemoryTransport(BUCKET)
    memory.put(BUCKET, KEY, blob)
    with reader_of(memory) as reader:
        for start, end in ((8 * MIB - 3, 8 * MIB + 3), (16 * MIB, 16 * MIB + 1), (5, 17 * MIB)):
            reader.seek(start)
            assert reader.read(end - start) == blob[start:end]


def test_goes_on_after_an_error_with_the_next_missing_byte() -> None:
    memory = MemoryTransport(BUCKET)
    memory.put(BUCKET, KEY, BLOB)
    faults = FaultTransport(memory, [Fault("get", body="cut", after=1500)])
    transport = RecordingTransport(faults)
    constructor = S3ReaderConstructor.sequential()

    def get_stream(start: int | None = None, end: int | None = None) -> object:
        return transport.get(BUCKET, KEY, start or 0, end)

    with constructor(BUCKET, KEY, lambda: None, get_stream) as reader:  # type: ignore[arg-type]
        assert reader.read(1000) == BLOB[:1000]
        with pytest.raises(EndpointError):
            reader.read(1000)
        assert reader.read() == BLOB[1000:]
    assert [request.start for request in transport.requests] == [0, 1000]


def test_closing_lets_go_of_the_connection(transport: RecordingTransport) -> None:
    reader = reader_of(transport)
    reader.read(10)
    assert transport.open_bodies == 1
    reader.close()
    assert transport.open_bodies == 0


@pytest.mark.parametrize(("bucket", "key"), [("", "key"), ("bucket", "")])
def test_needs_bucket_and_key(bucket: str, key: str) -> None:
    with pytest.raises(ConfigurationError, match="bucket and a key"):
        S3Client(transport=MemoryTransport(BUCKET)).get_object(bucket, key)


def test_is_the_default_reader() -> None:
    client = S3Client(transport=MemoryTransport(BUCKET))
    assert isinstance(client.get_object(BUCKET, KEY), SequentialS3Reader)
    assert S3ReaderConstructor.get_reader_type_string(None) == "sequential"
    assert S3ReaderConstructor.get_reader_type_string(S3ReaderConstructor.default()) == "sequential"
