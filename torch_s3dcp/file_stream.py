"""One file of a save as a stream: items become bytes when they are needed.

Notes where each item came to lie, and the checksums of its pieces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from types import GeneratorType
from typing import cast

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem

from ._torch import StreamTransformExtension
from .checksums import CRC64
from .chunk_checksums import SMALL_ITEM, DataRange, FileChecksums, ItemChecksums, of_small, packed
from .exceptions import S3DCPError
from .items import serialize
from .segments import SegmentStream
from .transports.effort import Halt
from .unloading import Unloaded, Unloading


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
        unloading: Gets tensors off devices.
    """

    def __init__(
        self,
        items: Sequence[WriteItem],
        resolve: Callable[[WriteItem], torch.Tensor | BytesIO],
        extensions: Sequence[StreamTransformExtension],
        stop: Halt,
        stored: Callable[[int], None],
        unloading: Unloading,
    ) -> None:
        self._produced = cast("GeneratorType[memoryview]", self._produce(items, resolve))
        super().__init__(self._produced)
        self._unloader = unloading.file(self._proceed)
        self._extensions = extensions
        self._stop = stop
        self._stored = stored
        self._checksums = FileChecksums()
        self._written: list[WrittenItem] = []
        self._large: list[_LargeItem] = []

    def take(self, size: int) -> list[memoryview]:
        self._proceed()
        start = self.position
        blocks = super().take(size)
        self._unloader.ring.taken(start, self.position)
        return blocks

    def checksum(self, start: int, blocks: Iterable[memoryview]) -> int:
        return self._checksums.of(start, blocks)

    def release(self, start: int, size: int) -> None:
        self._unloader.ring.release(start, size)
        self._stored(size)

    def give_up(self, error: BaseException) -> None:
        self._unloader.ring.give_up(error)

    def close(self) -> None:
        """End the copies of tensors on devices, whatever was read."""
        # A thread that still reads, since the upload was interrupted, ends it by itself.
        if not self._produced.gi_running:
            self._produced.close()
        super().close()

    def written(self) -> list[WrittenItem]:
        """All items; to be called when everything is stored.

        Items whose data a transport took without asking for its checksum have none.
        """
        for large in self._large:
            large.item.checksums = large.checksums()
        self._large.clear()
        return self._written

    def _proceed(self) -> None:
        if self._stop.is_set():
            raise Cancelled

    def _read(self, size: int | None) -> list[memoryview]:
        self._proceed()
        start = self.position
        blocks = super()._read(size)
        self._unloader.ring.taken(start, self.position)
        # Who reads as from a file does not ask.
        self.checksum(start, blocks)
        return blocks

    def _produce(
        self,
        items: Sequence[WriteItem],
        resolve: Callable[[WriteItem], torch.Tensor | BytesIO],
    ) -> Generator[memoryview]:
        offset = 0
        try:
            for item, data in self._begun(items, resolve):
                if isinstance(data, Unloaded):
                    written = WrittenItem(item.index, offset, data.length)
                    self._written.append(written)
                    yield from self._from_device(written, data)
                    offset += data.length
                    continue
                with _of(item):
                    blocks = serialize(data, self._extensions)
                length = sum(map(len, blocks))
                written = WrittenItem(item.index, offset, length)
                self._written.append(written)
                if length <= SMALL_ITEM:
                    written.checksums = of_small(blocks, length)
                    yield from blocks
                else:
                    yield from self._large_item(written, blocks)
                offset += length
        finally:
            self._unloader.finish()

    def _begun(
        self,
        items: Sequence[WriteItem],
        resolve: Callable[[WriteItem], torch.Tensor | BytesIO],
    ) -> Iterator[tuple[WriteItem, torch.Tensor | BytesIO | Unloaded]]:
        """The items with their data; tensors on devices begin to be copied before their turn."""
        line = deque[tuple[WriteItem, torch.Tensor | BytesIO | Unloaded]]()
        for item in items:
            with _of(item):
                data: torch.Tensor | BytesIO | Unloaded = resolve(item)
                if isinstance(data, torch.Tensor):
                    data = self._unloader.begin(data, whole=bool(self._extensions)) or data
            line.append((item, data))
            while line and not (isinstance(line[-1][1], Unloaded) and self._unloader.looks_ahead):
                yield line.popleft()
        yield from line

    def _from_device(self, written: WrittenItem, unloaded: Unloaded) -> Iterator[memoryview]:
        begin = len(unloaded.header)
        start = written.offset + begin
        data = self._checksums.expect(start, start + unloaded.size)
        header = memoryview(unloaded.header)
        yield header
        yield from unloaded.blocks(start)
        trailer = memoryview(unloaded.trailer())
        around = CRC64.of([header]), CRC64.of([trailer])
        self._large.append(_LargeItem(written, begin, data, around))
        yield trailer

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


@contextmanager
def _of(item: WriteItem) -> Iterator[None]:
    """Errors name the item."""
    try:
        yield
    except S3DCPError as error:
        raise error.locate(tensor=item.index.fqn) from error


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
