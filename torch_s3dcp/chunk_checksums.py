"""Checksums of the pieces of stored items, so that a part of an item can be verified. Pure.

An item is cut at the beginning and the end of its data, and in between every ``chunk`` bytes of
the data. The CRC64NVME of each piece is kept beside the item's place in the metadata. They are
taken while the checksums of an upload's parts are: no byte is looked at twice.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .checksums import CRC64

# Readers fetch whole pieces: a slice that is not aligned costs up to two of them.
SMALLEST_CHUNK = 1024 * 1024
# Checksums of an item at most, but for few; larger tensors have larger slices.
_MOST_CHUNKS = 1024
# Items up to this size have one checksum, taken apart from those of the parts, but of bytes that
# are copied next: smaller blocks are joined before they are sent.
SMALL_ITEM = 16 * 1024
_WIDTH = CRC64.width


@dataclass(frozen=True)
class ItemChecksums:
    """Checksums of the pieces of one item. Offsets are bytes from the item's beginning.

    Args:
        begin: Where the data begins.
        end: Where it ends.
        chunk: Bytes of data in a piece.
        values: The checksums, 8 bytes each, big-endian, in the order of the pieces.
    """

    begin: int
    end: int
    chunk: int
    values: bytes

    @property
    def single(self) -> int | None:
        """The checksum of the whole item, where that is the only one."""
        return int.from_bytes(self.values, "big") if len(self.values) == _WIDTH else None

    def pieces(self, length: int) -> Iterator[tuple[int, int, int]]:
        """Start, end and checksum of every piece of an item of ``length`` bytes."""
        cuts = cuts_of(self.begin, self.end, self.chunk, length)
        for number, (start, end) in enumerate(pairwise(cuts)):
            place = number * _WIDTH
            yield start, end, int.from_bytes(self.values[place : place + _WIDTH], "big")

    def widened(self, start: int, end: int, length: int) -> tuple[int, int]:
        """Where the pieces begin and end that hold ``[start, end)``, which is not empty."""
        return self._start(self._at(start), length), self._start(self._at(end - 1) + 1, length)

    def between(self, start: int, end: int, length: int) -> list[tuple[int, int, int]]:
        """Start, end and checksum of the pieces from one cut to another."""
        first, last = self._at(start), self._at(end - 1)
        edges = [self._start(number, length) for number in range(first, last + 2)]
        values = struct.unpack_from(f">{last + 1 - first}Q", self.values, first * _WIDTH)
        return list(zip(edges, edges[1:], values, strict=False))

    def _at(self, offset: int) -> int:
        """Number of the piece that holds a byte."""
        around = self.begin > 0
        if offset < self.begin:
            return 0
        if offset < self.end:
            return around + (offset - self.begin) // self.chunk
        return around - (-(self.end - self.begin) // self.chunk)

    def _start(self, number: int, length: int) -> int:
        """Where a piece begins; ``length`` for one more than there are."""
        inner = number - (self.begin > 0)
        if inner < 0:
            return 0
        place = self.begin + inner * self.chunk
        if place < self.end:
            return place
        return self.end if place < self.end + self.chunk else length

    def as_tuple(self) -> tuple[int, int, int, bytes]:
        """As it is stored: plain values, which any version of anything can read."""
        return self.begin, self.end, self.chunk, self.values


def parse_checksums(stored: Any, length: int) -> ItemChecksums | None:
    """The checksums of an item of ``length`` bytes, from what is stored; None for anything else."""
    try:
        begin, end, chunk, values = stored
        numbers = all(type(number) is int for number in (begin, end, chunk))
        if not numbers or not 0 <= begin <= end <= length or chunk < 1 or type(values) is not bytes:
            return None
    except (TypeError, ValueError):
        return None
    inner = -(-(end - begin) // chunk)
    if len(values) != _WIDTH * (inner + (begin > 0) + (length > end)):
        return None
    return ItemChecksums(begin, end, chunk, values)


def cuts_of(begin: int, end: int, chunk: int, length: int) -> list[int]:
    """Where an item is cut, its beginning and its end among them."""
    return sorted({0, *range(begin, end, chunk), end, length})


def chunk_size_for(size: int) -> int:
    """Bytes of a piece of ``size`` bytes of data: a power of two."""
    wanted = max(SMALLEST_CHUNK, -(-size // _MOST_CHUNKS))
    return 1 << (wanted - 1).bit_length()


def of_small(blocks: Iterable[memoryview], length: int) -> ItemChecksums:
    """The one checksum of a small item."""
    return ItemChecksums(0, length, SMALLEST_CHUNK, packed(CRC64.of(blocks)) if length else b"")


@dataclass
class DataRange:
    """Data in a file that is being written, and the checksums of what was sent of it.

    Args:
        start: Where it begins in the file.
        end: Where it ends.
    """

    start: int
    end: int
    chunk: int = field(init=False)
    _sent: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chunk = chunk_size_for(self.end - self.start)

    def next_cut(self, place: int) -> int:
        """Where the piece ends that a place in the file belongs to."""
        return min(self.end, place + self.chunk - (place - self.start) % self.chunk)

    def note(self, place: int, size: int, value: int) -> None:
        """Bytes within one piece have this checksum. Called by several threads."""
        self._sent.append((place, size, value))

    def values(self) -> bytes | None:
        """The checksums of all pieces; None where some were not noted."""
        values, place, value = list[int](), self.start, 0
        for begin, size, part in sorted(self._sent):
            if begin != place:
                return None
            at_cut = (place - self.start) % self.chunk == 0
            value = part if at_cut else CRC64.combine(value, part, size)
            place += size
            if place == self.next_cut(begin):
                values.append(value)
        return b"".join(map(packed, values)) if place == self.end else None


class FileChecksums:
    """Takes the checksums of parts of a file, and of the pieces of its large items with them."""

    def __init__(self) -> None:
        self._ranges: list[DataRange] = []
        self._starts: list[int] = []

    def expect(self, start: int, end: int) -> DataRange:
        """There will be large data at a place behind all others; called before it is sent."""
        found = DataRange(start, end)
        self._ranges.append(found)
        self._starts.append(start)
        return found

    def of(self, start: int, blocks: Iterable[memoryview]) -> int:
        """The CRC64NVME of bytes that begin at a place in the file. Called by several threads."""
        value, place = 0, start
        for block in blocks:
            done = 0
            while done < len(block):
                known = self._range_at(place)
                if known is None:
                    size = min(len(block) - done, self._next_start(place) - place)
                    value = CRC64.update(block[done : done + size], value)
                else:
                    size = min(len(block) - done, known.next_cut(place) - place)
                    part = CRC64.update(block[done : done + size], 0)
                    known.note(place, size, part)
                    value = CRC64.combine(value, part, size)
                done += size
                place += size
        return value

    def _range_at(self, place: int) -> DataRange | None:
        number = bisect_right(self._starts, place) - 1
        found = self._ranges[number] if number >= 0 else None
        return found if found is not None and place < found.end else None

    def _next_start(self, place: int) -> int:
        number = bisect_right(self._starts, place)
        return self._starts[number] if number < len(self._starts) else 1 << 62


def packed(value: int) -> bytes:
    """A checksum as it is stored."""
    return value.to_bytes(_WIDTH, "big")
