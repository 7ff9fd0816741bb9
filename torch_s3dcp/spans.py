"""Which requests serve the wanted bytes of an object. Pure: no I/O, no torch.

A :class:`Piece` is a run of bytes that somebody wants. A :class:`Span` is one request: the
pieces, or parts of pieces, that lie in it. Small neighbours share a span, large pieces are
cut into several.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .exceptions import ConfigurationError

T = TypeVar("T")


@dataclass(frozen=True)
class Edges:
    """Where a piece may be cut: at ``origin`` and every ``step`` bytes from there to ``stop``."""

    origin: int
    step: int
    stop: int

    def fit(self, start: int, wanted: int, end: int) -> int:
        """The last place behind ``start`` and up to ``wanted``; else the next one, or ``end``."""
        if wanted >= end:
            return end
        steps = (min(wanted, self.stop) - self.origin) // self.step
        place = self.origin + steps * self.step
        if place <= start or steps < 0:
            place = self.origin + max(0, (start - self.origin) // self.step + 1) * self.step
        return place if place <= self.stop and place < end else end


@dataclass(frozen=True)
class Piece(Generic[T]):
    """Bytes ``[start, end)`` of an object; ``owner`` is whatever the caller knows them by.

    ``edges`` says where it may be cut; None: anywhere.
    """

    start: int
    end: int
    owner: T
    edges: Edges | None = None

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Cut(Generic[T]):
    """A part of a piece: ``[start, end)`` of the object, ``offset`` bytes into the piece."""

    start: int
    end: int
    offset: int
    piece: Piece[T]

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Span(Generic[T]):
    """One request for ``[start, end)``: its cuts ascend and do not overlap."""

    start: int
    end: int
    cuts: tuple[Cut[T], ...]

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def wasted(self) -> int:
        """Bytes of gaps that are read and thrown away."""
        return len(self) - sum(len(cut) for cut in self.cuts)


def plan_spans(
    pieces: Iterable[Piece[T]], *, max_gap: int, part_size: int, whole_below: int
) -> tuple[Span[T], ...]:
    """Serve all pieces of one object with few requests of about ``part_size`` bytes.

    Args:
        pieces: What is wanted, in any order. Empty pieces are left out: they need no bytes.
        max_gap: Largest gap in bytes between two pieces that is read through.
        part_size: Bytes of a span at most; exceeded only by pieces that stay whole, and where
            the edges of a piece are further apart.
        whole_below: Pieces of fewer bytes are never cut.

    Returns:
        Spans ascending by start. Pieces that overlap are served by different spans.

    Raises:
        ConfigurationError: A size is not positive or a gap negative.
    """
    if part_size <= 0 or max_gap < 0 or whole_below < 0:
        raise ConfigurationError("part_size must be positive, max_gap and whole_below not negative")
    spans: list[Span[T]] = []
    cuts: list[Cut[T]] = []
    for piece in sorted((p for p in pieces if len(p)), key=lambda p: (p.start, p.end)):
        position = piece.start
        while position < piece.end:
            if cuts and not _joins(cuts, position, max_gap, part_size):
                spans.append(_span(cuts))
                cuts = []
            begin = cuts[0].start if cuts else position
            end = _end_of_cut(piece, position, begin + part_size, whole_below)
            if cuts and end > begin + part_size:
                spans.append(_span(cuts))
                cuts = []
                continue
            cuts.append(Cut(position, end, position - piece.start, piece))
            position = end
    if cuts:
        spans.append(_span(cuts))
    return tuple(spans)


def _end_of_cut(piece: Piece[T], position: int, wanted: int, whole_below: int) -> int:
    """Where to cut a piece: at ``wanted`` or before, further behind only if it must be."""
    if wanted >= piece.end or len(piece) < whole_below:
        return piece.end
    return piece.edges.fit(position, wanted, piece.end) if piece.edges else wanted


def _joins(cuts: Sequence[Cut[T]], position: int, max_gap: int, part_size: int) -> bool:
    gap = position - cuts[-1].end
    return 0 <= gap <= max_gap and position - cuts[0].start < part_size


def _span(cuts: Sequence[Cut[T]]) -> Span[T]:
    return Span(cuts[0].start, cuts[-1].end, tuple(cuts))
