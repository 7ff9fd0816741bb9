"""One ranged GET for each group of neighbouring items, item by item in ascending order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from ..exceptions import ConfigurationError, TruncatedObjectError
from ..ranges import ItemRange, RangeGroup, check_gap, coalesce
from .contract import GetStream, ObjectStream, ReaderConstructor, S3Reader, fill_from

DEFAULT_MAX_GAP_SIZE = 32 * 1024 * 1024
_SKIP_BLOCK = 1024 * 1024


class DCPOptimizedS3Reader(S3Reader):
    """Reads items whose ranges are known beforehand, neighbours through one request.

    Choose it for loading a checkpoint: it asks for no byte twice, needs no HEAD and holds
    one item at a time. It serves nothing but the given ranges, in ascending order of their
    start; items may be left out, and inside the current item reading is free.

    Args:
        bucket: Name of the bucket.
        key: Key of the object.
        get_object_info: Not used; part of the readers' contract.
        get_stream: Asks for a byte range (a GET request).
        item_ranges: Ranges that may be read, in any order; duplicates and overlaps are fine.
        max_gap_size: Largest gap in bytes that is read through rather than asked for anew;
            inclusive. 0: only touching ranges share a request; inf: one request.

    Raises:
        ConfigurationError: No ranges, or a negative gap.
        TypeError: The gap is not a number.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: GetStream,
        item_ranges: Sequence[ItemRange] = (),
        max_gap_size: float = DEFAULT_MAX_GAP_SIZE,
    ) -> None:
        super().__init__(bucket, key, get_object_info, get_stream)
        self._groups = coalesce(item_ranges, max_gap=max_gap_size)
        if not self._groups:
            raise ConfigurationError(
                "the dcp_optimized reader needs at least one range that is not empty; "
                "use the sequential reader where ranges are not known"
            )
        self._items = [item for group in self._groups for item in group.item_ranges]
        self._group_starts = [group.start for group in self._groups]
        self._current: int | None = None
        self._buffer = memoryview(bytearray())
        self._stream: ObjectStream | None = None
        self._stream_position = 0
        self._stream_end = 0

    def measure(self) -> int:
        raise ValueError(
            "the dcp_optimized reader serves given ranges and does not know the object's end; "
            "read with a size, or use the sequential or range_based reader"
        )

    def clamp(self, position: int) -> int:
        return position

    def available(self, size: int | None) -> int:
        if size is None:
            return self.measure()
        self._locate(self.tell(), self.tell() + size)
        return size

    def fill(self, position: int, target: memoryview) -> int:
        index = self._locate(position, position + len(target))
        if index != self._current:
            self._enter(index)
        offset = position - self._items[index].start
        target[:] = self._buffer[offset : offset + len(target)]
        return len(target)

    def close(self) -> None:
        self._drop_stream()
        self._buffer = memoryview(b"")
        super().close()

    def _locate(self, start: int, end: int) -> int:
        """Index of the item that holds ``[start, end)``: the current one, or the next that does."""
        first = 0 if self._current is None else self._current
        for index in range(first, len(self._items)):
            item = self._items[index]
            if item.covers(start, end):
                return index
            if item.start > start:
                break
        self._refuse(start, end)

    def _refuse(self, start: int, end: int) -> NoReturn:
        known = any(item.covers(start, end) for item in self._items)
        reason = (
            "lies before the current item, and items are served in ascending order"
            if known
            else "is not inside one of the planned ranges"
        )
        raise ValueError(
            f"[{start}, {end}) of s3://{self.bucket}/{self.key} {reason}; "
            "use the sequential or range_based reader for free access"
        )

    def _enter(self, index: int) -> None:
        """Make the item current: bring all of its bytes into the buffer."""
        item = self._items[index]
        kept = self._keep_overlap(item)
        self._current = None
        if len(self._buffer) < len(item):
            grown = memoryview(bytearray(len(item)))
            grown[:kept] = self._buffer[:kept]
            self._buffer = grown
        if kept < len(item):
            try:
                self._receive(item, kept)
            except BaseException:
                # Where the stream stands is unknown; trying again needs a new one.
                self._drop_stream()
                raise
        self._current = index

    def _receive(self, item: ItemRange, kept: int) -> None:
        """Bring the bytes of the item that the buffer does not hold yet."""
        stream = self._stream_at(item.start + kept)
        count = fill_from(stream, self._buffer[kept : len(item)])
        self._stream_position += count
        if count < len(item) - kept:
            raise TruncatedObjectError(
                "the stream ended inside an item",
                bucket=self.bucket,
                key=self.key,
                byte_range=(item.start, item.end),
            )

    def _keep_overlap(self, item: ItemRange) -> int:
        """Move bytes that the current item shares with the next one to the buffer's front."""
        if self._current is None:
            return 0
        old = self._items[self._current]
        shared = min(old.end, item.end) - item.start
        if shared <= 0:
            return 0
        offset = item.start - old.start
        self._buffer[:shared] = bytes(self._buffer[offset : offset + shared])
        return shared

    def _stream_at(self, position: int) -> ObjectStream:
        """The open stream, moved forward to ``position``, or a new one for its group."""
        group = self._group_of(position)
        reachable = self._stream_position <= position < self._stream_end
        if self._stream is None or not reachable or self._stream_end != group.end:
            self._drop_stream()
            self._stream = self._get_stream(position, group.end)
            self._stream_position, self._stream_end = position, group.end
        self._skip(position - self._stream_position)
        return self._stream

    def _group_of(self, position: int) -> RangeGroup:
        return self._groups[bisect_right(self._group_starts, position) - 1]

    def _skip(self, count: int) -> None:
        if not count or self._stream is None:
            return
        scratch = memoryview(bytearray(min(count, _SKIP_BLOCK)))
        while count:
            got = fill_from(self._stream, scratch[:count])
            if not got:
                raise TruncatedObjectError(
                    "the stream ended in a gap", bucket=self.bucket, key=self.key
                )
            self._stream_position += got
            count -= got

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None


@dataclass(frozen=True)
class DCPOptimizedReaders:
    """Constructor of :class:`DCPOptimizedS3Reader`, once the ranges are known.

    Args:
        max_gap_size: See :class:`DCPOptimizedS3Reader`.
    """

    max_gap_size: float = DEFAULT_MAX_GAP_SIZE

    def __post_init__(self) -> None:
        check_gap(self.max_gap_size)

    def with_item_ranges(self, item_ranges: Sequence[ItemRange]) -> ReaderConstructor:
        """A constructor for one object of which these ranges will be read."""
        return partial(
            DCPOptimizedS3Reader,
            item_ranges=tuple(item_ranges),
            max_gap_size=self.max_gap_size,
        )

    def __call__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: GetStream,
    ) -> S3Reader:
        raise ConfigurationError(
            f"no ranges are known for s3://{bucket}/{key}; the dcp_optimized reader serves "
            "planned loads: use it through S3StorageReader, or call with_item_ranges() first, "
            "or choose S3ReaderConstructor.sequential()"
        )
