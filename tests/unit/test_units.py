"""Units: wanted bytes are received once, and always with all that verifies them."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.checksums import CRC64
from torch_s3dcp.chunk_checksums import ItemChecksums, cuts_of
from torch_s3dcp.spans import Edges, Piece, plan_spans
from torch_s3dcp.units import units_of

BASE = 7


@st.composite
def items(draw):
    """The bytes of an item, its checksums, and runs of it that are wanted."""
    length = draw(st.integers(1, 300))
    begin = draw(st.integers(0, length))
    end = draw(st.integers(begin, length))
    chunk = draw(st.integers(1, 60))
    data = bytes(i % 251 for i in range(length))
    cuts = sorted(set(cuts_of(begin, end, chunk, length)))
    values = [CRC64.update(memoryview(data)[a:b], 0) for a, b in itertools.pairwise(cuts)]
    packed = b"".join(value.to_bytes(8, "big") for value in values)
    run = st.tuples(st.integers(0, length), st.integers(0, 80))
    runs = [(a, min(length, a + n)) for a, n in draw(st.lists(run, max_size=12))]
    return data, ItemChecksums(begin, end, chunk, packed), runs


@given(items(), st.integers(0, 40), st.integers(1, 100), st.integers(0, 30))
def test_every_wanted_byte_comes_once_and_verified(item, gap, part, whole) -> None:
    data, checksums, runs = item
    length = len(data)
    pieces = [Piece(BASE + a, BASE + b, number) for number, (a, b) in enumerate(runs)]
    units = units_of(pieces, (BASE, BASE + length), checksums)
    got = {number: bytearray(b - a) for number, (a, b) in enumerate(runs)}
    seen = dict.fromkeys(got, 0)
    for span in plan_spans(units, max_gap=gap, part_size=part, whole_below=whole):
        for outer in span.cuts:
            unit = outer.piece.owner
            assert unit.is_whole(outer.start, outer.end)
            checks = unit.checks(outer.start, outer.end)
            # They cover all, none of them cut.
            assert checks[0].start == outer.start
            assert checks[-1].end == outer.end
            assert all(a.end == b.start for a, b in itertools.pairwise(checks))
            for check in checks:
                found = memoryview(data)[check.start - BASE : check.end - BASE]
                assert check.value == CRC64.update(found, 0)
            for cut in unit.cuts(outer.start, outer.end):
                content = data[cut.start - BASE : cut.end - BASE]
                got[cut.piece.owner][cut.offset : cut.offset + len(cut)] = content
                seen[cut.piece.owner] += len(cut)
    for number, (a, b) in enumerate(runs):
        assert (bytes(got[number]), seen[number]) == (data[a:b], b - a)


@given(items())
def test_what_is_not_wanted_is_less_than_a_piece_at_either_end(item) -> None:
    data, checksums, runs = item
    pieces = [Piece(a, b, None) for a, b in runs]
    largest = max(end - start for start, end, _ in checksums.pieces(len(data)))
    units = [piece.owner for piece in units_of(pieces, (0, len(data)), checksums)]
    assert sum(len(unit.pieces) for unit in units) == sum(a < b for a, b in runs)
    for unit in units:
        assert 0 <= unit.pieces[0].start - unit.start < largest
        assert 0 <= unit.end - unit.pieces[-1].end < largest
        for left, right in zip(unit.pieces, unit.pieces[1:], strict=False):
            assert 0 <= right.start - left.end < 2 * largest


@given(items())
def test_neighbours_that_share_a_piece_share_a_unit(item) -> None:
    data, checksums, runs = item
    apart, last = [], 0
    for a, b in sorted(runs):
        if last <= a < b:
            apart.append((a, b))
            last = b
    units = units_of([Piece(a, b, None) for a, b in apart], (0, len(data)), checksums)
    assert all(a.end <= b.start for a, b in itertools.pairwise(units))


@given(items(), st.integers(2, 4))
def test_what_is_wanted_often_costs_so_often_at_most(item, often) -> None:
    data, checksums, runs = item
    apart, last = [], 0
    for a, b in sorted(runs):
        if last <= a < b:
            apart.append((a, b))
            last = b

    def cost(times: int) -> int:
        pieces = [Piece(a, b, None) for a, b in apart for _ in range(times)]
        return sum(len(unit) for unit in units_of(pieces, (0, len(data)), checksums))

    assert cost(often) <= often * cost(1)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 50)), max_size=9))
def test_without_checksums_pieces_stay_as_they_are(runs) -> None:
    pieces = [Piece(a, a + n, number) for number, (a, n) in enumerate(runs)]
    units = units_of(pieces, (0, 200), None)
    assert sorted(u.owner.pieces[0].owner for u in units) == [p.owner for p in pieces if len(p)]
    for unit in units:
        (cut,) = unit.owner.cuts(unit.start, unit.end)
        assert (cut.start, cut.end, unit.edges) == (unit.start, unit.end, None)
        assert unit.owner.checks(unit.start, unit.end) == []


@given(st.integers(0, 50), st.integers(1, 30), st.integers(0, 200), st.integers(0, 99), st.data())
def test_edges_are_kept(origin, step, size, start, data) -> None:
    edges = Edges(origin, step, origin + size)
    end = data.draw(st.integers(start + 1, 300))
    wanted = data.draw(st.integers(start + 1, 320))
    allowed = [p for p in range(origin, origin + size + 1, step) if start < p < end]
    fitting = [place for place in allowed if place <= wanted]
    expected = end if wanted >= end else fitting[-1] if fitting else [*allowed, end][0]
    assert edges.fit(start, wanted, end) == expected
