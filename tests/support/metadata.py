"""Metadata of small checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo as StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

STATE = {
    "model": {"weight": torch.ones(4, 6), "half": torch.ones(3, dtype=torch.bfloat16)},
    "optimizer": {"state": [{"exp_avg": torch.zeros(2)}, {"step": torch.tensor(3.0)}]},
    "empty": torch.zeros(0, 3),
    "step": 7,
    "note": "any object",
    "bytes": b"blob",
}


def stock_metadata(folder: Path) -> bytes:
    """The ``.metadata`` of a checkpoint that torch's own writer made."""
    dcp.save(STATE, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    return (folder / ".metadata").read_bytes()


def simple(path: Any = "__0_0.distcp", offset: Any = 0, length: Any = 10, **extra: Any) -> Metadata:
    return Metadata(
        {"x": BytesStorageMetadata()},
        storage_data={MetadataIndex("x"): StorageInfo(path, offset, length, **extra)},
    )


def tensor_metadata(properties: Any, size: Any = (2, 3)) -> Metadata:
    size = torch.Size(size)
    chunk = ChunkStorageMetadata(torch.Size([0] * len(size)), size)
    metadata = simple()
    metadata.state_dict_metadata["t"] = TensorStorageMetadata(properties, size, [chunk])
    return metadata
