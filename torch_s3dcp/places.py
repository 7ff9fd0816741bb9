"""Memory for the bytes of one request, in the order in which they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .checks import Check
from .checksums import ZIP_CRC
from .exceptions import ConfigurationError
from .filling import Fetch, Target, Unwanted
from .landing import BLOCK_SIZE, Landing, Part
from .spans import Cut, Span
from .units import Unit

# Gaps up to this size are received along with their neighbours.
_SMALL_GAP = 64 * 1024
# Larger ones in steps of this size, into the same memory again and again.
_STEP = 1024 * 1024


class Places:
    """Collects places; neighbours in scratch share a block."""

    def __init__(self) -> None:
        self._targets: list[Target] = []
        self._size = 0
        self._shared: list[tuple[Part, int]] = []

    def skip(self, count: int) -> int:
        """Bytes of a gap: read and forgotten. Returns how many bytes of scratch that takes."""
        if count <= _SMALL_GAP and self._shared:
            self._size += count
            return count
        self._close()
        for start in range(0, count, _STEP):
            self._targets.append(Unwanted(min(_STEP, count - start)))
        return 0

    def share(self, part: Part) -> None:
        """A part that lands in shared scratch."""
        self._shared.append((part, self._size))
        self._size += part.size

    def add(self, target: Target) -> None:
        """Bytes that have a place of their own."""
        self._close()
        self._targets.append(target)

    def targets(self) -> list[Target]:
        """All places; shared scratch is allocated now."""
        self._close()
        return self._targets

    def _close(self) -> None:
        if not self._size:
            return
        block = memoryview(bytearray(self._size))
        for part, offset in self._shared:
            part.memory = block[offset : offset + part.size]
        self._targets.append(block)
        self._shared, self._size = [], 0


class Request:
    """One request while it is put together, from the byte ``start`` of an object on."""

    def __init__(self, path: str, start: int) -> None:
        self._path = path
        self._start = self._end = start
        self._places = Places()
        self._cuts: list[Cut[Part]] = []
        self._checks: list[Check] = []
        #: Bytes of scratch that it takes.
        self.scratch = 0

    def add(self, unit: Unit[Part], start: int, end: int) -> int:
        """The bytes ``[start, end)`` of a unit; return how many bytes of scratch that takes."""
        before = self.scratch
        for cut in unit.cuts(start, end):
            part = cut.piece.owner
            self._skip_to(cut.start)
            if part.shares_scratch and len(cut) == part.size:
                self._places.share(part)
                self.scratch += part.size
            else:
                self.scratch += 0 if part.prepared else part.prepare(len(cut))
                self._places.add(part.place(cut.offset, len(cut)))
            if part.sums is not None:
                self._checks.append(Check(cut.start, cut.end, None, ZIP_CRC))
            self._cuts.append(cut)
            self._end = cut.end
        self._skip_to(end)
        self._checks += unit.checks(start, end)
        return self.scratch - before

    def fetch(self) -> Fetch[Sequence[Cut[Part]]]:
        """The request; memory for shared scratch is taken now."""
        targets = self._places.targets()
        return Fetch(self._path, self._start, self._end, targets, self._cuts, self._checks)

    def _skip_to(self, position: int) -> None:
        if position > self._end:
            self.scratch += self._places.skip(position - self._end)
            self._end = position


def requests_of(
    path: str, span: Span[Unit[Part]], hold: Callable[[Landing, int], None]
) -> Iterator[Fetch[Sequence[Cut[Part]]]]:
    """Give every byte of a span a place to land, in the order in which they come.

    A span that needs much scratch becomes several requests: all connections are to have
    something to do within the budget.

    Args:
        path: The object.
        span: Its bytes.
        hold: Takes note of how many bytes of scratch an item takes.

    Raises:
        ConfigurationError: The span does not end where what it holds can be verified.
    """
    request = Request(path, span.start)
    for cut in span.cuts:
        unit, place = cut.piece.owner, cut.start
        if not unit.is_whole(cut.start, cut.end):
            raise ConfigurationError(
                "the reader strategy cuts bytes that can only be verified together; it must "
                "cut a piece at its edges, or be used with integrity='headers'"
            )
        while place < cut.end:
            if request.scratch >= BLOCK_SIZE:
                yield request.fetch()
                request = Request(path, place)
            stop = min(cut.end, unit.stop(place, BLOCK_SIZE))
            hold(unit.pieces[0].owner.owner, request.add(unit, place, stop))
            place = stop
    yield request.fetch()


def is_prepared(span: Span[Unit[Part]]) -> bool:
    """Whether a request for it takes no more memory."""
    inner = (part for cut in span.cuts for part in cut.piece.owner.cuts(cut.start, cut.end))
    return all(cut.piece.owner.prepared for cut in inner)
