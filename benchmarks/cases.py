"""What is loaded: the states that the benchmarks save, and the parts of them that they load."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from examples.transformer import MEDIUM, SMALL, make_model

State = dict[str, Any]
_MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A checkpoint and a load of it.

    ``saved`` makes the state that is saved, ``wanted`` the empty state that is loaded, already
    allocated and touched. ``files`` is how many files the checkpoint has; 0: one for each item.
    """

    saved: Callable[[], State]
    wanted: Callable[[], State]
    files: int = 4
    about: str = ""


def noise(shape: tuple[int, ...], number: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A tensor of repeatable, cheap noise; other numbers give other noise."""
    count = 1
    for size in shape:
        count *= size
    block = _block(dtype)
    begin = number * 7919 % block.numel()
    repeated = (
        block
        if begin + count <= block.numel()
        else block.repeat((begin + count) // block.numel() + 1)
    )
    return repeated[begin : begin + count].view(shape).clone()


@functools.cache
def _block(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).to(dtype)


def blank(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A tensor whose memory has been touched."""
    return torch.zeros(shape, dtype=dtype).fill_(1)


def _tensors(count: int, shape: tuple[int, ...]) -> Callable[[], State]:
    return lambda: {f"tensor.{n:05}": noise(shape, n) for n in range(count)}


def _blanks(numbers: range, shape: tuple[int, ...]) -> Callable[[], State]:
    return lambda: {f"tensor.{n:05}": blank(shape) for n in numbers}


def _slices(count: int, shape: tuple[int, int], dim: int) -> Callable[[], State]:
    """One of eight ranks' slices, as DTensors in a pretended process group."""

    def make() -> State:
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Shard
        from torch.testing._internal.distributed.fake_pg import FakeStore

        if not dist.is_initialized():
            dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=8)
        mesh = init_device_mesh("cpu", (8,))
        local = tuple(size // 8 if d == dim else size for d, size in enumerate(shape))
        return {
            f"tensor.{n:05}": DTensor.from_local(blank(local), mesh, [Shard(dim)])
            for n in range(count)
        }

    return make


def _model(shape: Any) -> Case:
    return Case(
        lambda: make_model(shape, 1).state_dict(),
        lambda: make_model(shape, None).state_dict(),
    )


_SQUARE = (8192, 8192)
_EIGHT_MIB = (4 * _MIB,)

CASES = {
    "full": _model(MEDIUM),
    "small-model": _model(SMALL),
    "partial": Case(_tensors(64, _EIGHT_MIB), _blanks(range(0, 64, 4), _EIGHT_MIB)),
    "small": Case(_tensors(10_000, (2048,)), _blanks(range(10_000), (2048,)), files=1),
    "latency": Case(_tensors(16, (12 * _MIB,)), _blanks(range(16), (12 * _MIB,)), files=0),
    "rows": Case(_tensors(4, _SQUARE), _slices(4, _SQUARE, 0)),
    "columns": Case(_tensors(4, _SQUARE), _slices(4, _SQUARE, 1)),
}


def local_part(value: Any) -> torch.Tensor:
    """The memory of this rank behind a loaded value."""
    return value.to_local() if hasattr(value, "to_local") else value


def expected_part(name: str, value: Any, saved: State) -> torch.Tensor:
    """What must have been loaded into a value."""
    whole = saved[name]
    if not hasattr(value, "to_local"):
        return whole
    (placement,) = value.placements
    return whole.chunk(8, placement.dim)[3]
