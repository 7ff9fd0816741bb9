"""Spans: every wanted byte is fetched once for each piece, in few requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.exceptions import ConfigurationError
from torch_s3dcp.spans import Piece, plan_spans

PIECES = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 60)).map(lambda t: (t[0], t[0] + t[1])),
    max_size=25,
)


def spans_of(ranges, *, max_gap=0, part_size=64, whole_below=0):
    pieces = [Piece(start, end, number) for number, (start, end) in enumerate(ranges)]
    return plan_spans(pieces, max_gap=max_gap, part_size=part_size, whole_below=whole_below)


@given(PIECES, st.integers(0, 40), st.integers(1, 100), st.integers(0, 30))
def test_performing_the_spans_gives_every_piece_its_bytes(ranges, gap, part, whole) -> None:
    blob = bytes(i % 251 for i in range(500))
    got = {number: bytearray(end - start) for number, (start, end) in enumerate(ranges)}
    seen = dict.fromkeys(got, 0)
    for span in spans_of(ranges, max_gap=gap, part_size=part, whole_below=whole):
        body = blob[span.start : span.end]
        position = span.start
        for cut in span.cuts:
            assert position <= cut.start <= cut.end <= span.end
            data = body[cut.start - span.start : cut.end - span.start]
            got[cut.piece.owner][cut.offset : cut.offset + len(cut)] = data
            seen[cut.piece.owner] += len(cut)
            position = cut.end
    for number, (start, end) in enumerate(ranges):
        assert got[number] == blob[start:end]
        assert seen[number] == end - start


@given(PIECES, st.integers(0, 40), st.integers(1, 100), st.integers(0, 30))
def test_sizes_and_gaps_keep_their_limits(ranges, gap, part, whole) -> None:
    for span in spans_of(ranges, max_gap=gap, part_size=part, whole_below=whole):
        longest = max(len(cut.piece) for cut in span.cuts)
        assert len(span) <= max(part, longest if longest < whole else 0)
        for left, right in zip(span.cuts, span.cuts[1:], strict=False):
            assert right.start - left.end <= gap
        for cut in span.cuts:
            if len(cut.piece) < whole:
                assert len(cut) == len(cut.piece)


@given(PIECES)
def test_without_gaps_nothing_is_wasted(ranges) -> None:
    assert sum(span.wasted for span in spans_of(ranges)) == 0


def test_neighbours_share_a_request_up_to_the_gap() -> None:
    assert len(spans_of([(0, 10), (20, 30)], max_gap=10)) == 1
    assert len(spans_of([(0, 10), (20, 30)], max_gap=9)) == 2


def test_a_large_piece_is_cut_and_a_small_one_is_not() -> None:
    assert [len(s) for s in spans_of([(0, 150)])] == [64, 64, 22]
    assert [len(s) for s in spans_of([(0, 60), (60, 70)], whole_below=20)] == [60, 10]


def test_overlapping_pieces_are_served_apart() -> None:
    assert [(s.start, s.end) for s in spans_of([(0, 30), (10, 20)])] == [(0, 30), (10, 20)]


def test_many_pieces() -> None:
    ranges = [(i * 10, i * 10 + 10) for i in range(100_000)]
    assert len(spans_of(ranges, part_size=10**5)) == 10


@pytest.mark.parametrize("bad", [{"part_size": 0}, {"max_gap": -1}, {"whole_below": -1}])
def test_sizes_that_mean_nothing_are_refused(bad) -> None:
    with pytest.raises(ConfigurationError):
        spans_of([(0, 1)], **bad)
