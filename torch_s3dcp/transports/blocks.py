"""A request's body in several blocks of memory, sent one after another and never joined."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

# Smaller blocks are joined with their neighbours: a system call costs more than the copy.
_SMALL = 16 * 1024
# Python's socket timeout holds for a whole block, however slow the connection is.
_LARGEST = 1024 * 1024


class Blocks:
    """The body, and a file over it for whoever reads instead of iterating.

    Args:
        blocks: Memory that stays as it is until the request has ended.
    """

    def __init__(self, blocks: Iterable[memoryview]) -> None:
        self._blocks = tuple(_joined(blocks))
        self._size = sum(map(len, self._blocks))
        self._position = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[memoryview]:
        """All of the body, from its beginning, at most 1 MiB at a time."""
        for block in self._blocks:
            for start in range(0, len(block), _LARGEST):
                yield block[start : start + _LARGEST]

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes from the position on, or all that are left."""
        rest = self._size - self._position
        end = self._position + (rest if size is None or size < 0 else min(size, rest))
        pieces, begin = [], 0
        for block in self._blocks:
            start, stop = max(0, self._position - begin), min(len(block), end - begin)
            if start < stop:
                pieces.append(block[start:stop])
            begin += len(block)
        self._position = end
        return b"".join(pieces)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move the position; botocore rewinds before it tries again."""
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = min(max(0, origins[whence] + offset), self._size)
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position


def _joined(blocks: Iterable[memoryview]) -> Iterator[memoryview]:
    """The same bytes with runs of small blocks made one."""
    run: list[memoryview] = []
    for block in blocks:
        if len(block) < _SMALL:
            run.append(block)
            continue
        if run:
            yield memoryview(b"".join(run))
            run = []
        yield block
    if run:
        yield memoryview(b"".join(run))
