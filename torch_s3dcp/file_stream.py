"""One file of a save as a stream: items become bytes when they are needed.

Notes where each item came to lie, and the checksums of its pieces.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem

from ._torch import StreamTransformExtension
from .checksums import CRC64
from .chunk_checksums import SMALL_ITEM, DataRange, FileChecksums, ItemChecksums, of_small, packed
from .exceptions import S3DCPError
from .items import serialize
from .segments import SegmentStream


class Cancelled(Exception):
    """Another file of the save failed; this one need not be finished."""


@dataclass
class WrittenItem:
    """Where an item lies in its file, in bytes, and the checksums of its pieces."""

    index: MetadataIndex
    offset: int
    length: int
    checksums: ItemChecksums | None = None


class FileStream(SegmentStream):
    """The bytes of a file.

    Args:
        items: What it consists of, in order.
        resolve: Gives an item's tensor or bytes. Called by whoever reads.
        extensions: Transformations of the stored bytes.
        stop: Once set, reading ends with :class:`Cancelled`.
        stored: Told how many bytes more are stored; called by several threads.
    """

    def __init__(
        self,
        items: Sequence[WriteItem],
        resolve: Callable[[WriteItem], torch.Tensor | BytesIO],
        extensions: Sequence[StreamTransformExtension],
        stop: threading.Event,
        stored: Callable[[int], None],
    ) -> None:
        super().__init__(self._produce(items, resolve))
        self._extensions = extensions
        self._stop = stop
        self._stored = stored
        self._checksums = FileChecksums()
        self._written: list[WrittenItem] = []
        self._large: list[_LargeItem] = []

    def take(self, size: int) -> list[memoryview]:
        if self._stop.is_set():
            raise Cancelled
        return super().take(size)

    def checksum(self, start: int, blocks: Iterable[memoryview]) -> int:
        return self._checksums.of(start, blocks)

    def release(self, start: int, size: int) -> None:
        self._stored(size)

    def written(self) -> list[WrittenItem]:
        """All items; to be called when everything is stored.

        Items whose data a transport took without asking for its checksum have none.
        """
        for large in self._large:
            large.item.checksums = large.checksums()
        self._large.clear()
        return self._written

    def _read(self, size: int | None) -> list[memoryview]:
        if self._stop.is_set():
            raise Cancelled
        start = self.position
        blocks = super()._read(size)
        # Who reads as from a file does not ask.
        self.checksum(start, blocks)
        return blocks

    def _produce(
        self,
        items: Sequence[WriteItem],
        resolve: Callable[[WriteItem], torch.Tensor | BytesIO],
    ) -> Iterator[memoryview]:
        offset = 0
        for item in items:
            try:
                blocks = serialize(resolve(item), self._extensions)
            except S3DCPError as error:
                raise error.locate(tensor=item.index.fqn) from error
            length = sum(map(len, blocks))
            written = WrittenItem(item.index, offset, length)
            self._written.append(written)
            if length <= SMALL_ITEM:
                written.checksums = of_small(blocks, length)
                yield from blocks
            else:
                yield from self._large_item(written, blocks)
            offset += length

    def _large_item(
        self, written: WrittenItem, blocks: Sequence[memoryview]
    ) -> Iterator[memoryview]:
        """The blocks of an item. The largest is cut in pieces; what surrounds it is two more."""
        largest = max(range(len(blocks)), key=lambda number: len(blocks[number]))
        begin = sum(map(len, blocks[:largest]))
        start = written.offset + begin
        data = self._checksums.expect(start, start + len(blocks[largest]))
        around = CRC64.of(blocks[:largest]), CRC64.of(blocks[largest + 1 :])
        self._large.append(_LargeItem(written, begin, data, around))
        yield from blocks


@dataclass
class _LargeItem:
    """An item with one large block of data, whose checksums come with those of the parts."""

    item: WrittenItem
    begin: int
    data: DataRange
    around: tuple[int, int]

    def checksums(self) -> ItemChecksums | None:
        values = self.data.values()
        if values is None:
            return None
        end = self.begin + self.data.end - self.data.start
        before = packed(self.around[0]) if self.begin else b""
        behind = packed(self.around[1]) if end < self.item.length else b""
        return ItemChecksums(self.begin, end, self.data.chunk, before + values + behind)
