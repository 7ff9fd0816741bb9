"""``range_based``: one ranged GET for each buffer fill, larger reads around the buffer."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp import RangedS3Reader, S3Client, S3Reader, S3ReaderConstructor
from torch_s3dcp.exceptions import EndpointError
from torch_s3dcp.testing.strategies import blobs
from torch_s3dcp.testing.wrappers import Fault, FaultTransport, RecordingTransport
from torch_s3dcp.transports import MemoryTransport

BUCKET, KEY = "bucket", "key"
BLOB = bytes((3 * i + i // 256) % 256 for i in range(1000))


def stored(blob: bytes = BLOB) -> RecordingTransport:
    memory = MemoryTransport(BUCKET)
    memory.put(BUCKET, KEY, blob)
    return RecordingTransport(memory)


def reader_of(transport: Any, buffer_size: int | None) -> S3Reader:
    constructor = S3ReaderConstructor.range_based(buffer_size)
    return S3Client(transport=transport).get_object(BUCKET, KEY, reader_constructor=constructor)


def gets(transport: RecordingTransport) -> list[tuple[int | None, int | None]]:
    return [(request.start, request.end) for request in transport.of("get")]


def test_one_request_for_each_buffer_fill() -> None:
    transport = stored()
    with reader_of(transport, 100) as reader:
        reader.seek(50)
        parts = [reader.read(10) for _ in range(25)]
    assert b"".join(parts) == BLOB[50:300]
    assert gets(transport) == [(50, 150), (150, 250), (250, 350)]


def test_the_size_is_asked_for_once() -> None:
    transport = stored()
    with reader_of(transport, 100) as reader:
        for start in (900, 0, 500):
            reader.seek(start)
            reader.read(10)
        reader.seek(0, io.SEEK_END)
    assert len(transport.of("head")) == 1


def test_known_size_saves_the_head() -> None:
    transport = stored()
    info = transport.head(BUCKET, KEY)
    transport.clear()
    client = S3Client(transport=transport)
    with client.get_object(
        BUCKET, KEY, object_info=info, reader_constructor="range_based"
    ) as reader:
        reader.seek(-10, io.SEEK_END)
        assert reader.read() == BLOB[-10:]
    assert transport.summary().requests == {"get": 1}


@pytest.mark.parametrize("size", [100, 101, 1000])
def test_reads_of_the_buffers_size_go_around_it(size: int) -> None:
    transport = stored()
    with reader_of(transport, 100) as reader:
        assert reader.read(size) == BLOB[:size]
        reader.seek(0)
        assert reader.read(1) == BLOB[:1]
    assert gets(transport) == [(0, size), (0, 100)]


def test_a_read_smaller_than_the_buffer_fills_it() -> None:
    transport = stored()
    with reader_of(transport, 100) as reader:
        assert reader.read(99) == BLOB[:99]
        assert reader.read(1) == BLOB[99:100]
    assert gets(transport) == [(0, 100)]


def test_forward_overlap_reuses_the_buffer() -> None:
    transport = stored()
    with reader_of(transport, 100) as reader:
        reader.read(10)
        reader.seek(80)
        assert reader.read(60) == BLOB[80:140]
        # The first 20 bytes were there; what is missing begins a new buffer.
        assert gets(transport) == [(0, 100), (100, 200)]
        reader.seek(190)
        assert reader.read(210) == BLOB[190:400]
    assert gets(transport)[2:] == [(200, 400)]


def test_backward_inside_the_buffer_is_free_and_outside_a_request() -> None:
    transport = stored()
    with reader_of(transport, 100) as reader:
        reader.seek(200)
        reader.read(50)
        reader.seek(210)
        assert reader.read(5) == BLOB[210:215]
        assert len(gets(transport)) == 1
        reader.seek(199)
        assert reader.read(5) == BLOB[199:204]
    assert gets(transport) == [(200, 300), (199, 299)]


def test_without_a_buffer_every_read_is_a_request() -> None:
    transport = stored()
    with reader_of(transport, 0) as reader:
        for start, end in ((5, 6), (5, 6), (995, 1000)):
            reader.seek(start)
            assert reader.read(end - start) == BLOB[start:end]
    assert gets(transport) == [(5, 6), (5, 6), (995, 1000)]


def test_default_buffer_is_8_mib_clamped_to_the_object() -> None:
    blob = bytes(9 * 1024 * 1024)
    for given_blob, end in ((blob, 8 * 1024 * 1024), (BLOB, len(BLOB))):
        transport = stored(given_blob)
        with reader_of(transport, None) as reader:
            reader.read(1)
        assert gets(transport) == [(0, end)]


def test_past_the_end_is_short_or_empty_and_costs_no_get() -> None:
    transport = stored()
    with reader_of(transport, 100) as reader:
        assert reader.seek(5000) == 1000
        assert reader.read(1) == b""
        assert gets(transport) == []
        reader.seek(990)
        assert reader.read(50) == BLOB[990:]
        reader.seek(0)
        assert reader.read(2**50) == BLOB
    assert gets(transport) == [(990, 1000), (0, 1000)]


def test_a_fill_survives_broken_connections() -> None:
    transport = FaultTransport(stored(), [Fault("get", body="cut", after=20, nth=2, times=2)])
    with reader_of(transport, 100) as reader:
        reader.read(10)
        reader.seek(300)
        assert reader.read(10) == BLOB[300:310]
        reader.seek(50)
        assert reader.read(10) == BLOB[50:60]
    assert transport.struck == 2


def test_an_error_of_the_fill_comes_out_and_the_next_read_is_right() -> None:
    error = EndpointError("broken")
    transport = FaultTransport(stored(), [Fault("get", error=error, nth=2)])
    with reader_of(transport, 100) as reader:
        assert reader.read(90) == BLOB[:90]
        with pytest.raises(EndpointError):
            reader.read(50)
        assert reader.tell() == 90
        assert reader.read(50) == BLOB[90:140]


def test_streams_are_closed_at_once() -> None:
    transport = stored()
    with reader_of(transport, 10) as reader:
        reader.read(1)
        assert transport.of("get")
        assert transport.open_bodies == 0


@given(
    blobs(1, 600),
    st.sampled_from([0, 1, 7, 64, 599, 10_000]),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 700)), max_size=20),
)
def test_no_read_costs_more_than_one_get(
    blob: bytes, buffer_size: int, reads: list[tuple[int, int]]
) -> None:
    transport = stored(blob)
    with reader_of(transport, buffer_size) as reader:
        for start, size in reads:
            before = len(transport.of("get"))
            reader.seek(start)
            assert reader.read(size) == blob[start : start + size]
            assert len(transport.of("get")) - before <= 1
    for request in transport.of("get"):
        assert request.end is not None
        assert request.start is not None
        assert 0 < request.bytes == request.end - request.start


@pytest.mark.parametrize("wrong", [-1, -100])
def test_a_negative_buffer_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        S3ReaderConstructor.range_based(wrong)


@pytest.mark.parametrize("wrong", [1.5, "8", True])
def test_a_buffer_size_is_a_whole_number(wrong: Any) -> None:
    with pytest.raises(TypeError, match="whole number"):
        S3ReaderConstructor.range_based(wrong)


def test_the_constructor_says_its_name() -> None:
    constructor = S3ReaderConstructor.range_based(5)
    assert S3ReaderConstructor.get_reader_type_string(constructor) == "range_based"
    with reader_of(stored(), 5) as reader:
        assert isinstance(reader, RangedS3Reader)
