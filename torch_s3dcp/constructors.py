"""The reader constructors under the reference's names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from .exceptions import ConfigurationError
from .ranges import ItemRange
from .readers.contract import GetStream, ReaderConstructor, S3Reader
from .readers.dcp_optimized import DEFAULT_MAX_GAP_SIZE, DCPOptimizedReaders
from .readers.range_based import RangedS3Reader, check_buffer_size
from .readers.sequential import SequentialS3Reader
from .registry import reader_name
from .uri import S3URI, parse_uri


class DCPOptimizedConstructor(DCPOptimizedReaders):
    """``dcp_optimized`` with the reference's way of announcing ranges.

    :class:`~torch_s3dcp.S3StorageReader` does not use ``set_item_ranges_by_file``: it plans
    from the final plan and asks ``with_item_ranges``, so one constructor may serve several
    storage readers. The method is for code that drives readers itself.

    Args:
        max_gap_size: Largest gap in bytes that is read through; inclusive.

    Raises:
        TypeError: ``max_gap_size`` is not a number.
        ConfigurationError: It is negative (a ValueError).
    """

    def __init__(self, max_gap_size: float = DEFAULT_MAX_GAP_SIZE) -> None:
        super().__init__(max_gap_size)
        # The parent is frozen: its settings are a value. What follows is state.
        object.__setattr__(self, "_ranges", {})

    @property
    def item_ranges_by_file(self) -> Mapping[str, Sequence[ItemRange]]:
        """What was announced last: ``{s3_uri: [ItemRange, ...]}``."""
        ranges: dict[str, list[ItemRange]] = self.__dict__["_ranges"]
        return ranges

    def set_item_ranges_by_file(
        self,
        plan_items: Sequence[Any],
        storage_data: Mapping[Any, Any],
        base_path: str | os.PathLike[str],
    ) -> None:
        """Announce what will be read, REPLACING what was announced before.

        Args:
            plan_items: ReadItems of a load plan.
            storage_data: Where each stored item lies: ``metadata.storage_data``.
            base_path: Address of the checkpoint.

        Raises:
            ConfigurationError: There are items but no storage data (a ValueError).
        """
        if plan_items and not storage_data:
            raise ConfigurationError("storage_data is empty: it must say where the items lie")
        base = parse_uri(base_path)
        ranges: dict[str, list[ItemRange]] = {}
        for item in plan_items:
            stored = storage_data[item.storage_index]
            address = str(base.join(stored.relative_path))
            span = ItemRange(stored.offset, stored.offset + stored.length)
            ranges.setdefault(address, []).append(span)
        object.__setattr__(self, "_ranges", ranges)

    def __call__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: GetStream,
    ) -> S3Reader:
        if key.endswith(".metadata"):
            return SequentialS3Reader(bucket, key, get_object_info, get_stream)
        ranges = self.item_ranges_by_file.get(str(S3URI(bucket, key)))
        if not ranges:
            return super().__call__(bucket, key, get_object_info, get_stream)
        return self.with_item_ranges(ranges)(bucket, key, get_object_info, get_stream)


class S3ReaderConstructor:
    """Makes reader constructors; ``S3StorageReader(..., reader_constructor=...)`` takes them."""

    @staticmethod
    def sequential() -> ReaderConstructor:
        """One GET from the start; everything that came stays in memory."""
        return partial(SequentialS3Reader)

    @staticmethod
    def range_based(buffer_size: int | None = None) -> ReaderConstructor:
        """One ranged GET for each read. ``buffer_size`` in bytes; None: 8 MiB, 0: none."""
        check_buffer_size(buffer_size)
        return partial(RangedS3Reader, buffer_size=buffer_size)

    @staticmethod
    def dcp_optimized(
        max_gap_size: float = DEFAULT_MAX_GAP_SIZE,
    ) -> DCPOptimizedConstructor:
        """One ranged GET for each group of items with gaps of at most ``max_gap_size`` bytes."""
        return DCPOptimizedConstructor(max_gap_size)

    @staticmethod
    def default() -> ReaderConstructor:
        """The reader for any access pattern: sequential."""
        return S3ReaderConstructor.sequential()

    @staticmethod
    def get_reader_type_string(constructor: ReaderConstructor | None) -> str:
        """The reader's registered name, or ``"unknown"``; None means the default one."""
        return reader_name(S3ReaderConstructor.default() if constructor is None else constructor)
