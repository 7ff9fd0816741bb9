"""Hypothesis strategies for objects and the items in them. Needs ``hypothesis``."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from ..ranges import ItemRange


def blobs(min_size: int = 0, max_size: int = 4096) -> st.SearchStrategy[bytes]:
    """Bytes without a pattern, so that a wrong offset cannot go unseen.

    Args:
        min_size: Smallest size in bytes.
        max_size: Largest size in bytes; costs no more to draw than a small one.
    """
    return st.builds(
        lambda seed, size: random.Random(seed).randbytes(size),
        st.integers(0, 2**16),
        st.integers(min_size, max_size),
    )


def item_ranges(size: int, max_items: int = 12) -> st.SearchStrategy[tuple[ItemRange, ...]]:
    """Ranges inside an object of ``size`` bytes, in any order.

    Empty ones, duplicates, overlaps, single bytes, the whole object, neighbours that touch
    and gaps of any width all occur.
    """
    edges = st.integers(0, size)
    spans = st.builds(
        lambda start, length: ItemRange(start, min(size, start + length)),
        edges,
        st.one_of(st.integers(0, 3), edges),
    )
    return st.lists(spans, max_size=max_items).flatmap(_with_duplicates)


def _with_duplicates(spans: list[ItemRange]) -> st.SearchStrategy[tuple[ItemRange, ...]]:
    if not spans:
        return st.just(())
    again = st.lists(st.sampled_from(spans), max_size=3)
    return again.map(lambda more: (*spans, *more))


def object_with_items(
    max_size: int = 4096, max_items: int = 12
) -> st.SearchStrategy[tuple[bytes, tuple[ItemRange, ...]]]:
    """An object and ranges in it, at least one of which is not empty."""
    return blobs(1, max_size).flatmap(
        lambda blob: st.tuples(
            st.just(blob),
            item_ranges(len(blob), max_items).filter(lambda spans: any(len(s) for s in spans)),
        )
    )
