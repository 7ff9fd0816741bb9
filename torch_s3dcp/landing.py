"""Where fetched bytes land: one class for each way in which an item can arrive.

* :class:`LargeTensor`: blocks of the data go straight into the tensor's own memory where
  dtype, strides and device allow it, else through a small scratch block and ``copy_``;
  devices with streams fetch such blocks while others are received.
* :class:`SmallTensor`: the whole archive arrives in scratch that it shares with its
  neighbours, and is taken apart without ``torch.load``.
* :class:`WholeItem`: everything else (blobs, transformed items, unknown layouts) arrives
  whole and is decoded the ordinary way.

All of this runs in the one thread that may talk to the planner.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from .archive import LayoutError, parse_header, parse_trailer, predict_data_offset
from .checksums import ZIP_CRC
from .exceptions import InvalidCheckpointError
from .filling import Target
from .integrity import DamagedItem, Level, is_sound_archive, known_checksums
from .items import copy_into, narrow
from .memory import (
    Destinations,
    Scatter,
    Scratch,
    ScratchBlock,
    as_tensor,
    byte_view,
    element_view,
)
from .plan import PlannedItem
from .regions import Block, cut_region, row_major_strides
from .spans import Piece

# Archives up to this size are fetched whole: their envelope is small change.
SMALL_ITEM = 128 * 1024
# Scratch blocks and cuts of large tensors have this many bytes at most.
BLOCK_SIZE = 8 * 1024 * 1024
# Blocks with gaps pass through scratch of the receiving thread, which should stay in its cache.
SPARSE_BLOCK_SIZE = 1024 * 1024

Serve = Callable[[PlannedItem[ReadItem], memoryview], None]


class Outcome(Enum):
    """How an item came into the state dict."""

    DIRECT = "direct"
    SCRATCH = "scratch"
    FALLBACK = "fallback"


class Part:
    """One piece of an item. As it is, it lands in scratch that it may share with neighbours."""

    shares_scratch = True
    #: Where the CRC-32 of its bytes is noted, as start, end, value; None: it is not wanted.
    sums: list[tuple[int, int, int]] | None = None

    def __init__(self, owner: Landing, size: int) -> None:
        self.owner = owner
        self.size = size
        self.missing = size
        self.memory: memoryview | None = None

    def prepare(self, size: int) -> int:
        """Get memory of its own; return how many bytes of scratch that took.

        Args:
            size: How many of the bytes come with the first request.
        """
        self.memory = memoryview(bytearray(self.size))
        return self.size

    @property
    def prepared(self) -> bool:
        """Whether there is a place for the bytes."""
        return self.memory is not None

    def place(self, offset: int, size: int) -> Target:
        """Where bytes of the part are to be received."""
        return self.content[offset : offset + size]

    @property
    def content(self) -> memoryview:
        """What has arrived."""
        if self.memory is None:
            raise RuntimeError("nothing has arrived yet")
        return self.memory

    def arrived(self) -> int:
        """All bytes are there; return how many bytes of scratch are free again."""
        return 0


class BlockPart(Part):
    """A block of a large tensor's data."""

    shares_scratch = False

    def __init__(self, owner: LargeTensor, block: Block, request: ReadItem) -> None:
        super().__init__(owner, block.end - block.start)
        self._tensor = owner
        self._block = block
        self._request = request
        self._target: torch.Tensor | None = None
        self._scratch: ScratchBlock | None = None
        self._scatter: Scatter | None = None
        self.in_place = False

    @property
    def prepared(self) -> bool:
        return self._scatter is not None or super().prepared

    def place(self, offset: int, size: int) -> Target:
        return super().place(offset, size) if self._scatter is None else self._scatter

    def prepare(self, size: int) -> int:
        tensor, block = self._tensor, self._block
        target = tensor.destinations.of(self._request)
        for dim, (offset, length) in enumerate(zip(block.offsets, block.lengths, strict=True)):
            target = target.narrow(dim, offset, length)
        same = target.dtype == tensor.dtype
        own = byte_view(target) if block.dense and same else None
        if own is not None:
            self.memory, self.in_place = own, True
            return 0
        whole = size == self.size <= SPARSE_BLOCK_SIZE
        view = element_view(target) if same and whole else None
        if view is not None:
            strides = row_major_strides(tensor.shape)
            steps = [stride * tensor.dtype.itemsize for stride in strides]
            self._scatter = Scatter(view, steps, self.size)
            return 0
        self._scratch, self._target = tensor.scratch.take(self.size, target), target
        self.memory = self._scratch.memory
        return self._scratch.capacity

    def arrived(self) -> int:
        freed = 0
        if self._scratch is not None and self._target is not None:
            strides = row_major_strides(self._tensor.shape)
            self._scratch.copy_to(self._target, self._tensor.dtype, strides)
            freed = self._scratch.capacity
        self.memory = self._scratch = self._target = self._scatter = None
        return freed


