"""``dcp_optimized``: one ranged GET for each group of planned items, never a HEAD."""

from __future__ import annotations

import gc
import io
import math
import pickle
import tracemalloc
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp import (
    DCPOptimizedConstructor,
    DCPOptimizedS3Reader,
    S3Client,
    S3Reader,
    S3ReaderConstructor,
    SequentialS3Reader,
)
from torch_s3dcp.exceptions import ConfigurationError, TruncatedObjectError
from torch_s3dcp.ranges import ItemRange, coalesce
from torch_s3dcp.testing.strategies import object_with_items
from torch_s3dcp.testing.wrappers import RecordingTransport
from torch_s3dcp.transports import MemoryTransport

BUCKET, KEY = "bucket", "run/__0_0.distcp"
BLOB = bytes((3 * i + i // 256) % 256 for i in range(1000))
ITEMS = (ItemRange(0, 100), ItemRange(100, 200), ItemRange(210, 300), ItemRange(500, 600))


def stored(blob: bytes = BLOB, *keys: str) -> RecordingTransport:
    memory = MemoryTransport(BUCKET)
    for key in keys or (KEY,):
        memory.put(BUCKET, key, blob)
    return RecordingTransport(memory)


def reader_of(transport: Any, gap: float = 0, ranges: Sequence[ItemRange] = ITEMS) -> S3Reader:
    constructor = DCPOptimizedConstructor(gap).with_item_ranges(ranges)
    return S3Client(transport=transport).get_object(BUCKET, KEY, reader_constructor=constructor)


def read_at(reader: S3Reader, item: ItemRange) -> bytes:
    reader.seek(item.start)
    return reader.read(len(item))


def gets(transport: RecordingTransport) -> list[tuple[int | None, int | None]]:
    return [(request.start, request.end) for request in transport.of("get")]


@pytest.mark.parametrize(
    ("gap", "groups"),
    [
        (0, [(0, 200), (210, 300), (500, 600)]),
        (9, [(0, 200), (210, 300), (500, 600)]),
        (10, [(0, 300), (500, 600)]),
        (199, [(0, 300), (500, 600)]),
        (200, [(0, 600)]),
        (math.inf, [(0, 600)]),
    ],
)
def test_one_get_for_each_group_and_the_gap_is_inclusive(
    gap: float, groups: list[tuple[int, int]]
) -> None:
    transport = stored()
    with reader_of(transport, gap) as reader:
        for item in ITEMS:
            assert read_at(reader, item) == BLOB[item.start : item.end]
    assert gets(transport) == groups
    assert transport.of("head") == ()


@given(object_with_items(), st.sampled_from([0, 1, 50, math.inf]))
def test_as_many_gets_as_groups_and_no_byte_twice(
    given_object: tuple[bytes, Sequence[ItemRange]], gap: float
) -> None:
    blob, ranges = given_object
    transport = stored(blob)
    with reader_of(transport, gap, ranges) as reader:
        for item in sorted(ranges):
            assert read_at(reader, item) == blob[item.start : item.end]
    groups = coalesce(ranges, max_gap=gap)
    assert gets(transport) == [(group.start, group.end) for group in groups]
    assert transport.summary().received <= sum(group.end - group.start for group in groups)


def test_a_skipped_item_costs_no_request_of_its_own() -> None:
    transport = stored()
    with reader_of(transport, 0) as reader:
        assert read_at(reader, ITEMS[1]) == BLOB[100:200]
        assert read_at(reader, ITEMS[3]) == BLOB[500:600]
    assert gets(transport) == [(100, 200), (500, 600)]


def test_a_skipped_item_inside_a_group_is_read_through() -> None:
    transport = stored()
    with reader_of(transport, math.inf) as reader:
        for item in (ITEMS[0], ITEMS[3]):
            assert read_at(reader, item) == BLOB[item.start : item.end]
    assert gets(transport) == [(0, 600)]


def test_one_chunk_may_be_read_for_two_items() -> None:
    transport = stored()
    with reader_of(transport, 0, [ITEMS[0], ITEMS[0], ItemRange(50, 150)]) as reader:
        for item in (ITEMS[0], ITEMS[0], ItemRange(50, 150)):
            assert read_at(reader, item) == BLOB[item.start : item.end]
    assert gets(transport) == [(0, 150)]
    assert transport.summary().received == 150


def test_inside_the_current_item_reading_is_free() -> None:
    transport = stored()
    with reader_of(transport, 0) as reader:
        for start, end in ((150, 160), (100, 200), (199, 200), (100, 101)):
            assert read_at(reader, ItemRange(start, end)) == BLOB[start:end]
        assert reader.seek(-1, io.SEEK_CUR) == 100
    assert gets(transport) == [(100, 200)]


def test_back_to_an_earlier_item_is_refused_with_a_way_out() -> None:
    with reader_of(stored(), 0) as reader:
        read_at(reader, ITEMS[1])
        with pytest.raises(ValueError, match=r"before the current item.*sequential or range_based"):
            read_at(reader, ITEMS[0])
        assert read_at(reader, ITEMS[2]) == BLOB[210:300]


@pytest.mark.parametrize(("start", "size"), [(300, 1), (200, 10), (150, 100), (9999, 1), (599, 2)])
def test_beyond_the_plan_is_refused(start: int, size: int) -> None:
    transport = stored()
    with reader_of(transport, math.inf) as reader:
        reader.seek(start)
        with pytest.raises(ValueError, match="not inside one of the planned ranges"):
            reader.read(size)
        with pytest.raises(ValueError, match="planned ranges"):
            reader.readinto(bytearray(size))
    assert transport.requests == ()


def test_what_would_need_the_objects_end_is_refused() -> None:
    transport = stored()
    with reader_of(transport, math.inf) as reader:
        reader.seek(500)
        for use in (reader.read, lambda: reader.read(-1), lambda: reader.read(None)):
            with pytest.raises(ValueError, match="does not know the object's end"):
                use()
        with pytest.raises(ValueError, match="does not know the object's end"):
            reader.seek(0, io.SEEK_END)
        assert reader.tell() == 500
    assert transport.requests == ()


def test_a_negative_seek_leaves_the_position() -> None:
    with reader_of(stored()) as reader:
        reader.seek(5)
        for offset, whence in ((-1, io.SEEK_SET), (-6, io.SEEK_CUR)):
            with pytest.raises(ValueError, match="before the start"):
                reader.seek(offset, whence)
        assert reader.tell() == 5
        assert reader.read(5) == BLOB[5:10]


def test_an_object_shorter_than_the_plan_is_an_error() -> None:
    with reader_of(stored(BLOB[:550])) as reader:
        assert read_at(reader, ITEMS[2]) == BLOB[210:300]
        with pytest.raises(TruncatedObjectError):
            read_at(reader, ITEMS[3])


def test_holds_one_item_at_a_time() -> None:
    size, count = 1024 * 1024, 8
    blob = bytes(size * count)
    ranges = [ItemRange(i * size, (i + 1) * size) for i in range(count)]
    transport = stored(blob)
    target = bytearray(size)
    with reader_of(transport, 0, ranges) as reader:
        gc.collect()
        tracemalloc.start()
        try:
            for item in ranges:
                reader.seek(item.start)
                assert reader.readinto(target) == size
            _, peak = tracemalloc.get_traced_memory()
            del blob
            reader.close()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # MemoryTransport answers with a copy of the one group: 8 MiB that are not the reader's.
    assert peak < (count + 2.5) * size
    assert after < size


def test_needs_a_range_that_is_not_empty() -> None:
    for ranges in ([], [ItemRange(5, 5)]):
        with pytest.raises(ConfigurationError, match="at least one range"):
            reader_of(stored(), 0, ranges)


# ---- DCPOptimizedConstructor, the reference's way of announcing ranges


def entry(path: str, offset: int, length: int) -> SimpleNamespace:
    return SimpleNamespace(relative_path=path, offset=offset, length=length)


def item(index: str) -> SimpleNamespace:
    return SimpleNamespace(storage_index=index)


STORAGE = {"a": entry("x.distcp", 0, 10), "b": entry("x.distcp", 20, 5), "c": entry("y", 3, 4)}


@pytest.mark.parametrize("wrong", [-1, -0.5, math.nan])
def test_a_negative_gap_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="negative"):
        S3ReaderConstructor.dcp_optimized(wrong)


@pytest.mark.parametrize("wrong", ["1", None, True])
def test_a_gap_is_a_number(wrong: Any) -> None:
    with pytest.raises(TypeError, match="number"):
        S3ReaderConstructor.dcp_optimized(wrong)


def test_default_gap_is_32_mib() -> None:
    assert S3ReaderConstructor.dcp_optimized().max_gap_size == 32 * 1024 * 1024


def test_announcing_ranges_replaces_what_was_announced() -> None:
    constructor = S3ReaderConstructor.dcp_optimized()
    assert dict(constructor.item_ranges_by_file) == {}
    constructor.set_item_ranges_by_file([item("a"), item("b"), item("c")], STORAGE, "s3://bk0/run")
    assert dict(constructor.item_ranges_by_file) == {
        "s3://bk0/run/x.distcp": [ItemRange(0, 10), ItemRange(20, 25)],
        "s3://bk0/run/y": [ItemRange(3, 7)],
    }
    constructor.set_item_ranges_by_file([item("c")], STORAGE, "s3://bk0/run")
    assert dict(constructor.item_ranges_by_file) == {"s3://bk0/run/y": [ItemRange(3, 7)]}


@pytest.mark.parametrize("storage", [STORAGE, {}])
def test_an_empty_plan_gives_an_empty_map(storage: dict[str, Any]) -> None:
    constructor = S3ReaderConstructor.dcp_optimized()
    constructor.set_item_ranges_by_file([item("a")], STORAGE, "s3://bk0/run")
    constructor.set_item_ranges_by_file([], storage, "s3://bk0/run")
    assert dict(constructor.item_ranges_by_file) == {}


def test_items_without_storage_data_are_refused() -> None:
    with pytest.raises(ValueError, match="storage_data is empty"):
        S3ReaderConstructor.dcp_optimized().set_item_ranges_by_file([item("a")], {}, "s3://bk0/run")


def test_what_it_builds_depends_on_the_object() -> None:
    transport = stored(BLOB, "run/.metadata", "run/x.distcp", "run/z")
    client = S3Client(transport=transport)
    constructor = S3ReaderConstructor.dcp_optimized(0)
    constructor.set_item_ranges_by_file([item("b")], STORAGE, f"s3://{BUCKET}/run/")
    metadata = client.get_object(BUCKET, "run/.metadata", reader_constructor=constructor)
    assert isinstance(metadata, SequentialS3Reader)
    with client.get_object(BUCKET, "run/x.distcp", reader_constructor=constructor) as reader:
        assert isinstance(reader, DCPOptimizedS3Reader)
        assert read_at(reader, ItemRange(20, 25)) == BLOB[20:25]
    with pytest.raises(ValueError, match=rf"s3://{BUCKET}/run/z.*with_item_ranges.*sequential"):
        client.get_object(BUCKET, "run/z", reader_constructor=constructor)
    assert gets(transport) == [(20, 25)]


def test_an_announcement_survives_pickling() -> None:
    constructor = S3ReaderConstructor.dcp_optimized(7)
    constructor.set_item_ranges_by_file([item("c")], STORAGE, "s3://bk0/run")
    copy = pickle.loads(pickle.dumps(constructor))
    assert copy.max_gap_size == 7
    assert dict(copy.item_ranges_by_file) == dict(constructor.item_ranges_by_file)
    assert S3ReaderConstructor.get_reader_type_string(copy) == "dcp_optimized"


def test_without_any_announcement_it_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="no ranges are known for s3://bucket/run/__0_0"):
        S3Client(transport=stored()).get_object(BUCKET, KEY, reader_constructor="dcp_optimized")
