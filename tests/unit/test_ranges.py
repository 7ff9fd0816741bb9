"""Ranges against sets of byte numbers: an oracle that knows no intervals."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.exceptions import ConfigurationError
from torch_s3dcp.ranges import ItemRange, RangeGroup, check_gap, coalesce, split


@st.composite
def item_ranges(draw: st.DrawFn) -> ItemRange:
    start = draw(st.integers(0, 120))
    return ItemRange(start, start + draw(st.integers(0, 12)))


RANGES = st.lists(item_ranges(), max_size=25)
GAPS = st.one_of(st.integers(0, 30), st.just(math.inf), st.floats(0, 30))
SPANS = st.one_of(st.integers(1, 60), st.just(math.inf))


def bytes_of(item: ItemRange | RangeGroup) -> set[int]:
    return set(range(item.start, item.end))


def spans(groups: tuple[RangeGroup, ...]) -> list[tuple[int, int]]:
    return [(group.start, group.end) for group in groups]


def ranges_of(*pairs: tuple[int, int]) -> list[ItemRange]:
    return [ItemRange(start, end) for start, end in pairs]


@given(RANGES, GAPS, SPANS)
def test_every_item_that_is_not_empty_lies_in_just_one_group(
    ranges: list[ItemRange], gap: float, span: float
) -> None:
    groups = coalesce(ranges, max_gap=gap, max_span=span)
    members = [item for group in groups for item in group.item_ranges]
    assert sorted(members) == sorted(item for item in ranges if item.start != item.end)
    for group in groups:
        for item in group.item_ranges:
            assert bytes_of(item) <= bytes_of(group)


@given(RANGES, GAPS, SPANS)
def test_a_group_holds_no_byte_beyond_its_items_and_small_gaps(
    ranges: list[ItemRange], gap: float, span: float
) -> None:
    for group in coalesce(ranges, max_gap=gap, max_span=span):
        wanted = set().union(*map(bytes_of, group.item_ranges))
        assert min(wanted) == group.start
        assert max(wanted) == group.end - 1
        run = longest = 0
        for position in range(group.start, group.end):
            run = 0 if position in wanted else run + 1
            longest = max(longest, run)
        assert longest <= gap


@given(RANGES, GAPS)
def test_two_groups_could_not_have_been_one(ranges: list[ItemRange], gap: float) -> None:
    groups = coalesce(ranges, max_gap=gap)
    covered = sorted(set().union(*map(bytes_of, ranges))) if ranges else []
    wider_gaps = sum(after - before - 1 > gap for before, after in pairwise(covered))
    assert len(groups) == (wider_gaps + 1 if covered else 0)
    for before, after in pairwise(groups):
        assert after.start - before.end > gap
        assert after.start > before.end


@given(RANGES, GAPS, st.integers(1, 60))
def test_a_span_is_kept_except_by_one_item_that_is_larger(
    ranges: list[ItemRange], gap: float, span: int
) -> None:
    groups = coalesce(ranges, max_gap=gap, max_span=span)
    for group in groups:
        assert len(bytes_of(group)) <= span or len(group.item_ranges) == 1
    assert [group.start for group in groups] == sorted(group.start for group in groups)


@given(RANGES, GAPS, st.integers(1, 60))
def test_a_span_cuts_only_where_it_must(ranges: list[ItemRange], gap: float, span: int) -> None:
    groups = coalesce(ranges, max_gap=gap, max_span=span)
    for before, after in pairwise(groups):
        first = after.item_ranges[0]
        joined = max(before.end, first.end) - before.start
        assert first.start - before.end > gap or joined > span


@given(RANGES, GAPS, SPANS, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(
    ranges: list[ItemRange], gap: float, span: float, order: random.Random
) -> None:
    shuffled = list(ranges)
    order.shuffle(shuffled)
    assert coalesce(shuffled, max_gap=gap, max_span=span) == coalesce(
        ranges, max_gap=gap, max_span=span
    )


@given(RANGES, GAPS)
def test_the_input_is_left_alone_and_may_be_read_once(ranges: list[ItemRange], gap: float) -> None:
    before = list(ranges)
    assert coalesce(iter(ranges), max_gap=gap) == coalesce(ranges, max_gap=gap)
    assert ranges == before


@pytest.mark.parametrize(
    ("distance", "max_gap", "groups"),
    [
        (0, 0, 1),
        (1, 0, 2),
        (10, 9, 2),
        (10, 10, 1),
        (10, 11, 1),
        (10, 9.99, 2),
        (10, 10.0, 1),
        (10**15, math.inf, 1),
    ],
)
def test_the_gap_is_inclusive(distance: int, max_gap: float, groups: int) -> None:
    ranges = ranges_of((5, 8), (8 + distance, 9 + distance))
    assert len(coalesce(ranges, max_gap=max_gap)) == groups


def test_all_is_one_group_with_an_infinite_gap() -> None:
    ranges = ranges_of((10**18, 10**18 + 1), (0, 1), (500, 600))
    assert spans(coalesce(ranges, max_gap=math.inf)) == [(0, 10**18 + 1)]


def test_the_gap_is_measured_from_the_farthest_end_so_far() -> None:
    # The second item ends before the first: the gap to the third is 0, not 60.
    ranges = ranges_of((0, 100), (10, 40), (100, 110))
    assert spans(coalesce(ranges, max_gap=0)) == [(0, 110)]


def test_duplicates_stay_items_of_their_group() -> None:
    (group,) = coalesce(ranges_of((3, 7), (3, 7), (3, 7)), max_gap=0)
    assert group == RangeGroup(3, 7, (ItemRange(3, 7),) * 3)


def test_empty_ranges_ask_for_nothing_and_join_nothing() -> None:
    assert coalesce([], max_gap=0) == ()
    assert coalesce(ranges_of((4, 4), (0, 0)), max_gap=math.inf) == ()
    assert spans(coalesce(ranges_of((0, 2), (3, 3), (4, 6)), max_gap=1)) == [(0, 2), (4, 6)]


def test_a_span_joins_exactly_up_to_its_size() -> None:
    ranges = ranges_of((0, 5), (5, 10), (10, 15))
    assert spans(coalesce(ranges, max_gap=0, max_span=10)) == [(0, 10), (10, 15)]
    assert spans(coalesce(ranges, max_gap=0, max_span=9)) == [(0, 5), (5, 10), (10, 15)]
    assert spans(coalesce(ranges_of((0, 50), (50, 51)), max_gap=0, max_span=10)) == [
        (0, 50),
        (50, 51),
    ]


@pytest.mark.parametrize("max_gap", [0, 1, math.inf])
def test_a_hundred_thousand_ranges(max_gap: float) -> None:
    ranges = ranges_of(*((start, start + 1) for start in range(0, 200_000, 2)))
    random.Random(0).shuffle(ranges)
    groups = coalesce(ranges, max_gap=max_gap)
    assert len(groups) == (100_000 if max_gap == 0 else 1)
    assert sum(len(group.item_ranges) for group in groups) == 100_000


@pytest.mark.parametrize("max_gap", [-1, -0.5, -math.inf, math.nan])
def test_a_gap_that_means_nothing_is_refused(max_gap: float) -> None:
    with pytest.raises(ConfigurationError, match=f"max_gap_size.*{max_gap}"):
        coalesce([], max_gap=max_gap)
    with pytest.raises(ValueError, match="negative"):
        check_gap(max_gap)


@pytest.mark.parametrize("max_gap", ["8", None, True, False, b"1", [1], 1j])
def test_a_gap_that_is_no_number_is_refused(max_gap: object) -> None:
    with pytest.raises(TypeError, match=f"max_gap_size.*{type(max_gap).__name__}"):
        coalesce([], max_gap=max_gap)  # type: ignore[arg-type]


@pytest.mark.parametrize("max_span", [0, -1, math.nan, -math.inf])
def test_a_span_that_holds_nothing_is_refused(max_span: float) -> None:
    with pytest.raises(ConfigurationError, match="max_span"):
        coalesce([], max_gap=0, max_span=max_span)


@pytest.mark.parametrize(("start", "end"), [(-1, 4), (4, 3), (-3, -2)])
def test_a_range_runs_forward_from_zero_on(start: int, end: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"\[{start}, {end}\)"):
        ItemRange(start, end)


@given(item_ranges(), item_ranges())
def test_covers_means_that_all_bytes_are_inside(outer: ItemRange, inner: ItemRange) -> None:
    assert len(outer) == len(bytes_of(outer))
    if bytes_of(inner):
        assert outer.covers(inner.start, inner.end) == (bytes_of(inner) <= bytes_of(outer))


@given(st.integers(0, 1000), st.integers(0, 300), st.integers(1, 400))
def test_split_cuts_without_gap_or_overlap(start: int, length: int, size: int) -> None:
    parts = list(split(start, start + length, size))
    positions = [position for part in parts for position in range(part.start, part.end)]
    assert positions == list(range(start, start + length))
    assert all(len(part) == size for part in parts[:-1])
    assert all(0 < len(part) <= size for part in parts[-1:])


def test_split_of_a_huge_range_is_lazy() -> None:
    first = next(split(0, 2**62, 1))
    assert first == ItemRange(0, 1)


@pytest.mark.parametrize("size", [0, -1])
def test_split_refuses_parts_without_bytes(size: int) -> None:
    with pytest.raises(ConfigurationError, match=f"positive, got {size}"):
        list(split(0, 10, size))
