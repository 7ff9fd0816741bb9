"""Where the data of a stored tensor lies, said by the metadata before a byte is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from .archive import predict_data_offset
from .exceptions import InvalidCheckpointError
from .plan import PlannedItem


class TensorLayout:
    """What the metadata tells of a stored tensor, and where its data must lie then."""

    def __init__(
        self, dtype: torch.dtype, shape: tuple[int, ...], nbytes: int, data_offset: int
    ) -> None:
        self.dtype = dtype
        self.shape = shape
        self.nbytes = nbytes
        self.data_offset = data_offset


def predict_layout(
    planned: PlannedItem[ReadItem], described: Mapping[str, Any]
) -> TensorLayout | None:
    """The layout of a stored item, None where it cannot be known beforehand.

    Args:
        described: The metadata's ``state_dict_metadata``.

    Raises:
        InvalidCheckpointError: A request reaches beyond the stored tensor.
    """
    index = planned.requests[0].storage_index
    about = described.get(index.fqn)
    blob = any(request.type == LoadItemType.BYTE_IO for request in planned.requests)
    if blob or planned.stored.transforms or not isinstance(about, TensorStorageMetadata):
        return None
    shape = _chunk_shape(about, index)
    if shape is None:
        return None
    dtype = about.properties.dtype
    nbytes = dtype.itemsize
    for size in shape:
        nbytes *= size
    offset = predict_data_offset(len(planned.stored.byte_range), nbytes)
    if offset is None:
        return None
    for request in planned.requests:
        _check_inside(request, shape)
    return TensorLayout(dtype, shape, nbytes, offset)


def _chunk_shape(about: TensorStorageMetadata, index: MetadataIndex) -> tuple[int, ...] | None:
    """Shape of the stored chunk that an index names."""
    if index.offset is None:
        return tuple(about.size) if len(about.chunks) == 1 else None
    if index.index is not None and 0 <= index.index < len(about.chunks):
        hinted = about.chunks[index.index]
        if hinted.offsets == index.offset:
            return tuple(hinted.sizes)
    return next((tuple(c.sizes) for c in about.chunks if c.offsets == index.offset), None)


def _check_inside(request: ReadItem, shape: tuple[int, ...]) -> None:
    box = zip(request.storage_offsets, request.lengths, shape, strict=False)
    alike = len(request.storage_offsets) == len(request.lengths) == len(shape)
    if not alike or any(not 0 <= start <= start + size <= end for start, size, end in box):
        raise InvalidCheckpointError(
            f"the load wants {list(request.lengths)} from {list(request.storage_offsets)} on of "
            f"a stored tensor of shape {list(shape)}",
            tensor=request.storage_index.fqn,
        )
