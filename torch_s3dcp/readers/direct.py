"""Only the bytes that are needed, many requests in flight, received where they end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..exceptions import ConfigurationError
from ..link import LoadConditions
from ..spans import Piece, Span, plan_spans
from .contract import GetStream, S3Reader

T = TypeVar("T")

_MIB = 1024 * 1024

# Requests cost CPU time, so parts are large; but the last ones must not be waited for long.
_SMALLEST_PART = 8 * _MIB
_LARGEST_PART = 64 * _MIB
_WHOLE_BELOW = _MIB


class DirectS3Reader(S3Reader):
    """A plain file over one object: one ranged GET for each read, no buffer.

    It is what ``direct`` offers to code that reads a stream. A load does not use it: the
    storage reader asks the strategy for spans and fills memory itself.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: GetStream,
    ) -> None:
        super().__init__(bucket, key, get_object_info, get_stream)
        self._size: int | None = None

    def measure(self) -> int:
        if self._size is None:
            self._size = int(self._get_object_info().size)
        return self._size

    def fill(self, position: int, target: memoryview) -> int:
        end = min(position + len(target), self.measure())
        if end <= position:
            return 0
        return self.fetch(position, end, target[: end - position])


@dataclass(frozen=True)
class DirectReaders:
    """Strategy ``direct``: the default for loading checkpoints.

    Small neighbouring items share a request, large ones are cut into several, and all
    requests of a load, over all objects, are in flight together. Bytes go from the socket
    into the tensor's memory where format, dtype and device allow it.

    Args:
        part_size: Bytes of one request at most. None: so that all connections have the same
            to do, between 8 and 64 MiB.
        max_gap_size: Largest gap in bytes that is read through. None: as many as a connection
            brings in the time that a request needs to begin, both measured in the load itself.
    """

    part_size: int | None = None
    max_gap_size: int | None = None

    def __post_init__(self) -> None:
        if self.part_size is not None and self.part_size < _MIB:
            raise ConfigurationError(f"part_size must be at least 1 MiB, got {self.part_size}")
        if self.max_gap_size is not None and self.max_gap_size < 0:
            raise ConfigurationError(f"max_gap_size must not be negative: {self.max_gap_size}")

    def gap(self, conditions: LoadConditions) -> int:
        """The gap in bytes that is cheaper to read through than to ask around."""
        return conditions.worthwhile_gap if self.max_gap_size is None else self.max_gap_size

    def plan_spans(
        self, pieces: Iterable[Piece[T]], conditions: LoadConditions
    ) -> tuple[Span[T], ...]:
        """The requests that serve the pieces of one object."""
        return plan_spans(
            pieces,
            max_gap=self.gap(conditions),
            part_size=self.part_size or even_part_size(conditions),
            whole_below=_WHOLE_BELOW,
        )

    def __call__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: GetStream,
    ) -> S3Reader:
        return DirectS3Reader(bucket, key, get_object_info, get_stream)


def even_part_size(conditions: LoadConditions) -> int:
    """A part size in bytes with which all connections are busy equally long."""
    connections = conditions.concurrency
    rounds = max(1, -(-conditions.bytes_wanted // (connections * _LARGEST_PART)))
    share = -(-conditions.bytes_wanted // (connections * rounds))
    # Rounded up generously: objects of one share, plus a few bytes, take one request each.
    rounded = (share // _MIB + 1) * _MIB
    return min(max(rounded, _SMALLEST_PART), _LARGEST_PART)
