"""Which files a rank writes: how many, what is in each, and how they are called."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from .exceptions import ConfigurationError
from .plan import weigh_into_buckets

DATA_SUFFIX = ".distcp"
# Larger objects bring no more bandwidth: their parts are many at once anyway. But they are one
# thing to lose, and have a limit.
LARGEST_FILE = 64 * 1024**3
# Weight of an item whose size is not known from the plan.
_BLOB_WEIGHT = 1024
# Bytes around the data of a tensor, at most.
_ENVELOPE = 2048


@dataclass(frozen=True)
class FileUpload:
    """One object to write: its path below the checkpoint, its items, its likely size."""

    path: str
    items: Sequence[WriteItem]
    expected_size: int


def cut_into_files(items: Sequence[WriteItem], prefix: str, count: int | None) -> list[FileUpload]:
    """Cut a plan into files of about equal size. Their names are new with every call.

    Args:
        items: What the rank writes.
        prefix: How the names begin.
        count: How many files, unless they would be too large; None: one for each item.

    Raises:
        ConfigurationError: The prefix leads out of the checkpoint.
    """
    if prefix.startswith("/") or ".." in prefix.split("/"):
        raise ConfigurationError(
            f"the prefix strategy leads out of the checkpoint: {prefix!r}; it must give a "
            "relative prefix without '..'"
        )
    weights = {id(item): item_weight(item) for item in items}

    def weigh(item: WriteItem) -> int:
        return weights[id(item)]

    if count is None:
        buckets: Sequence[Sequence[WriteItem]] = [(item,) for item in items]
    else:
        needed = -(-sum(weights.values()) // LARGEST_FILE)
        buckets = weigh_into_buckets(items, weigh, max(count, needed))
    token = uuid.uuid4().hex[:16]
    return [
        FileUpload(
            f"{prefix}{number}_{token}{DATA_SUFFIX}",
            bucket,
            sum(weigh(item) + _ENVELOPE for item in bucket),
        )
        for number, bucket in enumerate(buckets)
    ]


def item_weight(item: WriteItem) -> int:
    """Bytes that an item will take, from the plan: those of its own chunk."""
    if item.type == WriteItemType.BYTE_IO or item.tensor_data is None:
        return _BLOB_WEIGHT
    return math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize
