"""Bytes as a sequence of memory blocks, so that nothing has to be joined. Pure.

:class:`SegmentSink` collects what a serialiser writes; :class:`SegmentStream` hands blocks
out as a file that an uploader reads; :class:`RangeView` shows one range of a seekable
reader as a file of its own.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from .checksums import CRC64
from .exceptions import TruncatedObjectError

if TYPE_CHECKING:
    from typing_extensions import Buffer


def address_of(block: Buffer) -> tuple[int, int]:
    """First address and size in bytes of the memory behind a buffer."""
    array = np.frombuffer(memoryview(block), dtype=np.uint8)
    return array.ctypes.data, array.nbytes


class SegmentSink(io.RawIOBase):
    """A write-only file that keeps blocks instead of joining them.

    A block that lies inside ``stable`` memory is kept by reference: the caller promises
    that this memory neither moves nor changes until the segments are used. Every other
    block may be gone when ``write`` returns and is copied.
    """

    def __init__(self, stable: Buffer | None = None) -> None:
        self.segments: list[memoryview] = []
        self._size = 0
        self._stable = memoryview(b"") if stable is None else memoryview(stable).cast("B")
        self._stable_start = address_of(self._stable)[0]

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, block: Buffer, /) -> int:
        view = memoryview(block).cast("B")
        if not len(view):
            return 0
        start, size = address_of(view)
        offset = start - self._stable_start
        if offset >= 0 and offset + size <= len(self._stable):
            # A slice of what the caller gave owns the memory; what was written may not.
            self.segments.append(self._stable[offset : offset + size])
        else:
            self.segments.append(memoryview(bytes(view)))
        self._size += size
        return size


class SegmentStream(io.RawIOBase):
    """A read-only, forward-only file over blocks that are produced when they are needed.

    Also a source of blocks for a transport, which then says what it has stored; what is read
    as from a file counts as stored when it is handed out. An exception of the producer comes
    out of ``read`` and ``take``.
    """

    def __init__(self, blocks: Iterator[memoryview]) -> None:
        self._blocks = blocks
        self._current = memoryview(b"")
        #: Bytes that were handed out.
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        target = memoryview(buffer).cast("B")
        filled = 0
        for block in self._read(len(target)):
            target[filled : filled + len(block)] = block
            filled += len(block)
        self.release(self.position - filled, filled)
        return filled

    def read(self, size: int | None = -1, /) -> bytes:
        data = b"".join(self._read(size))
        self.release(self.position - len(data), len(data))
        return data

    def take(self, size: int) -> list[memoryview]:
        """The next ``size`` bytes, as the blocks where they lie; fewer only at the end."""
        blocks = list(self._take(size))
        self.position += sum(map(len, blocks))
        return blocks

    def checksum(self, start: int, blocks: Iterable[memoryview]) -> int:
        """The CRC64NVME of what ``take`` gave at ``start``."""
        return CRC64.of(blocks)

    def release(self, start: int, size: int) -> None:
        """These bytes are stored. Nothing to do."""

    def give_up(self, error: BaseException) -> None:
        """The upload has failed. Nothing to do."""

    def _read(self, size: int | None) -> list[memoryview]:
        blocks = list(self._take(None if size is None or size < 0 else size))
        self.position += sum(map(len, blocks))
        return blocks

    def _take(self, size: int | None) -> Iterator[memoryview]:
        """Blocks of ``size`` bytes together, or all that are left."""
        while size is None or size > 0:
            if not len(self._current):
                block = next(self._blocks, None)
                if block is None:
                    return
                self._current = block
                continue
            taken = len(self._current) if size is None else min(size, len(self._current))
            yield self._current[:taken]
            self._current = self._current[taken:]
            size = None if size is None else size - taken


class RangeView(io.BufferedIOBase):
    """The bytes ``[start, end)`` of a seekable reader as a file that begins at 0.

    The view keeps its own position, so several may share one reader in turn. Closing it
    leaves the reader open.

    Raises:
        TruncatedObjectError: From reading, when the reader ends before ``end``.
    """

    def __init__(self, base: io.BufferedIOBase | io.RawIOBase, start: int, end: int) -> None:
        self._base = base
        self._start = start
        self._size = end - start
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        if whence not in origins:
            raise ValueError(f"whence must be 0, 1 or 2, got {whence}")
        position = origins[whence] + offset
        if position < 0:
            raise ValueError(f"cannot seek to {position}, before the start")
        self._position = position
        return position

    def readinto(self, buffer: Buffer, /) -> int:
        target = memoryview(buffer).cast("B")
        wanted = min(len(target), self._size - self._position)
        if wanted <= 0:
            return 0
        # torch.load takes a short answer for the end, but a reader may answer in pieces.
        self._base.seek(self._start + self._position)
        filled = 0
        while filled < wanted:
            count = self._base.readinto(target[filled:wanted])
            if not count:
                raise TruncatedObjectError(
                    "the object ends inside an item",
                    byte_range=(self._start, self._start + self._size),
                )
            filled += count
        self._position += wanted
        return wanted

    def read(self, size: int | None = -1, /) -> bytes:
        rest = max(0, self._size - self._position)
        data = bytearray(rest if size is None or size < 0 else min(size, rest))
        self.readinto(data)
        return bytes(data)

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(size)


class _Memory(io.BufferedIOBase):
    """Memory as a file, as far as a view needs one."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = offset
        return offset

    def readinto(self, buffer: Buffer, /) -> int:
        target = memoryview(buffer).cast("B")
        part = self._data[self._position :][: len(target)]
        target[: len(part)] = part
        self._position += len(part)
        return len(part)


def view_of(data: memoryview) -> RangeView:
    """Memory as a file, without a copy."""
    return RangeView(_Memory(data), 0, len(data))