class Landing(ABC):
    """One stored item on its way into the state dict.

    Args:
        path: Its object, relative to the checkpoint.
        planned: The item, and who wants it.
        level: How far it is to be verified.
    """

    def __init__(self, path: str, planned: PlannedItem[ReadItem], level: Level) -> None:
        self.path = path
        self.planned = planned
        self.level = level
        #: What its bytes are compared with as they arrive.
        self.checksums = known_checksums(planned.stored, level)
        #: Whether nothing can be wrong with it once it is finished.
        self.verified = self.checksums is not None
        #: Times that it arrived damaged, as a whole.
        self.damaged = 0
        self.start = planned.stored.byte_range.start
        self.end = planned.stored.byte_range.end
        self.missing = 0
        #: Bytes of scratch that the item holds.
        self.held = 0

    @property
    def whole(self) -> int:
        """Bytes of memory that it takes at once, all on the word of the metadata."""
        return 0

    @property
    def name(self) -> str:
        """Name of the item, for messages."""
        return self.planned.requests[0].storage_index.fqn

    @abstractmethod
    def pieces(self, max_gap: int) -> Iterator[Piece[Part]]:
        """The bytes that the item needs, with the part that each becomes.

        To be called again if the item is to be fetched again.
        """

    @abstractmethod
    def finish(self) -> Outcome:
        """Check what has arrived and hand it to the planner.

        Raises:
            LayoutError: The archive is not what the metadata promised; the item must be
                fetched whole and decoded the ordinary way.
            DamagedItem: The item must be fetched again.
        """

    @property
    def sums(self) -> bool:
        """Whether the archive's own checksums are all there is."""
        return self.level == "full" and self.checksums is None

    def verify_archive(self, archive: memoryview) -> None:
        """Compare the records of an archive with its own checksums, if these are all there is.

        Raises:
            DamagedItem: They do not match.
        """
        if not self.sums or self.planned.stored.transforms:
            return
        sound = is_sound_archive(archive)
        if sound is False:
            raise DamagedItem
        self.verified = sound is True

    def piece(self, start: int, end: int, part: Part) -> Piece[Part]:
        """A piece of the object, counted as missing."""
        self.missing += end - start
        return Piece(start, end, part)


class WholeItem(Landing):
    """An item that is decoded the ordinary way."""

    def __init__(
        self, path: str, planned: PlannedItem[ReadItem], level: Level, serve: Serve
    ) -> None:
        super().__init__(path, planned, level)
        self._serve = serve

    @property
    def whole(self) -> int:
        return self.end - self.start

    def pieces(self, max_gap: int) -> Iterator[Piece[Part]]:
        self._all = Part(self, self.end - self.start)
        yield self.piece(self.start, self.end, self._all)

    def finish(self) -> Outcome:
        data = self._all.content if self._all.size else memoryview(b"")
        self.verify_archive(data)
        self._serve(self.planned, data)
        self._all.memory = None
        return Outcome.FALLBACK


class _TensorItem(Landing):
    """A tensor whose layout inside its archive is known beforehand."""

    def __init__(
        self,
        path: str,
        planned: PlannedItem[ReadItem],
        level: Level,
        layout: TensorLayout,
        destinations: Destinations,
    ) -> None:
        super().__init__(path, planned, level)
        self.dtype = layout.dtype
        self.shape = layout.shape
        self.nbytes = layout.nbytes
        self.data_offset = layout.data_offset
        self.destinations = destinations

    def check_header(self, header: memoryview) -> None:
        """Compare the archive's own description with the metadata's."""
        stored = parse_header(bytes(header))
        known = (str(self.dtype), self.shape, True)
        if (f"torch.{stored.dtype}", stored.shape, stored.contiguous) != known:
            raise LayoutError(f"{self.name} is stored as {stored}")

    def check_trailer(self, trailer: memoryview) -> int:
        """Compare the archive's end with the metadata; gives the CRC-32 of the data, or 0.

        Not looked at where all bytes were compared with checksums, or where none are to be.
        """
        known = self.level == "off" or self.checksums is not None
        return 0 if known else parse_trailer(bytes(trailer), self.nbytes)

    def compare(self, stored: int, found: int) -> None:
        """Compare the CRC-32 of the data with the archive's; 0 is none.

        Raises:
            DamagedItem: They differ.
        """
        if stored and stored != found:
            raise DamagedItem
        self.verified = stored != 0

    def commit(self) -> None:
        """All destinations are filled."""
        self.destinations.commit(self.planned.requests)


class SmallTensor(_TensorItem):
    """A small tensor: its archive arrives whole."""

    def __init__(
        self,
        path: str,
        planned: PlannedItem[ReadItem],
        level: Level,
        layout: TensorLayout,
        destinations: Destinations,
        serve: Serve,
    ) -> None:
        super().__init__(path, planned, level, layout, destinations)
        self._serve = serve

    def pieces(self, max_gap: int) -> Iterator[Piece[Part]]:
        self._all = Part(self, self.end - self.start)
        yield self.piece(self.start, self.end, self._all)

    def finish(self) -> Outcome:
        archive, data_end = self._all.content, self.data_offset + self.nbytes
        self._all.memory = None
        data = archive[self.data_offset : data_end]
        try:
            self.check_header(archive[: self.data_offset])
            crc = self.check_trailer(archive[data_end:])
        except LayoutError:
            self.verify_archive(archive)
            self._serve(self.planned, archive)
            return Outcome.FALLBACK
        if self.sums:
            self.compare(crc, ZIP_CRC.update(data, 0))
        stored = as_tensor(data, self.dtype).view(self.shape)
        for request in self.planned.requests:
            part = narrow(stored, request.storage_offsets, request.lengths)
            copy_into(self.destinations.of(request), part)
        self.commit()
        return Outcome.SCRATCH


class LargeTensor(_TensorItem):
    """A large tensor: only the blocks that are wanted arrive, in place where possible."""

    def __init__(
        self,
        path: str,
        planned: PlannedItem[ReadItem],
        level: Level,
        layout: TensorLayout,
        destinations: Destinations,
        scratch: Scratch,
    ) -> None:
        super().__init__(path, planned, level, layout, destinations)
        self.scratch = scratch

    def pieces(self, max_gap: int) -> Iterator[Piece[Part]]:
        data = self.start + self.data_offset
        self._header = Part(self, self.data_offset)
        self._trailer: Part | None = None
        self._blocks: list[BlockPart] = []
        # One for each request that wants all of the data: each has bytes of its own.
        self._sums: list[list[tuple[int, int, int]]] = []
        yield self.piece(self.start, data, self._header)
        for request in self.planned.requests:
            sums: list[tuple[int, int, int]] | None = None
            if tuple(request.lengths) == self.shape and self.level != "off":
                self._sums.append(sums := [])
            for block in cut_region(
                self.shape,
                tuple(request.storage_offsets),
                tuple(request.lengths),
                self.dtype.itemsize,
                limit=BLOCK_SIZE,
                sparse_limit=SPARSE_BLOCK_SIZE - 1,  # no reader cuts these any more
                max_gap=max_gap,
                grid=self.checksums.chunk if self.checksums else None,
            ):
                part = BlockPart(self, block, request)
                part.sums = sums if self.sums else None
                self._blocks.append(part)
                yield self.piece(data + block.start, data + block.end, part)
        if self._sums:
            self._trailer = Part(self, self.end - data - self.nbytes)
            yield self.piece(data + self.nbytes, self.end, self._trailer)

    def finish(self) -> Outcome:
        self.check_header(self._header.content)
        if self._trailer is not None:
            crc = self.check_trailer(self._trailer.content)
            if self.sums:
                for sums in self._sums:
                    self.compare(crc, _joined(sums))
                # Nothing is known about a slice that was received besides.
                self.verified &= len(self._sums) == len(self.planned.requests)
            self._trailer.memory = None
        self._header.memory = None
        self.commit()
        direct = all(block.in_place for block in self._blocks)
        self._blocks.clear()
        return Outcome.DIRECT if direct else Outcome.SCRATCH


def _joined(sums: list[tuple[int, int, int]]) -> int:
    """The CRC-32 of data from those of its pieces."""
    value = 0
    for start, end, part in sorted(sums):
        value = ZIP_CRC.combine(value, part, end - start)
    return value


class TensorLayout:
    """What the metadata tells of a stored tensor, and where its data must lie then."""

    def __init__(
        self, dtype: torch.dtype, shape: tuple[int, ...], nbytes: int, data_offset: int
    ) -> None:
        self.dtype = dtype
        self.shape = shape
        self.nbytes = nbytes
        self.data_offset = data_offset


def predict_layout(
    planned: PlannedItem[ReadItem], described: Mapping[str, Any]
) -> TensorLayout | None:
    """The layout of a stored item, None where it cannot be known beforehand.

    Args:
        described: The metadata's ``state_dict_metadata``.

    Raises:
        InvalidCheckpointError: A request reaches beyond the stored tensor.
    """
    index = planned.requests[0].storage_index
    about = described.get(index.fqn)
    blob = any(request.type == LoadItemType.BYTE_IO for request in planned.requests)
    if blob or planned.stored.transforms or not isinstance(about, TensorStorageMetadata):
        return None
    shape = _chunk_shape(about, index)
    if shape is None:
        return None
    dtype = about.properties.dtype
    nbytes = dtype.itemsize
    for size in shape:
        nbytes *= size
    offset = predict_data_offset(len(planned.stored.byte_range), nbytes)
    if offset is None:
        return None
    for request in planned.requests:
        _check_inside(request, shape)
    return TensorLayout(dtype, shape, nbytes, offset)


def _chunk_shape(about: TensorStorageMetadata, index: MetadataIndex) -> tuple[int, ...] | None:
    """Shape of the stored chunk that an index names."""
    if index.offset is None:
        return tuple(about.size) if len(about.chunks) == 1 else None
    if index.index is not None and 0 <= index.index < len(about.chunks):
        hinted = about.chunks[index.index]
        if hinted.offsets == index.offset:
            return tuple(hinted.sizes)
    return next((tuple(c.sizes) for c in about.chunks if c.offsets == index.offset), None)


def _check_inside(request: ReadItem, shape: tuple[int, ...]) -> None:
    box = zip(request.storage_offsets, request.lengths, shape, strict=False)
    alike = len(request.storage_offsets) == len(request.lengths) == len(shape)
    if not alike or any(not 0 <= start <= start + size <= end for start, size, end in box):
        raise InvalidCheckpointError(
            f"the load wants {list(request.lengths)} from {list(request.storage_offsets)} on of "
            f"a stored tensor of shape {list(shape)}",
            tensor=request.storage_index.fqn,
        )
