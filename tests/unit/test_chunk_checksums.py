"""Checksums of the pieces of items, against the checksum of each piece taken by itself."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from awscrt import checksums as oracle
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.chunk_checksums import (
    SMALLEST_CHUNK,
    FileChecksums,
    ItemChecksums,
    chunk_size_for,
    cuts_of,
    of_small,
    parse_checksums,
)

CONTENT = memoryview(random.Random(3).randbytes(5 * SMALLEST_CHUNK))


@st.composite
def files(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], list[int]]:
    """Size of a file, its large ranges of data, and where it is cut into parts."""
    size = draw(st.integers(0, len(CONTENT)))
    ends = sorted(draw(st.lists(st.integers(0, size), max_size=6)))
    ranges = [(a, b) for a, b in zip(ends[::2], ends[1::2], strict=False) if a < b]
    cuts = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=6))})
    return size, ranges, cuts


@given(files(), st.randoms(use_true_random=False))
def test_pieces_and_parts_have_the_checksums_of_their_bytes(
    file: tuple[int, list[tuple[int, int]], list[int]], order: random.Random
) -> None:
    _size, ranges, cuts = file
    checksums = FileChecksums()
    expected = [checksums.expect(*one) for one in ranges]
    parts = list(itertools.pairwise(cuts))
    order.shuffle(parts)
    for start, end in parts:
        # In blocks, as they come from several items.
        middle = order.randint(start, end)
        blocks = [CONTENT[start:middle], CONTENT[middle:end]]
        assert checksums.of(start, blocks) == oracle.crc64nvme(CONTENT[start:end])
    for (start, end), found in zip(ranges, expected, strict=True):
        values = found.values()
        assert values is not None
        item = ItemChecksums(0, end - start, found.chunk, values)
        for begin, stop, value in item.pieces(end - start):
            assert stop - begin <= found.chunk
            assert value == oracle.crc64nvme(CONTENT[start + begin : start + stop])


def test_what_was_not_asked_for_is_not_known() -> None:
    checksums = FileChecksums()
    data = checksums.expect(10, 1000)
    checksums.of(0, [CONTENT[:500]])
    assert data.values() is None
    checksums.of(600, [CONTENT[600:2000]])
    assert data.values() is None
    checksums.of(500, [CONTENT[500:600]])
    assert data.values() is not None


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(1, 20))
def test_cuts_cover_an_item(begin: int, data: int, behind: int, chunk: int) -> None:
    end, length = begin + data, begin + data + behind
    cuts = cuts_of(begin, end, chunk, length)
    assert cuts[0] == 0
    assert cuts[-1] == length
    assert cuts == sorted(set(cuts))
    assert {begin, end} <= set(cuts)
    inner = [cut for cut in cuts if begin <= cut <= end]
    assert all(b - a == chunk for a, b in itertools.pairwise(inner[:-1]))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(1, 20))
def test_stored_checksums_read_back(begin: int, data: int, behind: int, chunk: int) -> None:
    end, length = begin + data, begin + data + behind
    pieces = len(cuts_of(begin, end, chunk, length)) - 1
    whole = ItemChecksums(begin, end, chunk, bytes(range(8)) * pieces)
    assert parse_checksums(whole.as_tuple(), length) == whole
    assert len(list(whole.pieces(length))) == pieces
    if pieces:
        assert all(v == int.from_bytes(bytes(range(8)), "big") for *_, v in whole.pieces(length))
    longer = ItemChecksums(begin, end, chunk, whole.values + bytes(8))
    assert parse_checksums(longer.as_tuple(), length) is None


@pytest.mark.parametrize(
    "stored",
    [
        None,
        7,
        (),
        (0, 10, 1),
        (0, 10, 4, "text"),
        (0, 10, 0, bytes(24)),
        (0, 11, 4, bytes(24)),
        (-1, 10, 4, bytes(24)),
        (5, 4, 4, bytes(16)),
        (0.0, 10, 4, bytes(24)),
        (0, 10, 4, bytes(23)),
        (False, 10, 4, bytes(24)),
    ],
)
def test_anything_else_is_no_checksum(stored: Any) -> None:
    assert parse_checksums((0, 10, 4, bytes(24)), 10) is not None
    assert parse_checksums(stored, 10) is None


@given(st.integers(0, 2**50))
def test_chunks_are_few_and_powers_of_two(size: int) -> None:
    chunk = chunk_size_for(size)
    assert chunk >= SMALLEST_CHUNK
    assert chunk & (chunk - 1) == 0
    assert size / chunk <= 1024


def test_small_items_have_one() -> None:
    item = of_small([CONTENT[:100], CONTENT[100:200]], 200)
    assert list(item.pieces(200)) == [(0, 200, oracle.crc64nvme(CONTENT[:200]))]
    assert list(of_small([], 0).pieces(0)) == []
    assert parse_checksums(of_small([], 0).as_tuple(), 0) is not None
