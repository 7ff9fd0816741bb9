"""Whether decoded metadata can be true: types, paths, places and shapes.

Runs for each of maybe 100,000 items: what is usual is recognised in a few comparisons, and
only what is not gets a closer look.
"""

from __future__ import annotations

import reprlib
from pathlib import PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as dcp

from ._torch import StorageInfo
from .exceptions import InvalidCheckpointError

# S3 has no larger objects.
_LARGEST_OBJECT = 50 * 2**40
_OFFSETS = (torch.Size, type(None))


def check_metadata(value: Any) -> None:
    """Refuse metadata that no save can have written.

    Raises:
        InvalidCheckpointError: It says what and, where there is one, of which item.
    """
    if not isinstance(value, dcp.Metadata):
        raise InvalidCheckpointError(
            f"the checkpoint's metadata holds a {type(value).__name__}, not a Metadata"
        )
    described = value.state_dict_metadata
    if not isinstance(described, dict):
        raise InvalidCheckpointError("the checkpoint's metadata does not say what is stored")
    meta = getattr(value, "storage_meta", None)
    if meta is not None and type(meta) is not dcp.StorageMeta:
        raise InvalidCheckpointError(
            f"the checkpoint's metadata is about a {type(meta).__name__}, not about a storage"
        )
    _check_described(described)
    _check_places(value.storage_data)


def _check_described(described: dict[Any, Any]) -> None:
    tensor, blob, dtype, layout = (
        dcp.TensorStorageMetadata,
        dcp.BytesStorageMetadata,
        torch.dtype,
        torch.layout,
    )
    known: set[Any] = set()
    for name, about in described.items():
        kind = type(about)
        if type(name) is not str or (kind is not tensor and kind is not blob):
            raise _bad(name, "an unknown kind or name", about)
        if kind is blob:
            continue
        size, properties = about.size, about.properties
        if type(properties.dtype) is not dtype or type(properties.layout) is not layout:
            raise _bad(name, "an impossible dtype or layout", properties)
        for chunk in about.chunks:
            # Most parts are like others.
            shape = (size, chunk.offsets, chunk.sizes)
            if shape not in known:
                if not _is_inside(chunk, size):
                    raise _bad(name, "an impossible shape or part", about)
                known.add(shape)


def _is_inside(chunk: Any, size: Any) -> bool:
    offsets, sizes = chunk.offsets, chunk.sizes
    if type(size) is not torch.Size or type(chunk) is not dcp.ChunkStorageMetadata:
        return False
    if type(offsets) is not torch.Size or type(sizes) is not torch.Size:
        return False
    if not len(offsets) == len(sizes) == len(size):
        return False
    places = zip(offsets, sizes, size, strict=True)
    return all(0 <= start <= start + length <= end for start, length, end in places)


def _check_places(storage_data: Any) -> None:
    if not isinstance(storage_data, dict):
        raise InvalidCheckpointError("the checkpoint's metadata does not say where items lie")
    known: set[str] = set()
    for index, info in storage_data.items():
        if type(index) is not dcp.MetadataIndex or type(info) is not StorageInfo:
            raise _bad(index, "an unknown kind of name or place", info)
        offset, length, path = info.offset, info.length, info.relative_path
        if (
            type(offset) is not int
            or type(length) is not int
            or not 0 <= offset <= offset + length <= _LARGEST_OBJECT
        ):
            place = f"an impossible place: offset {reprlib.repr(offset)}, length"
            raise _bad(index, place, length)
        if path not in known:
            known.add(_checked_path(index, path))
        if index.offset.__class__ not in _OFFSETS or type(index.fqn) is not str:
            raise _bad(index, "an impossible name or offset", index.offset)
        if info.transform_descriptors is not None and not _is_text(info.transform_descriptors):
            raise _bad(index, "unknown transformations", info.transform_descriptors)


def _checked_path(index: Any, path: Any) -> str:
    if not isinstance(path, (str, PurePath)):
        raise _bad(index, "an unknown path", path)
    text = str(path)
    parts = text.split("/")
    outside = not text or text.startswith("/") or "://" in text or "\0" in text
    if outside or ".." in parts or "." in parts:
        raise InvalidCheckpointError(
            f"item {index.fqn!r} lies outside of the checkpoint: {text!r}", tensor=str(index.fqn)
        )
    text.encode()  # no key can hold half a character
    return text


def _is_text(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(type(value) is str for value in values)


def _bad(index: Any, what: str, value: Any) -> InvalidCheckpointError:
    name = reprlib.repr(getattr(index, "fqn", index)).strip("'")
    return InvalidCheckpointError(f"item {name!r} has {what}: {reprlib.repr(value)}", tensor=name)
