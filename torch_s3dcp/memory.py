"""Memory to receive into: the planner's tensors, and scratch that is used again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem

from .exceptions import SizeMismatchError
from .staging import PinnedBlock, Staging

Elements: TypeAlias = npt.NDArray[Any]
# Types that numpy knows too, by bytes of an element.
_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


class Destinations:
    """The tensors that the planner offers, each asked for once and only when needed.

    Args:
        planner: Gives and takes the tensors.
        staging: Fills those on devices; it learns when they begin and end to be used.
    """

    def __init__(self, planner: LoadPlanner, staging: Staging) -> None:
        self._planner = planner
        self._staging = staging
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
            self._staging.begin(target.device)
        return target.detach()

    def commit(self, requests: Sequence[ReadItem]) -> None:
        """Tell the planner that destinations are filled. A plan may hold one request twice."""
        self._staging.order()
        for request in requests:
            self._planner.commit_tensor(request, self._open[id(request)])
        for request in requests:
            self._open.pop(id(request), None)


class HostBlock:
    """Ordinary memory.

    Args:
        whole: All of the block's memory.
        size: Bytes of it that are used.
        give: Takes the memory back.
    """

    def __init__(self, whole: bytearray, size: int, give: Callable[[bytearray], None]) -> None:
        self._whole = whole
        self._give = give
        self.memory = memoryview(whole)[:size]
        self.capacity = len(whole)

    def copy_to(self, target: torch.Tensor, dtype: torch.dtype, strides: Sequence[int]) -> None:
        """Copy the bytes into a tensor. The block must not be used after that.

        Args:
            target: Of any dtype, strides and device.
            dtype: What the bytes are elements of.
            strides: Elements from one element to the next, for each dimension of the target.
        """
        data = as_tensor(self.memory, dtype)
        target.copy_(data.as_strided(target.size(), strides))
        self._give(self._whole)


class Scatter:
    """Runs of bytes on their way into a CPU tensor of the same dtype, with gaps or strides.

    Copied by numpy: it takes one thread, where torch would start a team of them for each of
    ours.

    Args:
        view: The tensor, as :func:`element_view` shows it.
        strides: Bytes from one element to the next in what arrives, for each dimension.
        size: Bytes that arrive.
    """

    def __init__(self, view: Elements, strides: Sequence[int], size: int) -> None:
        self._view = view
        self._strides = tuple(strides)
        self._size = size

    def __len__(self) -> int:
        return self._size

    def put(self, content: memoryview) -> None:
        """Copy the bytes to where they belong."""
        view = self._view
        runs = np.ndarray(view.shape, view.dtype, buffer=content, strides=self._strides)
        np.copyto(view, runs)


ScratchBlock: TypeAlias = HostBlock | PinnedBlock


class Scratch:
    """Blocks of memory that are used again: fresh memory costs more than copying.

    Used as a context manager; leaving it waits for copies to devices and frees all blocks.

    Args:
        staging: Gives the blocks for devices that fetch by themselves.
    """

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._spare: list[bytearray] = []

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self._spare.clear()
        self._staging.finish()

    @property
    def in_flight(self) -> int:
        """Bytes of blocks that were copied to a device, but may not be done yet."""
        return self._staging.in_flight

    def settle(self, limit: int) -> None:
        """Wait until fewer than ``limit`` bytes are in flight, or none."""
        self._staging.settle(limit)

    def take(self, size: int, target: torch.Tensor) -> ScratchBlock:
        """A block for bytes of a target; a new one has the next power of two of them."""
        pinned = self._staging.take(size, target)
        if pinned is not None:
            return pinned
        fitting = [(len(b), place) for place, b in enumerate(self._spare) if len(b) >= size]
        if fitting:
            whole = self._spare.pop(min(fitting)[1])
        else:
            # Spare blocks that are too small would only add to the memory in use.
            self._spare.clear()
            whole = bytearray(1 << max(0, size - 1).bit_length())
        return HostBlock(whole, size, self._spare.append)


def byte_view(tensor: torch.Tensor) -> memoryview | None:
    """The memory of a dense CPU tensor, writable; None where there is no such thing."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_quantized
    if not plain or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    if tensor.is_conj() or tensor.is_neg():
        return None
    size = tensor.numel() * tensor.element_size()
    start = tensor.storage_offset() * tensor.element_size()
    flat = torch.empty(0, dtype=torch.uint8, device="cpu")  # whatever the default device
    flat.set_(tensor.untyped_storage(), start, (size,), (1,))
    return memoryview(flat.numpy())  # type: ignore[arg-type]


def element_view(tensor: torch.Tensor) -> Elements | None:
    """A CPU tensor of any strides as numpy sees its elements' bytes; None where it cannot."""
    kind = _SAME_SIZE.get(tensor.element_size())
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_quantized
    if kind is None or not plain or tensor.device.type != "cpu":
        return None
    if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
        return None
    view: Elements = tensor.view(kind).numpy()
    return view


def as_tensor(data: memoryview, dtype: torch.dtype) -> torch.Tensor:
    """A flat tensor over bytes; a copy only where they are not aligned for the dtype."""
    flat = torch.frombuffer(data, dtype=torch.uint8)
    if flat.data_ptr() % dtype.itemsize:
        flat = flat.clone()
    return flat.view(dtype)
