"""Memory for the bytes of one request, in the order in which they come."""

from __future__ import annotations

from .fetching import Target, Unwanted
from .landing import Part

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
