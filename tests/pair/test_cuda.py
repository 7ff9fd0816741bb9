"""Destinations on a device: filled through pinned memory, by copies on a stream of their own.

Each test runs on a model of a device, which every machine has, and on CUDA where there is one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from support.dcp import Place, assert_same, quiet, randn
from support.devices import Cuda, Lazy, lazy_device, needs_cuda
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem

from torch_s3dcp import S3ClientConfig, S3StorageReader
from torch_s3dcp.exceptions import EndpointError
from torch_s3dcp.readers.direct import DirectReaders
from torch_s3dcp.stats import LoadStats
from torch_s3dcp.testing.wrappers import Fault, FaultTransport
from torch_s3dcp.transports import MemoryTransport

MIB = 2**20
BIG = (512, 1024)


def load(
    place: Place, state: dict[str, Any], planner: Any = None, transport: Any = None, **settings: Any
) -> LoadStats:
    """Load through ``direct``, with as little scratch as can be."""
    reader = S3StorageReader(
        place.url("run"),
        transport=transport or place.transport,
        s3client_config=S3ClientConfig(memory_budget=16 * MIB),
        reader_constructor=DirectReaders(**settings),
    )
    with quiet():
        dcp.load(state, storage_reader=reader, planner=planner)
    assert reader.stats is not None
    return reader.stats


class Snapshots(dcp.DefaultLoadPlanner):
    """Copies what is committed, on the device's current stream."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, torch.Tensor] = {}

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        self.seen[read_item.dest_index.fqn] = tensor.detach().clone()


class Boxes(dcp.DefaultLoadPlanner):
    """Wants a box of every tensor, into a destination of its own that it then forgets."""

    def __init__(self, device: Lazy | Cuda, box: tuple[slice, ...], keep: bool = True) -> None:
        super().__init__()
        self.device, self.box, self.keep = device, box, keep
        self.got: dict[str, torch.Tensor] = {}

    def finish_plan(self, plan: LoadPlan) -> LoadPlan:
        offsets = torch.Size(part.start for part in self.box)
        lengths = torch.Size(part.stop - part.start for part in self.box)
        return LoadPlan(
            [
                ReadItem(item.type, item.dest_index, offsets, item.storage_index, offsets, lengths)
                for item in plan.items
            ]
        )

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        with self.device.module.stream(self.device.module.Stream()):
            made = self.device.put(torch.zeros(tuple(read_item.lengths)))
        if self.keep:
            self.got[read_item.dest_index.fqn] = made
        return made

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        pass


def test_it_arrives_bit_for_bit(memory: Place, device: Lazy | Cuda) -> None:
    saved = {
        "float32": randn(*BIG),
        "bfloat16": randn(*BIG, dtype=torch.bfloat16),
        "bytes": torch.randint(0, 256, (3 * MIB + 7,), dtype=torch.uint8),
        "bool": randn(*BIG, seed=1) > 0,
        "complex": torch.complex(randn(*BIG, seed=2), randn(*BIG, seed=3)),
        "small": randn(3, 5),
        "scalar": torch.tensor(2.5),
        "step": 7,
    }
    memory.save(saved, "run")
    state = {
        name: device.put(torch.zeros_like(value)) if name != "step" else 0
        for name, value in saved.items()
    }
    stats = load(memory, state)
    shown = {n: device.see(v) if n != "step" else v for n, v in state.items()}
    assert_same(shown, saved)
    assert (stats.direct_items, stats.scratch_items, stats.fallback_items) == (0, 7, 1)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_are_pinned_where_there_are_streams(memory: Place, seed: int) -> None:
    memory.save({"w": randn(*BIG)}, "run")
    with lazy_device(seed) as lazy:
        load(memory, {"w": lazy.put(torch.zeros(BIG))})
        assert lazy.module.copies > 0


def test_blocks_with_gaps_are_not_packed_on_the_host(memory: Place) -> None:
    memory.save({"w": randn(*BIG)}, "run")
    with lazy_device(0) as lazy:
        planner = Boxes(lazy, (slice(0, 512), slice(128, 640)))
        load(memory, {"w": torch.zeros(BIG)}, planner, max_gap_size=MIB)
        assert lazy.module.copies > 0
        assert lazy.module.packed == 0


@pytest.mark.parametrize(
    "box",
    [
        (slice(100, 400), slice(0, 1024)),
        (slice(0, 512), slice(128, 640)),
        (slice(511, 512), slice(1023, 1024)),
    ],
    ids=["rows", "columns", "element"],
)
@pytest.mark.parametrize("gap", [0, 64 * 1024])
def test_slices(memory: Place, device: Lazy | Cuda, box: Any, gap: int) -> None:
    saved = {"v": randn(*BIG), "w": randn(*BIG, seed=1)}
    memory.save(saved, "run")
    planner = Boxes(device, box)
    load(memory, {name: torch.zeros(BIG) for name in saved}, planner, max_gap_size=gap)
    assert_same({name: device.see(t) for name, t in planner.got.items()}, _boxes(saved, box))


def _boxes(saved: dict[str, torch.Tensor], box: Any) -> dict[str, torch.Tensor]:
    return {name: value[box].contiguous() for name, value in saved.items()}


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(BIG, dtype=torch.float64),
        lambda: torch.zeros(BIG, dtype=torch.bfloat16),
        lambda: torch.zeros(BIG, dtype=torch.float64).t().contiguous().t(),
        lambda: torch.zeros(BIG[::-1]).t(),
        lambda: torch.zeros(BIG[0], 2 * BIG[1])[:, ::2],
    ],
    ids=["wider", "narrower", "wider-transposed", "transposed", "strided"],
)
def test_other_dtypes_and_strides(memory: Place, device: Lazy | Cuda, make: Any) -> None:
    saved = randn(*BIG)
    memory.save({"w": saved}, "run")
    state = {"w": device.put(make())}
    load(memory, state)
    assert torch.equal(device.see(state["w"]), saved.to(state["w"].dtype))


def test_the_device_may_be_the_default(memory: Place, device: Lazy | Cuda) -> None:
    saved = {"here": randn(*BIG), "there": randn(*BIG, seed=1)}
    memory.save(saved, "run")
    state = {"here": torch.zeros(BIG), "there": device.put(torch.zeros(BIG))}
    with torch.device(device.device):
        stats = load(memory, state)
    assert_same({"here": state["here"], "there": device.see(state["there"])}, saved)
    assert (stats.direct_items, stats.scratch_items) == (1, 1)
    if isinstance(device, Lazy):
        assert device.module.copies > 0


def test_many_blocks_share_little_memory(memory: Place, device: Lazy | Cuda) -> None:
    saved = {f"w{n}": randn(3, MIB // 2, seed=n) for n in range(8)}
    memory.save(saved, "run", thread_count=2)
    state = {name: device.put(torch.zeros_like(value)) for name, value in saved.items()}
    stats = load(memory, state, part_size=4 * MIB)
    assert_same({name: device.see(value) for name, value in state.items()}, saved)
    assert stats.peak_scratch < (16 + 8 + 1) * MIB  # a request begins while there is any room


def test_what_is_committed_may_be_used(memory: Place, device: Lazy | Cuda) -> None:
    saved = {f"w{n}": randn(*BIG, seed=n) for n in range(5)}
    memory.save(saved, "run")
    planner = Snapshots()
    with device.module.stream(device.module.Stream(device=device.device)):
        load(memory, {n: device.put(torch.zeros(BIG)) for n in saved}, planner)
    device.module.synchronize()
    assert_same({name: device.see(planner.seen[name]) for name in saved}, saved)


def test_work_that_was_queued_before_goes_first(memory: Place, device: Lazy | Cuda) -> None:
    saved = randn(*BIG)
    memory.save({"w": saved}, "run")
    state = {"w": device.put(torch.ones(BIG))}
    with device.module.stream(device.module.Stream(device=device.device)):
        device.keep_busy()
        state["w"].add_(1)
        before = state["w"].clone()
        state["w"].fill_(9)
        load(memory, state)
    assert torch.equal(device.see(state["w"]), saved)
    device.module.synchronize()
    assert torch.equal(device.see(state["w"]), saved)
    assert torch.equal(device.see(before), torch.full(BIG, 2.0))


def test_destinations_that_the_planner_forgets(memory: Place, device: Lazy | Cuda) -> None:
    memory.save({f"w{n}": randn(*BIG, seed=n) for n in range(4)}, "run")
    planner = Boxes(device, (slice(0, 512), slice(0, 512)), keep=False)
    load(memory, {f"w{n}": torch.zeros(BIG) for n in range(4)}, planner, max_gap_size=MIB)


def test_a_surprise_in_the_envelope(memory: Place, device: Lazy | Cuda) -> None:
    saved = randn(*BIG).t()
    memory.save({"w": saved}, "run")
    state = {"w": device.put(torch.zeros(saved.shape))}
    stats = load(memory, state)
    assert torch.equal(device.see(state["w"]), saved)
    assert stats.fallback_items == 1


def test_after_a_failure_nothing_is_written(memory: Place, device: Lazy | Cuda) -> None:
    saved = {f"w{n}": randn(*BIG, seed=n) for n in range(6)}
    memory.save(saved, "run")
    state = {name: device.put(torch.zeros(BIG)) for name in saved}
    fault = Fault("get", error=EndpointError("gone"), nth=6, times=None)
    broken = FaultTransport(memory.transport, [fault])
    with pytest.raises(CheckpointException):
        load(memory, state, transport=broken, part_size=MIB)
    if isinstance(device, Lazy):
        copying = [s for s in device.module.streams if s is not device.module.current]
        assert not any(stream.queue for stream in copying)
    before = {name: device.see(value) for name, value in state.items()}
    device.module.synchronize()
    assert_same({name: device.see(value) for name, value in state.items()}, before)


def test_memory_that_cannot_be_pinned(memory: Place) -> None:
    saved = {f"w{n}": randn(*BIG, seed=n) for n in range(6)}
    memory.save(saved, "run")
    with lazy_device(0, pinned_limit=5 * MIB) as lazy:
        state = {name: lazy.put(torch.zeros(BIG)) for name in saved}
        load(memory, state)
        assert_same({name: lazy.see(value) for name, value in state.items()}, saved)
        assert lazy.module.copies > 0


def test_a_device_without_streams(memory: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = {"w": randn(*BIG)}
    memory.save(saved, "run")
    with lazy_device(0) as lazy:
        state = {"w": lazy.put(torch.zeros(BIG))}
        monkeypatch.delattr("support.devices.LazyModule.Event")
        load(memory, state)
        assert_same({"w": lazy.see(state["w"])}, saved)
        assert lazy.module.copies == 0


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    shapes=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 800)), min_size=1, max_size=6),
    part_size=st.sampled_from([MIB, 32 * MIB]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    order=st.randoms(use_true_random=False),
)
def test_at_whatever_times_the_device_works(
    seed: int, shapes: list[tuple[int, int]], part_size: int, dtype: torch.dtype, order: Any
) -> None:
    place = Place("bucket", MemoryTransport("bucket"))
    saved = {f"w{n}": randn(*shape, seed=n) for n, shape in enumerate(shapes)}
    place.save(saved, "run")
    with lazy_device(seed) as lazy:
        names = order.sample(sorted(saved), len(saved))
        state = {name: lazy.put(torch.zeros(saved[name].shape, dtype=dtype)) for name in names}
        planner = Snapshots()
        load(place, state, planner, part_size=part_size)
        assert all(torch.equal(lazy.see(state[name]).float(), saved[name]) for name in saved)
        lazy.module.synchronize()
        assert all(torch.equal(lazy.see(planner.seen[name]).float(), saved[name]) for name in saved)


@needs_cuda
def test_dtensors_of_one_rank(memory: Place, tmp_path: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group(
        "cpu:gloo,cuda:nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        mesh = dist.init_device_mesh("cuda", (1,))
        saved = {f"w{n}": randn(*BIG, seed=n) for n in range(3)}
        sharded = {n: distribute_tensor(v.cuda(), mesh, [Shard(0)]) for n, v in saved.items()}
        memory.save(sharded, "run")
        state = {n: distribute_tensor(torch.zeros(BIG).cuda(), mesh, [Shard(1)]) for n in saved}
        load(memory, state)
        assert_same({n: v.to_local().cpu() for n, v in state.items()}, saved)
    finally:
        dist.destroy_process_group()
