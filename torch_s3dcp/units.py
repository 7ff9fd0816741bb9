"""Wanted bytes of an item, joined to what can be verified. Pure: no I/O, no torch.

Checksums are of whole pieces of an item (``chunk_checksums``), so whole pieces are received.
A :class:`Unit` is a run of them that is received in one go, or in several that are cut where
pieces are. Wanted bytes that share a piece share a unit, unless they overlap. So a unit has
less than two pieces of bytes that nobody wants, besides gaps inside of a piece.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .checks import Check
from .checksums import CRC64
from .chunk_checksums import ItemChecksums
from .spans import Cut, Edges, Piece

T = TypeVar("T")


@dataclass
class Unit(Generic[T]):
    """Bytes ``[start, end)`` of an object, and what is wanted of them.

    ``pieces`` ascend and do not overlap. ``item`` is where the item begins and ends;
    ``checksums`` are its own, None where nothing can be verified.
    """

    start: int
    end: int
    pieces: list[Piece[T]]
    item: tuple[int, int]
    checksums: ItemChecksums | None = None
    _starts: list[int] = field(default_factory=list)

    def cuts(self, start: int, end: int) -> Iterator[Cut[T]]:
        """What is wanted of ``[start, end)``."""
        if len(self.pieces) == 1:
            (only,) = self.pieces
            first, last = max(start, only.start), min(end, only.end)
            if first < last:
                yield Cut(first, last, first - only.start, only)
            return
        if len(self._starts) != len(self.pieces):
            self._starts = [piece.start for piece in self.pieces]
        number = max(0, bisect_right(self._starts, start) - 1)
        for piece in self.pieces[number:]:
            if piece.start >= end:
                break
            first, last = max(start, piece.start), min(end, piece.end)
            if first < last:
                yield Cut(first, last, first - piece.start, piece)

    def checks(self, start: int, end: int) -> list[Check]:
        """How to verify ``[start, end)``, which begins and ends where pieces of the item do."""
        if self.checksums is None:
            return []
        base, stop = self.item
        if base == start and stop == end and (value := self.checksums.single) is not None:
            return [Check(start, end, value, CRC64)]
        known = self.checksums.between(start - base, end - base, stop - base)
        return [Check(base + a, base + b, value, CRC64) for a, b, value in known]

    def is_whole(self, start: int, end: int) -> bool:
        """Whether ``[start, end)`` of the unit can be verified without the rest of it."""
        if self.checksums is None:
            return True
        base, stop = self.item
        if (start, end) == self.item:
            return True
        wide = self.checksums.widened(start - base, end - base, stop - base)
        return wide == (start - base, end - base)

    def stop(self, start: int, size: int) -> int:
        """Where to end a request that begins at ``start``, after about ``size`` bytes."""
        edges = self.edges
        return self.end if edges is None else edges.fit(start, start + size, self.end)

    @property
    def edges(self) -> Edges | None:
        """Where it may be cut."""
        known = self.checksums
        if known is None:
            return None
        base = self.item[0]
        return Edges(base + known.begin, known.chunk, base + known.end)


def units_of(
    pieces: Iterable[Piece[T]], item: tuple[int, int], checksums: ItemChecksums | None
) -> list[Piece[Unit[T]]]:
    """The units in which the wanted bytes of an item are received.

    Args:
        pieces: What is wanted, in any order. Empty ones are left out.
        item: Where the item begins and ends in its object.
        checksums: Its checksums.
    """
    wanted = sorted((p for p in pieces if len(p)), key=lambda piece: (piece.start, piece.end))
    if checksums is None:
        return [Piece(p.start, p.end, Unit(p.start, p.end, [p], item)) for p in wanted]
    return [
        Piece(unit.start, unit.end, unit, unit.edges) for unit in _join(wanted, item, checksums)
    ]


def _join(
    wanted: Sequence[Piece[T]], item: tuple[int, int], checksums: ItemChecksums
) -> list[Unit[T]]:
    units: list[Unit[T]] = []
    growing: list[Unit[T]] = []
    base, stop = item
    if len(wanted) == 1 and (wanted[0].start, wanted[0].end) == item:
        return [Unit(base, stop, list(wanted), item, checksums)]
    for piece in wanted:
        start, end = checksums.widened(piece.start - base, piece.end - base, stop - base)
        # More than one where what is wanted overlaps: each of them goes on.
        growing = [unit for unit in growing if base + start < unit.end]
        for unit in growing:
            if piece.start >= unit.pieces[-1].end:
                unit.pieces.append(piece)
                unit.end = max(unit.end, base + end)
                break
        else:
            units.append(Unit(base + start, base + end, [piece], item, checksums))
            growing.append(units[-1])
    return units
