"""S3Client: pinned readers, streams that survive breaks."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.clients import BLOB, BUCKET, KEY, client_of

from torch_s3dcp import S3ReaderConstructor
from torch_s3dcp.exceptions import (
    AccessDeniedError,
    EndpointError,
    ObjectChangedError,
    ObjectNotFoundError,
    ReaderRegistryError,
    TruncatedObjectError,
    WrongRangeError,
)
from torch_s3dcp.pinned import ResumingStream
from torch_s3dcp.testing.wrappers import Fault, FaultTransport, RecordingTransport
from torch_s3dcp.transports import MemoryTransport, ObjectBody, ObjectInfo
from torch_s3dcp.transports.retries import Limits


@pytest.fixture
def memory() -> MemoryTransport:
    transport = MemoryTransport(BUCKET)
    transport.put(BUCKET, KEY, BLOB)
    return transport


@pytest.mark.parametrize("reader_name", ["sequential", "range_based"])
def test_a_reader_makes_no_request_before_it_must(
    memory: MemoryTransport, reader_name: str
) -> None:
    recorder = RecordingTransport(memory)
    client_of(recorder).get_object(BUCKET, "absent", reader_constructor=reader_name).close()
    assert recorder.requests == ()


def test_an_object_replaced_between_two_ranges(memory: MemoryTransport) -> None:
    constructor = S3ReaderConstructor.range_based(100)
    with client_of(memory).get_object(BUCKET, KEY, reader_constructor=constructor) as reader:
        assert reader.read(1) == BLOB[:1]
        memory.put(BUCKET, KEY, BLOB[::-1])
        assert reader.read(1) == BLOB[1:2], "from the buffer"
        reader.seek(0)
        with pytest.raises(ObjectChangedError) as caught:
            reader.read(3000)
    assert (caught.value.bucket, caught.value.key) == (BUCKET, KEY)


class IgnoresConditions(MemoryTransport):
    """A server that knows no If-Match."""

    def get(
        self,
        bucket: str,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        if_match: str | None = None,
    ) -> ObjectBody:
        return super().get(bucket, key, start, end)


@pytest.mark.parametrize("newer", [BLOB[::-1], BLOB + b"more"])
def test_a_replaced_object_is_seen_without_if_match(newer: bytes) -> None:
    transport = IgnoresConditions(BUCKET)
    transport.put(BUCKET, KEY, BLOB)
    constructor = S3ReaderConstructor.range_based(0)
    with client_of(transport).get_object(BUCKET, KEY, reader_constructor=constructor) as reader:
        assert reader.read(3000) == BLOB
        transport.put(BUCKET, KEY, newer)
        reader.seek(0)
        with pytest.raises(ObjectChangedError):
            reader.read(3000)


def test_a_break_is_not_mended_with_another_version(memory: MemoryTransport) -> None:
    transport = FaultTransport(memory, [Fault("get", body="cut", after=1000)])
    with client_of(transport).get_object(BUCKET, KEY) as reader:
        assert reader.read(1000) == BLOB[:1000]
        memory.put(BUCKET, KEY, BLOB[::-1])
        with pytest.raises(ObjectChangedError):
            reader.read(1000)


def test_two_streams_at_once_see_one_version(memory: MemoryTransport) -> None:
    """Both asked before either knew the ETag: that is no change of the object."""
    both_asked = threading.Barrier(2, timeout=30)

    class Slow(RecordingTransport):
        def get(self, *args: Any, **kwargs: Any) -> ObjectBody:
            body = super().get(*args, **kwargs)
            both_asked.wait()
            return body

    found: dict[str, Any] = {}

    def constructor(bucket: str, key: str, get_info: Any, get_stream: Callable[..., Any]) -> Any:
        found["get_stream"] = get_stream
        return io.BytesIO()

    client_of(Slow(memory)).get_object(BUCKET, KEY, reader_constructor=constructor)
    results: list[bytes] = []

    def fetch() -> None:
        results.append(found["get_stream"](10, 20).readall())

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [BLOB[10:20]] * 2


def test_what_is_known_of_the_object_saves_the_head(memory: MemoryTransport) -> None:
    recorder = RecordingTransport(memory)
    client = client_of(recorder)
    info = client.head_object(BUCKET, KEY)
    recorder.clear()
    with client.get_object(
        BUCKET, KEY, object_info=info, reader_constructor="range_based"
    ) as reader:
        assert reader.seek(0, io.SEEK_END) == 3000
        assert recorder.requests == ()
    memory.put(BUCKET, KEY, BLOB[::-1])
    with (
        client.get_object(BUCKET, KEY, object_info=info) as reader,
        pytest.raises(ObjectChangedError),
    ):
        reader.read(1)


def test_an_unknown_reader_is_refused(memory: MemoryTransport) -> None:
    with pytest.raises(ReaderRegistryError, match="sequential"):
        client_of(memory).get_object(BUCKET, KEY, reader_constructor="absent")


# ---- streams


@pytest.mark.parametrize("kind", ["cut", "truncate"])
def test_a_broken_body_goes_on_at_the_next_missing_byte(memory: MemoryTransport, kind: Any) -> None:
    faults = [Fault("get", body=kind, after=700, times=3)]
    recorder = RecordingTransport(FaultTransport(memory, faults))
    with client_of(recorder).get_object(BUCKET, KEY) as reader:
        assert reader.read() == BLOB
    gets = [(request.start, request.end) for request in recorder.of("get")]
    assert gets == [(0, None), (700, 3000), (1400, 3000), (2100, 3000)]
    assert recorder.summary().received == 3000
    assert recorder.open_bodies == 0


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_gives_up_after_so_many_tries_without_a_byte(
    memory: MemoryTransport, attempts: int
) -> None:
    faults = FaultTransport(memory, [Fault("get", body="cut", after=0, times=None)])
    reader = client_of(faults, attempts).get_object(BUCKET, KEY)
    with reader, pytest.raises(EndpointError) as caught:
        reader.read(10)
    assert faults.struck == attempts == caught.value.attempts


def test_progress_resets_the_count(memory: MemoryTransport) -> None:
    faults = FaultTransport(memory, [Fault("get", body="cut", after=100, times=29)])
    with client_of(faults, 2).get_object(BUCKET, KEY) as reader:
        assert reader.read() == BLOB
    assert faults.struck == 29


def test_other_bytes_than_asked_for_count_as_a_try(memory: MemoryTransport) -> None:
    faults = [
        Fault("get", body="cut", after=100),
        Fault("get", error=WrongRangeError("other bytes"), nth=2, times=2),
    ]
    with client_of(FaultTransport(memory, faults), 4).get_object(BUCKET, KEY) as reader:
        assert reader.read() == BLOB
    transport = FaultTransport(memory, faults)
    with client_of(transport, 3).get_object(BUCKET, KEY) as reader, pytest.raises(WrongRangeError):
        reader.read()
    assert transport.struck == 3


def test_tries_of_the_transport_are_not_multiplied(memory: MemoryTransport) -> None:
    faults = [
        Fault("get", body="cut", after=100),
        Fault("get", error=EndpointError("gone after all tries"), nth=2, times=50),
    ]
    transport = FaultTransport(memory, faults)
    with client_of(transport, 10).get_object(BUCKET, KEY) as reader, pytest.raises(EndpointError):
        reader.read()
    assert transport.struck == 2


def test_an_error_that_is_no_break_is_not_tried_again(memory: MemoryTransport) -> None:
    faults = [
        Fault("get", body="cut", after=100),
        Fault("get", error=AccessDeniedError("no"), nth=2),
    ]
    recorder = RecordingTransport(FaultTransport(memory, faults))
    with client_of(recorder).get_object(BUCKET, KEY) as reader, pytest.raises(AccessDeniedError):
        reader.read()
    assert len(recorder.of("get")) == 2


def test_a_stream_is_a_file(memory: MemoryTransport) -> None:
    def open_range(start: int, end: int | None) -> ObjectBody:
        return memory.get(BUCKET, KEY, start, end)

    with ResumingStream(open_range, 5, 50, Limits(3)) as stream:
        assert stream.readable()
        assert stream.info.size == 3000
        assert b"".join(stream) == BLOB[5:50]
        assert stream.read(1) == b""
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)
    with pytest.raises(TruncatedObjectError):
        ResumingStream(open_range, 5, 5000, Limits(3))


def test_head_copy_list_delete(memory: MemoryTransport) -> None:
    client = client_of(memory)
    assert client.head_object(BUCKET, KEY).size == 3000
    client.copy_object(BUCKET, KEY, BUCKET, "folder/copy")
    with client.get_object(BUCKET, "folder/copy") as reader:
        assert reader.read() == BLOB
    (page,) = client.list_objects(BUCKET, delimiter="/")
    assert [info.key for info in page.object_info] == [KEY]
    assert page.common_prefixes == ("folder/",)
    pages = list(client.list_objects(BUCKET, max_keys=1))
    assert [[info.key for info in page.object_info] for page in pages] == [["folder/copy"], [KEY]]
    client.delete_object(BUCKET, KEY)
    client.delete_object(BUCKET, KEY)
    with pytest.raises(ObjectNotFoundError):
        client.head_object(BUCKET, KEY)


def test_a_stream_that_is_closed_begins_no_request() -> None:
    """Closing wakes who waits for bytes, with an error that must not be taken for a break."""
    asked: list[int] = []
    woken = threading.Event()

    class Stuck:
        def readinto(self, _: Any) -> int:
            assert woken.wait(10)
            raise EndpointError("woken")

        def close(self) -> None:
            woken.set()

    def begin(start: int, end: int | None) -> ObjectBody:
        asked.append(start)
        return ObjectBody(Stuck(), ObjectInfo(BUCKET, KEY, 100), start, 100)

    stream = ResumingStream(begin, 0, 100, Limits(5))
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            stream.readinto(bytearray(10))
        except EndpointError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    stream.close()
    thread.join(10)
    assert asked == [0]
    assert len(errors) == 1
