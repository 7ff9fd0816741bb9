"""Which ranges of earlier objects are copied: laws over any layout."""

from __future__ import annotations

import itertools

from awscrt import checksums as oracle
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.parts import MIN_PART_SIZE
from torch_s3dcp.reuse import PART_OF_COPY, Piece, Reusable, parts_of_copy, plan_runs

MIB = 2**20


@st.composite
def layouts(draw: st.DrawFn) -> list[Reusable[int]]:
    """Items side by side in some objects, of which some are left out."""
    found, number = [], 0
    for path in "abc"[: draw(st.integers(1, 3))]:
        place = 0
        for size in draw(st.lists(st.integers(1, 9 * MIB), max_size=12)):
            if draw(st.booleans()):
                found.append(Reusable(number, path, place, place + size))
            place += size
            number += 1
    return draw(st.permutations(found))


@given(layouts())
def test_runs_are_large_whole_and_as_long_as_can_be(items: list[Reusable[int]]) -> None:
    runs = plan_runs(items)
    for run in runs:
        assert len(run) >= MIN_PART_SIZE
        assert len(run) == sum(one.end - one.start for one in run.items)
        assert {one.path for one in run.items} == {run.path}
        assert all(a.end == b.start for a, b in itertools.pairwise(run.items))
    taken = [one for run in runs for one in run.items]
    assert len(taken) == len(set(taken))
    assert set(taken) <= set(items)
    # What was left out could not have been joined to anything that is large enough.
    for one in set(items) - set(taken):
        around = one.end - one.start
        neighbours = {(other.path, other.start): other for other in items}
        behind = {(other.path, other.end): other for other in items}
        place = one
        while (place := neighbours.get((one.path, place.end))) is not None:
            around += place.end - place.start
        place = one
        while (place := behind.get((one.path, place.start))) is not None:
            around += place.end - place.start
        assert around < MIN_PART_SIZE


def test_the_largest_runs_are_kept_where_there_are_too_many(monkeypatch) -> None:
    monkeypatch.setattr("torch_s3dcp.reuse.MOST_RANGES", 2)
    sizes = [6 * MIB, 9 * MIB, 5 * MIB, 8 * MIB]
    items = [Reusable(n, str(n), 0, size) for n, size in enumerate(sizes)]
    assert [run.items[0].item for run in plan_runs(items)] == [1, 3]


@given(st.lists(st.integers(1, 40 * MIB), min_size=1, max_size=40), st.integers(0, 5))
def test_parts_hold_all_pieces_and_have_a_size_that_is_allowed(sizes: list[int], at: int) -> None:
    starts = list(itertools.accumulate(sizes, initial=at))
    pieces = [Piece(a, b, 0) for a, b in itertools.pairwise(starts)]
    parts = parts_of_copy(pieces)
    assert parts[0].start == at
    assert parts[-1].end == starts[-1]
    assert all(a.end == b.start for a, b in itertools.pairwise(parts))
    assert {part.start for part in parts} <= set(starts)
    if sum(sizes) >= MIN_PART_SIZE:
        assert min(map(len, parts)) >= MIN_PART_SIZE
    assert max(map(len, parts)) < PART_OF_COPY + max(sizes) + MIN_PART_SIZE


@given(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=9))
def test_a_part_has_the_checksum_of_its_bytes(blocks: list[bytes]) -> None:
    starts = list(itertools.accumulate(map(len, blocks), initial=0))
    pieces = [
        Piece(a, b, oracle.crc64nvme(block))
        for (a, b), block in zip(itertools.pairwise(starts), blocks, strict=True)
    ]
    (part,) = parts_of_copy(pieces)
    assert part == Piece(0, starts[-1], oracle.crc64nvme(b"".join(blocks)))
