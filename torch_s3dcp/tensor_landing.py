"""How tensors arrive whose layout inside their archives is known beforehand.

* :class:`LargeTensor`: blocks of the data go straight into the tensor's own memory where
  dtype, strides and device allow it, else through a small scratch block and ``copy_``;
  devices with streams fetch such blocks while others are received.
* :class:`SmallTensor`: the whole archive arrives in scratch that it shares with its
  neighbours, and is taken apart without ``torch.load``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.distributed.checkpoint.planner import ReadItem

from .archive import LayoutError, parse_header
from .checksums import ZIP_CRC
from .decoding import copy_into, narrow
from .filling import Target
from .integrity import Level, joined
from .landing import BLOCK_SIZE, Landing, Part, Serve
from .layout import TensorLayout
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
from .stats import Outcome

# Blocks with gaps pass through scratch of the receiving thread, which should stay in its cache.
SPARSE_BLOCK_SIZE = 1024 * 1024


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
            crc = self.verification.trailer(archive[data_end:], self.nbytes)
        except LayoutError:
            self.verification.archive(archive)
            self._serve(self.planned, archive)
            return Outcome.FALLBACK
        if self.verification.by_archive:
            self.verification.compare(crc, ZIP_CRC.update(data, 0))
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
        checksums, level = self.verification.checksums, self.verification.level
        yield self.piece(self.start, data, self._header)
        for request in self.planned.requests:
            sums: list[tuple[int, int, int]] | None = None
            if tuple(request.lengths) == self.shape and level != "off":
                self._sums.append(sums := [])
            for block in cut_region(
                self.shape,
                tuple(request.storage_offsets),
                tuple(request.lengths),
                self.dtype.itemsize,
                limit=BLOCK_SIZE,
                sparse_limit=SPARSE_BLOCK_SIZE - 1,  # no reader cuts these any more
                max_gap=max_gap,
                grid=checksums.chunk if checksums else None,
            ):
                part = BlockPart(self, block, request)
                part.sums = sums if self.verification.by_archive else None
                self._blocks.append(part)
                yield self.piece(data + block.start, data + block.end, part)
        if self._sums:
            self._trailer = Part(self, self.end - data - self.nbytes)
            yield self.piece(data + self.nbytes, self.end, self._trailer)

    def finish(self) -> Outcome:
        self.check_header(self._header.content)
        if self._trailer is not None:
            verification = self.verification
            crc = verification.trailer(self._trailer.content, self.nbytes)
            if verification.by_archive:
                for sums in self._sums:
                    verification.compare(crc, joined(sums))
                # Nothing is known about a slice that was received besides.
                verification.enough &= len(self._sums) == len(self.planned.requests)
            self._trailer.memory = None
        self._header.memory = None
        self.commit()
        direct = all(block.in_place for block in self._blocks)
        self._blocks.clear()
        return Outcome.DIRECT if direct else Outcome.SCRATCH
