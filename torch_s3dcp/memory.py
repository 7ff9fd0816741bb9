"""Memory to receive into: the planner's tensors, and scratch that is used again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem

from .exceptions import SizeMismatchError


class Destinations:
    """The tensors that the planner offers, each asked for once and only when needed."""

    def __init__(self, planner: LoadPlanner) -> None:
        self._planner = planner
        self._open: dict[int, torch.Tensor] = {}

    def of(self, request: ReadItem) -> torch.Tensor:
        """The destination of a request, detached.

        Raises:
            SizeMismatchError: It does not have the shape that the request asks for.
        """
        target = self._open.get(id(request))
        if target is None:
            target = self._open[id(request)] = self._planner.resolve_tensor(request)
            if tuple(target.size()) != tuple(request.lengths):
                raise SizeMismatchError(
                    f"the stored part has shape {list(request.lengths)}, the load wants "
                    f"{list(target.size())}; give a state dict with the shapes of the checkpoint",
                    tensor=request.storage_index.fqn,
                )
        return target.detach()

    def commit(self, requests: Sequence[ReadItem]) -> None:
        """Tell the planner that destinations are filled. A plan may hold one request twice."""
        for request in requests:
            self._planner.commit_tensor(request, self._open[id(request)])
        for request in requests:
            self._open.pop(id(request), None)


class Scratch:
    """Blocks of memory that are used again: fresh memory costs more than copying."""

    def __init__(self) -> None:
        self._spare: dict[int, list[bytearray]] = {}

    def take(self, size: int) -> memoryview:
        """``size`` bytes with any content, of a block whose size is the next power of two."""
        capacity = 1 << max(0, size - 1).bit_length()
        spare = self._spare.get(capacity)
        return memoryview(spare.pop() if spare else bytearray(capacity))[:size]

    def give(self, memory: memoryview) -> None:
        """Give back what ``take`` gave."""
        block = memory.obj
        if isinstance(block, bytearray):
            self._spare.setdefault(len(block), []).append(block)


def byte_view(tensor: torch.Tensor) -> memoryview | None:
    """The memory of a dense CPU tensor, writable; None where there is no such thing."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_quantized
    if not plain or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    if tensor.is_conj() or tensor.is_neg():
        return None
    size = tensor.numel() * tensor.element_size()
    start = tensor.storage_offset() * tensor.element_size()
    flat = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage(), start, (size,), (1,))
    return memoryview(flat.numpy())  # type: ignore[arg-type]


def as_tensor(data: memoryview, dtype: torch.dtype) -> torch.Tensor:
    """A flat tensor over bytes; a copy only where they are not aligned for the dtype."""
    flat = torch.frombuffer(data, dtype=torch.uint8)
    if flat.data_ptr() % dtype.itemsize:
        flat = flat.clone()
    return flat.view(dtype)
