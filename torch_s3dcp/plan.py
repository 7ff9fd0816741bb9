"""From stored items to an ordered plan of reads and writes. Pure: no I/O, no torch."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .exceptions import TruncatedObjectError
from .ranges import ItemRange

# Memory for an item of more bytes is taken only once its object is known to hold them.
LARGE_ITEM = 64 * 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class StoredItem:
    """Where the metadata says that an item lies.

    ``path`` is relative to the checkpoint. ``transforms`` names the extensions that the
    bytes went through when they were written, outermost first. ``checksums`` is what is stored
    beside the item about its bytes, whatever that may be.
    """

    path: str
    byte_range: ItemRange
    transforms: tuple[str, ...] = ()
    checksums: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class PlannedItem(Generic[T]):
    """One stored item and everybody who wants it: it is fetched and decoded once."""

    stored: StoredItem
    requests: tuple[T, ...]


@dataclass(frozen=True)
class FilePlan(Generic[T]):
    """All that a load needs from one object, in ascending order of offset."""

    path: str
    items: tuple[PlannedItem[T], ...]

    @property
    def item_ranges(self) -> tuple[ItemRange, ...]:
        """The byte range of each item, ascending."""
        return tuple(item.stored.byte_range for item in self.items)

    @property
    def needed_bytes(self) -> int:
        """Bytes of all items together."""
        return sum(len(item.stored.byte_range) for item in self.items)


def check_end(end: int, size: int) -> None:
    """See whether an object holds what the metadata says.

    Raises:
        TruncatedObjectError: An item ends behind the object's ``size`` bytes.
    """
    if end > size:
        raise TruncatedObjectError(
            f"the object has only {size} bytes; the checkpoint's metadata says more"
        )


def plan_files(wanted: Iterable[tuple[StoredItem, T]]) -> tuple[FilePlan[T], ...]:
    """Sort what a load wants by object and offset, one entry for each stored item.

    Args:
        wanted: Stored items with the request that asks for each; any order, and the same
            stored item as often as it is asked for. The input is not changed.

    Returns:
        One plan per object, by path. Requests for one item keep the order they came in.
    """
    by_path: dict[str, dict[StoredItem, list[T]]] = {}
    for stored, request in wanted:
        by_path.setdefault(stored.path, {}).setdefault(stored, []).append(request)
    return tuple(
        FilePlan(
            path,
            tuple(PlannedItem(stored, tuple(items[stored])) for stored in sorted(items)),
        )
        for path, items in sorted(by_path.items())
    )


def weigh_into_buckets(
    items: Sequence[T], weight: Callable[[T], int], count: int
) -> tuple[tuple[T, ...], ...]:
    """Spread items over at most ``count`` buckets of about equal weight.

    The heaviest item goes first, each into the bucket that is lightest so far, so no bucket
    outweighs another by more than one item. Within a bucket the items keep their order.
    Empty buckets are left out.
    """
    heap = [(0, index) for index in range(min(count, len(items)))]
    chosen: list[list[int]] = [[] for _ in heap]
    heaviest_first = sorted(range(len(items)), key=lambda i: (-weight(items[i]), i))
    for position in heaviest_first:
        load, index = heapq.heappop(heap)
        chosen[index].append(position)
        heapq.heappush(heap, (load + weight(items[position]), index))
    return tuple(tuple(items[i] for i in sorted(bucket)) for bucket in chosen if bucket)
