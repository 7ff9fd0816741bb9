"""Parts of a row-major tensor as byte ranges. Pure arithmetic: no I/O, no torch.

A region is a box inside a tensor: offsets and lengths in elements, one of each for each
dimension. On disk it is a set of runs; this module says how to cover it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """A box whose bytes are fetched together.

    ``offsets`` and ``lengths`` are in elements, relative to the region that was cut up.
    ``start`` and ``end`` are bytes of the tensor's data that cover the box. ``dense`` says
    that the box fills them in row-major order; otherwise there are gaps between its runs.
    """

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    start: int
    end: int
    dense: bool


def row_major_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in elements of a contiguous tensor."""
    strides = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * max(1, shape[dim + 1])
    return tuple(strides)


def cut_region(
    shape: Sequence[int],
    offsets: Sequence[int],
    lengths: Sequence[int],
    itemsize: int,
    *,
    limit: int,
    max_gap: int,
    sparse_limit: int | None = None,
    grid: int | None = None,
) -> tuple[Block, ...]:
    """Cut a region of a row-major tensor into blocks that cover it exactly once.

    Args:
        shape: Shape of the stored tensor.
        offsets: Where the region begins in it.
        lengths: Shape of the region.
        itemsize: Bytes of an element.
        limit: Bytes that a block's covering range has at most; a single element always fits.
        max_gap: A block reads through gaps of at most this many bytes between its runs.
        sparse_limit: The limit for blocks with gaps; None: the same.
        grid: Blocks with gaps don't reach across multiples of this many bytes; None: they may.

    Returns:
        Blocks in ascending order of ``start``; none for an empty region.
    """
    if any(length == 0 for length in lengths):
        return ()
    strides = row_major_strides(shape)
    base = sum(offset * stride for offset, stride in zip(offsets, strides, strict=True))
    sparse = limit if sparse_limit is None else sparse_limit
    cutter = _Cutter(strides, base, itemsize, limit, sparse, max_gap, grid)
    return tuple(cutter.cut((0,) * len(lengths), tuple(lengths)))


@dataclass(frozen=True)
class _Cutter:
    strides: tuple[int, ...]
    base: int
    itemsize: int
    limit: int
    sparse_limit: int
    max_gap: int
    grid: int | None

    def cut(self, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> Iterator[Block]:
        """The box itself where it fits, else its slices along the outermost dimension."""
        covering = self._covering(lengths)
        start = self._position(offsets)
        fits = covering <= self._limit(lengths) and self._widest_gap(lengths) <= self.max_gap
        if fits and self._within_grid(start, covering, lengths):
            yield Block(offsets, lengths, start, start + covering, self._dense(lengths))
            return
        dim = next((d for d, length in enumerate(lengths) if length > 1), None)
        if dim is None:
            yield Block(offsets, lengths, start, start + covering, True)
            return
        step, begin = self._step(lengths, dim), 0
        while begin < lengths[dim]:
            moved = (*offsets[:dim], offsets[dim] + begin, *offsets[dim + 1 :])
            size = self._up_to_line(moved, lengths, dim, min(step, lengths[dim] - begin))
            yield from self.cut(moved, (*lengths[:dim], size, *lengths[dim + 1 :]))
            begin += size

    def _within_grid(self, start: int, covering: int, lengths: tuple[int, ...]) -> bool:
        if self.grid is None or start // self.grid == (start + covering - 1) // self.grid:
            return True
        return self._dense(lengths)

    def _up_to_line(
        self, offsets: tuple[int, ...], lengths: tuple[int, ...], dim: int, size: int
    ) -> int:
        """How many of ``size`` slices along ``dim`` end before the next line of the grid."""
        sliced = (*lengths[:dim], size, *lengths[dim + 1 :])
        start = self._position(offsets)
        if self.grid is None or self._within_grid(start, self._covering(sliced), sliced):
            return size
        room = self.grid - start % self.grid
        slice_bytes = self._covering((*lengths[:dim], 1, *lengths[dim + 1 :]))
        return max(1, min(size, (room - slice_bytes) // (self.strides[dim] * self.itemsize) + 1))

    def _step(self, lengths: tuple[int, ...], dim: int) -> int:
        """How many slices along ``dim`` fit into one block."""
        slice_bytes = self._covering((*lengths[:dim], 1, *lengths[dim + 1 :]))
        stride = self.strides[dim] * self.itemsize
        limit = self._limit((*lengths[:dim], 2, *lengths[dim + 1 :]))
        if stride - slice_bytes > self.max_gap or slice_bytes > limit:
            return 1
        return max(1, min(lengths[dim] - 1, (limit - slice_bytes) // stride + 1))

    def _limit(self, lengths: tuple[int, ...]) -> int:
        return self.limit if self._dense(lengths) else self.sparse_limit

    def _covering(self, lengths: tuple[int, ...]) -> int:
        pairs = zip(lengths, self.strides, strict=True)
        return (sum((length - 1) * stride for length, stride in pairs) + 1) * self.itemsize

    def _widest_gap(self, lengths: tuple[int, ...]) -> int:
        """Bytes between two neighbouring slices of the outermost dimension that has several."""
        for dim, length in enumerate(lengths):
            if length > 1:
                one = self._covering((*lengths[:dim], 1, *lengths[dim + 1 :]))
                return self.strides[dim] * self.itemsize - one
        return 0

    def _dense(self, lengths: tuple[int, ...]) -> bool:
        count = self.itemsize
        for length in lengths:
            count *= length
        return count == self._covering(lengths)

    def _position(self, offsets: tuple[int, ...]) -> int:
        pairs = zip(offsets, self.strides, strict=True)
        return (self.base + sum(offset * stride for offset, stride in pairs)) * self.itemsize
