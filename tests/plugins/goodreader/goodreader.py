"""A reader that somebody else might ship: one GET for the whole object, at the first read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch_s3dcp import S3Reader


class GoodReader(S3Reader):
    """Fetches the whole object at once and serves everything from memory.

    Choose it for small objects that are read in any order. The sequential reader receives
    only as much as is read; this one never makes a HEAD request.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: Callable[..., Any],
    ) -> None:
        super().__init__(bucket, key, get_object_info, get_stream)
        self._data: bytes | None = None

    def measure(self) -> int:
        """Size of the object in bytes."""
        return len(self._whole())

    def clamp(self, position: int) -> int:
        """Where a seek ends up; going to the start needs no request."""
        return position and min(position, self.measure())

    def fill(self, position: int, target: memoryview) -> int:
        """Copy from what was fetched."""
        found = self._whole()[position : position + len(target)]
        target[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Forget the data."""
        self._data = None
        super().close()

    def _whole(self) -> bytes:
        self._check_open()
        if self._data is None:
            stream = self._get_stream()
            try:
                self._data = b"".join(stream)
            finally:
                stream.close()
        return self._data
