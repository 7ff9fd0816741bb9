"""What is loaded: the states that the benchmarks save, and the parts of them that they load."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from examples.transformer import MEDIUM, SMALL, Shape, make_model

State = dict[str, Any]
_MIB = 2**20
_TINY_MODEL = Shape(layers=2, width=64, hidden=128, vocabulary=256)


@dataclass(frozen=True)
class Case:
    """A checkpoint and a load of it.

    ``saved`` makes the whole state that is saved, ``wanted`` the empty state that is loaded,
    already allocated and touched. ``ranks`` is how many ranks save; more than one save shards
    of dim 0, each rank a file. ``files`` is how many files a single rank writes; 0: one for each
    item.
    """

    saved: Callable[[], State]
    wanted: Callable[[], State]
    files: int = 4
    ranks: int = 1


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


def _tensors(
    count: int,
    shape: tuple[int, ...],
    *,
    wanted: Iterable[int] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    files: int = 4,
) -> Case:
    """Equal tensors, of which some are loaded into a dtype."""
    numbers = range(count) if wanted is None else wanted
    return Case(
        lambda: {f"tensor.{n:05}": noise(shape, n) for n in range(count)},
        lambda: {f"tensor.{n:05}": blank(shape, dtype) for n in numbers},
        files,
    )


def _squares(size: int, dim: int, rank: int, world: int, *, savers: int = 1) -> Case:
    """Four square tensors, of which one rank of a world loads its slice along a dim."""
    return Case(
        lambda: {f"tensor.{n:05}": noise((size, size), n) for n in range(4)},
        lambda: _slices(4, (size, size), dim, rank, world),
        ranks=savers,
    )


def _slices(count: int, shape: tuple[int, int], dim: int, rank: int, world: int) -> State:
    """A rank's slices, cut as DTensor cuts, in a pretended process group."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if not dist.is_initialized():
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    whole = torch.empty(shape, device="meta")
    local = tuple(whole.chunk(world, dim)[rank].shape)
    return {
        f"tensor.{n:05}": DTensor.from_local(
            blank(local), mesh, [Shard(dim)], shape=whole.shape, stride=whole.stride()
        )
        for n in range(count)
    }


def _model(shape: Shape) -> Case:
    return Case(
        lambda: make_model(shape, 1).state_dict(),
        lambda: make_model(shape, None).state_dict(),
    )


def make_cases(tiny: bool = False) -> dict[str, Case]:
    """All cases by name; ``tiny``: the same with little in them, to see that all work."""
    square = 50 if tiny else 8192
    few, many, most = (3, 6, 30) if tiny else (24, 90, 10_000)
    one, eight, sixteen, twenty_four = (
        (mib if tiny else mib * _MIB // torch.bfloat16.itemsize,) for mib in (1, 8, 16, 24)
    )
    single = torch.float32
    return {
        "full": _model(_TINY_MODEL if tiny else MEDIUM),
        "small-model": _model(_TINY_MODEL if tiny else SMALL),
        "latency": _tensors(16, twenty_four, files=0),
        # Tensors are dealt out to the files in turn: a third of each file, with gaps of two.
        "partial": _tensors(64, eight, wanted=range(0, 64, 3)),
        "partial-small": _tensors(512, one, wanted=range(0, 512, 3)),
        "small": _tensors(most, (2048,), files=1),
        "rows": _squares(square, 0, 3, 8),
        "columns": _squares(square, 1, 3, 8),
        "reshard-rows": _squares(square, 0, 1, 3, savers=8),
        "reshard-columns": _squares(square, 1, 1, 3, savers=8),
        "memory": _tensors(few, sixteen),
        "memory-large": _tensors(many, sixteen),
        "convert": _tensors(few, sixteen, dtype=single),
        "convert-large": _tensors(many, sixteen, dtype=single),
    }


def local_part(value: Any) -> torch.Tensor:
    """The memory of this rank behind a loaded value."""
    part: torch.Tensor = value.to_local() if hasattr(value, "to_local") else value
    return part


def expected_part(name: str, value: Any, saved: State) -> torch.Tensor:
    """What must have been loaded into a value."""
    whole: torch.Tensor = saved[name]
    if hasattr(value, "to_local"):
        (placement,) = value.placements
        mesh = value.device_mesh
        whole = whole.chunk(mesh.size(), placement.dim)[mesh.get_local_rank()]
    return whole.to(value.dtype).contiguous()
