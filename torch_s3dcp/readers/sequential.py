"""One GET from byte 0; what was read stays in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..exceptions import TruncatedObjectError
from .contract import GetStream, ObjectStream, S3Reader, fill_from

_BLOCK = 8 * 1024 * 1024


class SequentialS3Reader(S3Reader):
    """Reads an object from its start with one request and keeps all that came.

    Choose it for reading a whole object, or for access in any order where memory for the
    whole object is no matter. For a part of a checkpoint it reads too much: everything up
    to the last byte that is wanted. Seeking back is free. A HEAD request is made only for
    SEEK_END before the first read.

    After an error reading may be tried again; it goes on after the last byte kept.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: GetStream,
    ) -> None:
        super().__init__(bucket, key, get_object_info, get_stream)
        self._stream: ObjectStream | None = None
        self._blocks: list[memoryview] = []
        self._received = 0
        self._size: int | None = None

    def measure(self) -> int:
        if self._size is None:
            self._size = int(self._get_object_info().size)
        return self._size

    def clamp(self, position: int) -> int:
        if position == 0:
            return 0
        # The answer to the GET that has to be made anyway tells the size: no HEAD.
        return min(position, self._open_size() if self._size is None else self._size)

    def available(self, size: int | None) -> int:
        rest = max(0, self._open_size() - self.tell())
        return rest if size is None else min(size, rest)

    def fill(self, position: int, target: memoryview) -> int:
        end = min(position + len(target), self._open_size())
        if self._stream is not None and end > self._received:
            self._receive(self._stream, end)
        filled = 0
        while position + filled < end:
            index, offset = divmod(position + filled, _BLOCK)
            block = self._blocks[index][offset : offset + end - position - filled]
            target[filled : filled + len(block)] = block
            filled += len(block)
        return filled

    def close(self) -> None:
        self._drop_stream()
        self._blocks = []
        super().close()

    def _open_size(self) -> int:
        if self._stream is None:
            self._stream = (
                self._get_stream(self._received) if self._received else self._get_stream()
            )
            self._size = int(self._stream.info.size)
        return self.measure()

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _receive(self, stream: ObjectStream, end: int) -> None:
        """Receive until ``end``, block by block, without ever moving what came before."""
        size = self.measure()
        while self._received < end:
            index, offset = divmod(self._received, _BLOCK)
            if index == len(self._blocks):
                self._blocks.append(memoryview(b""))
            if offset == len(self._blocks[index]):
                # A new block; or the object is larger than an answer said that was cut short.
                block = memoryview(bytearray(min(_BLOCK, size - index * _BLOCK)))
                block[:offset] = self._blocks[index]
                self._blocks[index] = block
            rest = self._blocks[index][offset : offset + end - self._received]
            try:
                count = fill_from(stream, rest)
            except BaseException:
                # Where the stream stands is unknown; a new one begins after what is kept.
                self._drop_stream()
                raise
            self._received += count
            if count < len(rest):
                self._drop_stream()
                raise TruncatedObjectError(
                    "the stream ended before the end of the object",
                    bucket=self.bucket,
                    key=self.key,
                )
