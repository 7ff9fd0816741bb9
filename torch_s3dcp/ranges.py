"""Byte ranges and how they combine. Pure: no I/O, no torch.

Ranges are half open, ``[start, end)``; HTTP's inclusive end appears only inside
the transports.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .exceptions import ConfigurationError


@dataclass(frozen=True, order=True)
class ItemRange:
    """The bytes of one stored item: ``start`` inclusive, ``end`` exclusive."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ConfigurationError(
                f"invalid byte range [{self.start}, {self.end}): it needs 0 <= start <= end"
            )

    def __len__(self) -> int:
        return self.end - self.start

    def covers(self, start: int, end: int) -> bool:
        """Whether ``[start, end)`` lies inside this range."""
        return self.start <= start and end <= self.end


@dataclass(frozen=True)
class RangeGroup:
    """Neighbouring item ranges that one request serves.

    ``start`` is the first item's start, ``end`` the largest end of its items.
    """

    start: int
    end: int
    item_ranges: tuple[ItemRange, ...]


def coalesce(
    ranges: Iterable[ItemRange], *, max_gap: float, max_span: float = math.inf
) -> tuple[RangeGroup, ...]:
    """Join ranges whose gap is at most ``max_gap`` bytes into groups.

    Order, duplicates, overlaps and empty ranges do not matter: ranges are sorted, empty
    ones dropped, duplicates kept as items of the same group.

    Args:
        ranges: Item ranges of one object.
        max_gap: Largest gap in bytes that is read through; inclusive. 0 joins only ranges
            that touch or overlap, ``inf`` joins all.
        max_span: Largest number of bytes from a group's start to its end. A single item
            that is larger makes a group of its own.

    Returns:
        Groups in ascending order of start. Without ``max_span`` they do not overlap.

    Raises:
        ConfigurationError: ``max_gap`` is negative or NaN, or ``max_span`` is not positive.
    """
    check_gap(max_gap)
    if not max_span > 0:
        raise ConfigurationError(f"max_span must be positive, got {max_span}")
    groups: list[RangeGroup] = []
    members: list[ItemRange] = []
    end = 0
    for item in sorted(item for item in ranges if len(item)):
        fits = members and item.start - end <= max_gap
        if fits and max(end, item.end) - members[0].start <= max_span:
            members.append(item)
            end = max(end, item.end)
            continue
        if members:
            groups.append(RangeGroup(members[0].start, end, tuple(members)))
        members, end = [item], item.end
    if members:
        groups.append(RangeGroup(members[0].start, end, tuple(members)))
    return tuple(groups)


def check_gap(max_gap: float) -> None:
    """Reject gaps that mean nothing.

    Raises:
        TypeError: Not a number.
        ConfigurationError: Negative or NaN.
    """
    if isinstance(max_gap, bool) or not isinstance(max_gap, (int, float)):
        raise TypeError(f"max_gap_size must be a number of bytes, not {type(max_gap).__name__}")
    if not max_gap >= 0:
        raise ConfigurationError(f"max_gap_size must not be negative, got {max_gap}")


def split(start: int, end: int, size: int) -> Iterator[ItemRange]:
    """Cut ``[start, end)`` into consecutive ranges of ``size`` bytes, the last one shorter.

    Raises:
        ConfigurationError: ``size`` is not positive.
    """
    if size <= 0:
        raise ConfigurationError(f"the size of a part must be positive, got {size}")
    for cut in range(start, end, size):
        yield ItemRange(cut, min(cut + size, end))
