"""Regions: blocks cover a box of a tensor exactly once. numpy's slicing is the oracle."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.regions import cut_region, row_major_strides


@st.composite
def boxes(draw):
    shape = draw(st.lists(st.integers(1, 7), max_size=4))
    offsets = [draw(st.integers(0, size - 1)) for size in shape]
    lengths = [draw(st.integers(0, size - at)) for size, at in zip(shape, offsets, strict=True)]
    return shape, offsets, lengths


@given(
    boxes(),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 300),
    st.integers(0, 100),
    st.integers(1, 300) | st.none(),
    st.integers(1, 200) | st.none(),
)
def test_blocks_give_exactly_what_slicing_gives(
    box, itemsize, limit, max_gap, sparse_limit, grid
) -> None:
    shape, offsets, lengths = box
    stored = np.arange(int(np.prod(shape))).reshape(shape)
    expected = stored[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]
    found = np.full(lengths, -1)
    steps = [stride * stored.itemsize for stride in row_major_strides(shape)]
    blocks = cut_region(
        shape,
        offsets,
        lengths,
        itemsize,
        limit=limit,
        max_gap=max_gap,
        sparse_limit=sparse_limit,
        grid=grid,
    )
    for block in blocks:
        assert block.start % itemsize == block.end % itemsize == 0
        most = limit if block.dense or sparse_limit is None else sparse_limit
        assert block.end - block.start <= max(most, itemsize)
        if grid is not None and not block.dense:
            assert block.start // grid == (block.end - 1) // grid
        bytes_of_box = int(np.prod(block.lengths)) * itemsize
        assert block.dense == (bytes_of_box == block.end - block.start)
        flat = stored.ravel()[block.start // itemsize : block.end // itemsize]
        data = np.lib.stride_tricks.as_strided(flat, block.lengths, steps)
        pairs = zip(block.offsets, block.lengths, strict=True)
        place = tuple(slice(o, o + n) for o, n in pairs)
        assert (found[place] == -1).all()
        found[place] = data
    assert (found == expected).all()
    assert [b.start for b in blocks] == sorted(b.start for b in blocks)


@given(boxes(), st.sampled_from([1, 2, 4, 8]))
def test_without_gaps_only_wanted_bytes_are_covered(box, itemsize) -> None:
    shape, offsets, lengths = box
    blocks = cut_region(shape, offsets, lengths, itemsize, limit=10**6, max_gap=0)
    assert all(block.dense for block in blocks)
    covered = sum(block.end - block.start for block in blocks)
    assert covered == int(np.prod(lengths)) * itemsize


def test_rows_are_one_range_and_columns_many() -> None:
    rows = cut_region((64, 100), (8, 0), (8, 100), 2, limit=10**6, max_gap=0)
    assert [(b.start, b.end) for b in rows] == [(1600, 3200)]
    columns = cut_region((64, 100), (0, 50), (64, 10), 2, limit=10**6, max_gap=0)
    assert len(columns) == 64
    covering = cut_region((64, 100), (0, 50), (64, 10), 2, limit=10**6, max_gap=180)
    assert [(b.start, b.end, b.dense) for b in covering] == [(100, 63 * 200 + 120, False)]


def test_leading_dimensions_of_one_do_not_matter() -> None:
    (block,) = cut_region((1, 1, 64, 3), (0, 0, 4, 0), (1, 1, 8, 3), 4, limit=10**6, max_gap=0)
    assert (block.start, block.end, block.dense) == (48, 144, True)


def test_a_scalar_and_an_empty_region() -> None:
    (block,) = cut_region((), (), (), 8, limit=1, max_gap=0)
    assert (block.start, block.end) == (0, 8)
    assert cut_region((4, 0), (0, 0), (4, 0), 8, limit=1, max_gap=0) == ()
