"""One ranged GET for each read that the buffer cannot serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..exceptions import ConfigurationError
from .contract import GetStream, S3Reader

DEFAULT_BUFFER_SIZE = 8 * 1024 * 1024


class RangedS3Reader(S3Reader):
    """Reads just the ranges that are asked for, small ones through a buffer.

    Choose it for a few reads scattered over a large object, in any order. For many
    neighbouring items ``dcp_optimized`` needs fewer requests. A HEAD request tells the size,
    once.

    Args:
        bucket: Name of the bucket.
        key: Key of the object.
        get_object_info: Asks for the size (a HEAD request).
        get_stream: Asks for a byte range (a GET request).
        buffer_size: Bytes that one request fetches for small reads. None: 8 MiB. 0: no
            buffer. Reads of at least this size go around the buffer.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: GetStream,
        buffer_size: int | None = None,
    ) -> None:
        super().__init__(bucket, key, get_object_info, get_stream)
        self._buffer_size = check_buffer_size(buffer_size)
        self._buffer = memoryview(b"")
        self._buffer_start = 0
        self._buffer_end = 0
        self._size: int | None = None

    def measure(self) -> int:
        if self._size is None:
            self._size = int(self._get_object_info().size)
        return self._size

    def fill(self, position: int, target: memoryview) -> int:
        end = min(position + len(target), self.measure())
        filled = self._from_buffer(position, target)
        position += filled
        missing = end - position
        if missing <= 0:
            return filled
        if missing >= self._buffer_size:
            return filled + self.fetch(position, end, target[filled : filled + missing])
        self._load(position)
        return filled + self._from_buffer(position, target[filled : filled + missing])

    def close(self) -> None:
        self._buffer = memoryview(b"")
        self._buffer_end = self._buffer_start
        super().close()

    def _from_buffer(self, position: int, target: memoryview) -> int:
        """Copy the front part of ``target`` that the buffer holds, if it holds any."""
        if not self._buffer_start <= position < self._buffer_end:
            return 0
        count = min(len(target), self._buffer_end - position)
        offset = position - self._buffer_start
        target[:count] = self._buffer[offset : offset + count]
        return count

    def _load(self, start: int) -> None:
        end = min(start + self._buffer_size, self.measure())
        if not len(self._buffer):
            self._buffer = memoryview(bytearray(min(self._buffer_size, self.measure())))
        # Empty while it is being filled, so that a failure cannot leave stale bytes behind.
        self._buffer_start = self._buffer_end = start
        self._buffer_end = start + self.fetch(start, end, self._buffer[: end - start])


def check_buffer_size(buffer_size: int | None) -> int:
    """The buffer's size in bytes, with the default for None.

    Raises:
        TypeError: Not a whole number.
        ConfigurationError: Negative.
    """
    if buffer_size is None:
        return DEFAULT_BUFFER_SIZE
    if isinstance(buffer_size, bool) or not isinstance(buffer_size, int):
        raise TypeError(f"buffer_size must be a whole number, not {type(buffer_size).__name__}")
    if buffer_size < 0:
        raise ConfigurationError(f"buffer_size must not be negative, got {buffer_size}")
    return buffer_size
