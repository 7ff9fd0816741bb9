"""Streams of all kinds as what an upload takes its bytes from."""

from __future__ import annotations

import io
from collections.abc import Iterable

from ..checksums import CRC64
from .contract import BlockSource


def block_source(stream: io.RawIOBase) -> BlockSource:
    """The stream itself, where it is one."""
    return stream if isinstance(stream, BlockSource) else StreamSource(stream)


class StreamSource:
    """What uploads read from; remembers the stream's own error, so that it gets out."""

    def __init__(self, stream: io.RawIOBase) -> None:
        self._stream = stream
        self.error: BaseException | None = None
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        """All of ``size`` bytes, unless the stream ends: s3transfer takes less for the end."""
        try:
            if size < 0:
                return self._take(size)
            blocks: list[bytes] = []
            while size > 0 and (block := self._take(size)):
                blocks.append(block)
                size -= len(block)
            return blocks[0] if len(blocks) == 1 else b"".join(blocks)
        except BaseException as error:
            self.error = error
            if isinstance(error, Exception):
                raise
            # After a KeyboardInterrupt in one of its threads s3transfer waits for ever.
            raise InterruptedError("the stream to upload was interrupted") from error

    def take(self, size: int) -> list[memoryview]:
        """The next ``size`` bytes, or what is left."""
        try:
            data = self.read(size)
        except BaseException:
            # s3transfer needs to see another one.
            if self.error is not None:
                raise self.error from None
            raise
        return [memoryview(data)] if data else []

    def checksum(self, start: int, blocks: Iterable[memoryview]) -> int:
        """The CRC64NVME of blocks."""
        return CRC64.of(blocks)

    def release(self, start: int, size: int) -> None:
        """Nothing to do: each part has memory of its own."""

    def give_up(self, error: BaseException) -> None:
        """Nothing to do: nobody waits for a release."""

    def _take(self, size: int) -> bytes:
        block = self._stream.read(size)
        if block is None:
            raise BlockingIOError("a stream to upload must block until it has data")
        self.size += len(block)
        return block
