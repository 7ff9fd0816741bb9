"""What is awkward about torch: names of its private modules that have no public home.

``_StorageInfo`` cannot be avoided: its qualified name is part of the checkpoint format.
The extension registry is how ``transform_descriptors`` find their decoder (torch >= 2.7).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension
from torch.distributed.checkpoint.filesystem import _StorageInfo as StorageInfo

from .readers.contract import ReaderConstructor
from .registry import reader_name

__all__ = [
    "ExtensionRegistry",
    "StorageInfo",
    "StreamTransformExtension",
    "agent_for",
    "global_rank",
    "world_size",
]


def agent_for(constructor: ReaderConstructor | None = None) -> str:
    """What the user agent says after the package's name: torch and the reader."""
    reader = "" if constructor is None else f" md/reader_type#{reader_name(constructor)}"
    return f"torch/{torch.__version__}{reader}"


def world_size() -> int:
    """Number of ranks of the job; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
