"""Bytes that arrive, compared with the checksums that they should have. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from .checksums import Checksum


class Check(NamedTuple):
    """The checksum of the bytes ``[start, end)`` of an object; None: it is to be found out."""

    start: int
    end: int
    value: int | None
    kind: Checksum


class Checker:
    """Follows bytes as they arrive, in order.

    Args:
        checks: Ascending; they do not overlap, and none is empty.
        position: Where the bytes begin.
    """

    def __init__(self, checks: Sequence[Check], position: int) -> None:
        self._checks = checks
        self._position = position
        self._next = 0
        self._value = 0
        #: The checksums that were to be found out: start, end, value.
        self.found: list[tuple[int, int, int]] = []

    def feed(self, block: memoryview) -> Check | None:
        """The next bytes; gives the first check that they end and that does not hold."""
        begin, end = self._position, self._position + len(block)
        alone = self._next
        while self._next < len(self._checks):
            check = self._checks[self._next]
            if check.start >= end:
                break
            # Compared one by one where that was in vain.
            if self._next >= alone and check.start >= begin:
                count, holds = self._joined(block, begin, end)
                if holds:
                    self._next += count
                    continue
                alone = self._next + count
            start, stop = max(check.start, begin), min(check.end, end)
            self._value = check.kind.update(block[start - begin : stop - begin], self._value)
            if stop < check.end:
                break
            if check.value is None:
                self.found.append((check.start, check.end, self._value))
            elif check.value != self._value:
                return check
            self._next, self._value = self._next + 1, 0
        self._position = end
        return None

    def _joined(self, block: memoryview, begin: int, end: int) -> tuple[int, bool]:
        """How many of the next checks lie in a block side by side, and whether all of them hold.

        The bytes are gone through once, and what is found compared with the checksums joined:
        to enter C for each costs more, with all threads that wait for the interpreter's lock.
        """
        first, _, _, kind = self._checks[self._next]
        place, joined, count = first, 0, 0
        combine = kind.combine
        for number in range(self._next, len(self._checks)):
            start, stop, value, other = self._checks[number]
            if start != place or stop > end or other is not kind or value is None:
                break
            joined = combine(joined, value, stop - start)
            place, count = stop, count + 1
        if count < 2:
            return count, False
        return count, kind.update(block[first - begin : place - begin], 0) == joined

    def rewind(self, position: int) -> None:
        """Go on from an earlier byte, at which no check is under way."""
        self._next = bisect_left(self._checks, position, key=attrgetter("start"))
        self._value, self._position = 0, position
        self.found = [one for one in self.found if one[1] <= position]

    def begins_at(self, position: int) -> int:
        """Where the check begins that a byte belongs to; the byte itself where there is none."""
        number = bisect_left(self._checks, position + 1, key=attrgetter("start")) - 1
        if number < 0 or self._checks[number].end <= position:
            return position
        return self._checks[number].start
