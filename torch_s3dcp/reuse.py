"""Which bytes of earlier objects a new object may consist of. Pure.

A store copies ranges of at least 5 MiB. Items that lie side by side in an earlier object make
one range; ranges that are too small are uploaded again. A new object begins with the ranges;
what is uploaded follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .checksums import CRC64
from .parts import MIN_PART_SIZE

T = TypeVar("T")

# Parts of a copy: several at a time, each in one request.
PART_OF_COPY = 128 * 1024**2
# An object has 10,000 parts at most; as many stay for what is uploaded.
MOST_RANGES = 4000


@dataclass(frozen=True)
class Piece:
    """The bytes ``[start, end)`` of an object, and their CRC64NVME."""

    start: int
    end: int
    checksum: int

    def __len__(self) -> int:
        return self.end - self.start

    def joined(self, behind: Piece) -> Piece:
        """This and the one behind it."""
        checksum = CRC64.combine(self.checksum, behind.checksum, len(behind))
        return Piece(self.start, behind.end, checksum)


@dataclass(frozen=True)
class Reusable(Generic[T]):
    """An item whose bytes are those at ``[start, end)`` of an earlier object."""

    item: T
    path: str
    start: int
    end: int


@dataclass(frozen=True)
class Run(Generic[T]):
    """Items that lie side by side in an earlier object."""

    items: tuple[Reusable[T], ...]

    @property
    def path(self) -> str:
        """The object."""
        return self.items[0].path

    @property
    def start(self) -> int:
        """Where they begin in it."""
        return self.items[0].start

    @property
    def end(self) -> int:
        """Where they end in it."""
        return self.items[-1].end

    def __len__(self) -> int:
        return self.end - self.start


def plan_runs(reusable: Iterable[Reusable[T]]) -> tuple[Run[T], ...]:
    """The ranges that are worth copying, in the order of where they lie now.

    An item may be given once only. Items that no range holds have to be uploaded.
    """
    ordered = sorted(reusable, key=lambda one: (one.path, one.start, one.end))
    runs: list[list[Reusable[T]]] = []
    for one in ordered:
        last = runs[-1][-1] if runs else None
        if last is not None and (last.path, last.end) == (one.path, one.start):
            runs[-1].append(one)
        else:
            runs.append([one])
    large = [run for run in map(Run, map(tuple, runs)) if len(run) >= MIN_PART_SIZE]
    kept = set(sorted(range(len(large)), key=lambda n: -len(large[n]))[:MOST_RANGES])
    return tuple(run for number, run in enumerate(large) if number in kept)


def parts_of_copy(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbouring pieces joined to parts of a copy: 128 MiB, or what the pieces make of it.

    No part is smaller than 5 MiB, unless all pieces together are.
    """
    parts: list[Piece] = []
    for piece in pieces:
        last = parts[-1] if parts else None
        if last is None or len(last) >= PART_OF_COPY:
            parts.append(piece)
        else:
            parts[-1] = last.joined(piece)
    if len(parts) > 1 and len(parts[-1]) < MIN_PART_SIZE:
        short = parts.pop()
        parts[-1] = parts[-1].joined(short)
    return parts
