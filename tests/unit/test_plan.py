"""Plans against the bytes themselves: carrying a plan out gives everybody his slice."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.plan import FilePlan, StoredItem, plan_files, weigh_into_buckets
from torch_s3dcp.ranges import ItemRange

Wanted = list[tuple[StoredItem, int]]
BLOBS = {
    path: random.Random(path).randbytes(200) for path in ("__0_0.distcp", "a/b.distcp", "ä ?#")
}


@st.composite
def stored_items(draw: st.DrawFn) -> StoredItem:
    path = draw(st.sampled_from(sorted(BLOBS)))
    # Few starts and lengths, so that duplicates, overlaps and touching ranges are common.
    start = draw(st.integers(0, 18)) * 10
    span = ItemRange(start, start + draw(st.sampled_from([0, 1, 10, 15, 20])))
    return StoredItem(path, span, draw(st.sampled_from([(), (), ("zstd",)])))


@st.composite
def wanted_items(draw: st.DrawFn) -> Wanted:
    items = draw(st.lists(stored_items(), max_size=30))
    return [(item, number) for number, item in enumerate(items)]


def carry_out(plans: tuple[FilePlan[Any], ...]) -> dict[Any, bytes]:
    """What each request gets when the plan is followed literally."""
    served: dict[Any, bytes] = {}
    for plan in plans:
        blob = BLOBS[plan.path]
        for item, span in zip(plan.items, plan.item_ranges, strict=True):
            for request in item.requests:
                assert request not in served, "served twice"
                served[request] = blob[span.start : span.end]
    return served


@given(wanted_items())
def test_each_request_gets_its_slice(wanted: Wanted) -> None:
    expected = {
        request: BLOBS[item.path][item.byte_range.start : item.byte_range.end]
        for item, request in wanted
    }
    assert carry_out(plan_files(wanted)) == expected


@given(wanted_items())
def test_files_and_offsets_ascend_and_nothing_is_planned_twice(wanted: Wanted) -> None:
    plans = plan_files(wanted)
    paths = [plan.path for plan in plans]
    assert paths == sorted({item.path for item, _ in wanted})
    for plan in plans:
        offsets = [(span.start, span.end) for span in plan.item_ranges]
        assert offsets == sorted(offsets)
        stored = [item.stored for item in plan.items]
        assert len(set(stored)) == len(stored)
        assert {item.path for item in stored} == {plan.path}
        assert set(stored) == {item for item, _ in wanted if item.path == plan.path}


@given(wanted_items())
def test_requests_for_one_item_keep_their_order(wanted: Wanted) -> None:
    for plan in plan_files(wanted):
        for item in plan.items:
            assert list(item.requests) == [n for stored, n in wanted if stored == item.stored]


@given(wanted_items())
def test_the_input_is_not_changed_and_may_be_read_once(wanted: Wanted) -> None:
    before = list(wanted)
    plans = plan_files(wanted)
    assert wanted == before
    assert plan_files(iter(wanted)) == plans
    assert plan_files(iter(wanted)) == plan_files(tuple(wanted))


@given(wanted_items())
def test_needed_bytes_counts_each_stored_item_once(wanted: Wanted) -> None:
    total = sum(plan.needed_bytes for plan in plan_files(wanted))
    once = {item for item, _ in wanted}
    assert total == sum(item.byte_range.end - item.byte_range.start for item in once)


def test_one_stored_item_serves_several_requests() -> None:
    item = StoredItem("f", ItemRange(3, 9))
    (plan,) = plan_files([(item, "b"), (item, "a"), (item, "b")])
    assert [planned.requests for planned in plan.items] == [("b", "a", "b")]
    assert plan.needed_bytes == 6


def test_the_same_bytes_through_another_extension_are_another_item() -> None:
    span = ItemRange(0, 4)
    (plan,) = plan_files([(StoredItem("f", span, ("z",)), 1), (StoredItem("f", span), 2)])
    assert [(item.stored.transforms, item.requests) for item in plan.items] == [
        ((), (2,)),
        (("z",), (1,)),
    ]


def test_requests_need_neither_order_nor_hash() -> None:
    requests: list[dict[str, int]] = [{"a": 1}, {"b": 2}]
    (plan,) = plan_files([(StoredItem("f", ItemRange(0, 1)), request) for request in requests])
    assert plan.items[0].requests[0] is requests[0]
    assert plan.items[0].requests[1] is requests[1]


def test_nothing_wanted_is_no_plan() -> None:
    assert plan_files([]) == ()


def test_a_plan_is_a_value() -> None:
    wanted = [(StoredItem("f", ItemRange(0, 1)), "r")]
    (plan,) = plan_files(wanted)
    assert hash(plan) == hash(plan_files(wanted)[0])
    with pytest.raises(AttributeError):
        plan.path = "g"  # type: ignore[misc]


WEIGHTS = st.lists(st.integers(0, 1000), max_size=40)


@given(WEIGHTS, st.integers(1, 12))
def test_each_item_lands_in_one_bucket(weights: list[int], count: int) -> None:
    items = list(enumerate(weights))
    buckets = weigh_into_buckets(items, lambda item: item[1], count)
    assert sorted(item for bucket in buckets for item in bucket) == items
    assert all(buckets), "a bucket is empty"
    assert len(buckets) <= min(count, len(items))


@given(WEIGHTS, st.integers(1, 12))
def test_items_keep_their_order_within_a_bucket(weights: list[int], count: int) -> None:
    items = list(enumerate(weights))
    for bucket in weigh_into_buckets(items, lambda item: item[1], count):
        assert list(bucket) == sorted(bucket)


@given(WEIGHTS.filter(len), st.integers(1, 12))
def test_no_bucket_outweighs_another_by_more_than_an_item(weights: list[int], count: int) -> None:
    buckets = weigh_into_buckets(weights, int, count)
    loads = [sum(bucket) for bucket in buckets]
    # Buckets that were left out carry nothing.
    loads += [0] * (min(count, len(weights)) - len(buckets))
    assert max(loads) - min(loads) <= max(weights)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(1, 3))
def test_the_heaviest_bucket_is_near_the_best_possible(weights: list[int], count: int) -> None:
    heaviest = max(sum(bucket) for bucket in weigh_into_buckets(weights, int, count))
    best = min(
        max(
            sum(weight for weight, b in zip(weights, choice, strict=True) if b == bucket)
            for bucket in range(count)
        )
        for choice in product(range(count), repeat=len(weights))
    )
    # Graham 1969, Bounds on Multiprocessing Timing Anomalies: at most 4/3 - 1/(3 count).
    assert 3 * count * heaviest <= (4 * count - 1) * best


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.integers(1, 12))
def test_all_buckets_are_used_where_there_are_items_enough(weights: list[int], count: int) -> None:
    assert len(weigh_into_buckets(weights, int, count)) == min(count, len(weights))


@given(WEIGHTS)
def test_one_bucket_takes_all(weights: list[int]) -> None:
    assert weigh_into_buckets(weights, int, 1) == ((tuple(weights),) if weights else ())


def test_the_choice_is_the_same_every_time() -> None:
    weights = [5, 5, 5, 3, 3, 0, 0, 9]
    first = weigh_into_buckets(weights, int, 3)
    assert all(weigh_into_buckets(list(weights), int, 3) == first for _ in range(5))
    assert sorted(sum(bucket) for bucket in first) == [9, 10, 11]


def test_one_thing_in_two_places_is_two_items() -> None:
    thing = object()
    buckets = weigh_into_buckets([thing, thing], lambda _: 1, 2)
    assert buckets == ((thing,), (thing,))
