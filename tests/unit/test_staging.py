"""Pinned blocks on their way to a device, in any order of events, on a model of a device."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.devices import DEVICE, lazy_device

from torch_s3dcp.staging import PinnedBlock, Staging, module_of


class Staged(RuleBasedStateMachine):
    """Takes, fills and sends blocks; uses what is committed, and memory that is taken again."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.count = 0
        self.blocks: list[tuple[PinnedBlock, torch.Tensor, int, torch.Tensor]] = []
        self.sent: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.snapshots: list[tuple[torch.Tensor, torch.Tensor]] = []

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.lazy = self.stack.enter_context(lazy_device(seed))
        self.staging = Staging()

    @rule(
        rows=st.integers(1, 9),
        gap=st.sampled_from([0, 0, 3]),
        dtype=st.sampled_from([torch.int32, torch.int64]),
    )
    def receive(self, rows: int, gap: int, dtype: torch.dtype) -> None:
        target = self.lazy.put(torch.zeros(rows, 5, dtype=dtype))
        target.fill_(-1)  # work that was queued before the load began with it
        self.staging.begin(DEVICE)
        used = rows * (5 + gap) - gap
        block = self.staging.take(4 * used, target)
        assert block is not None
        values = torch.arange(self.count, self.count + used, dtype=torch.int32)
        self.count += used
        block.memory[:] = memoryview(values.numpy()).cast("B")
        self.blocks.append((block, target, 5 + gap, values.as_strided((rows, 5), (5 + gap, 1))))

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        block, target, stride, values = self.blocks.pop(
            data.draw(st.integers(0, len(self.blocks) - 1))
        )
        before = self.staging.in_flight
        block.copy_to(target, torch.int32, (stride, 1))
        assert self.staging.in_flight == before + block.capacity
        self.sent.append((target, values))

    @rule(limit=st.integers(-1, 1000))
    def settle(self, limit: int) -> None:
        self.staging.settle(limit)
        assert self.staging.in_flight < limit or self.staging.in_flight == 0

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        target, values = data.draw(st.sampled_from(self.sent))
        self.staging.order()
        self.snapshots.append((target.clone(), values))

    @rule()
    def finish(self) -> None:
        self.staging.finish()
        assert self.staging.in_flight == 0
        self.blocks.clear()
        for target, values in self.sent:
            assert torch.equal(self.lazy.see(target), values.to(target.dtype))

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert self.lazy.module.faults == []

    def teardown(self) -> None:
        with self.stack:
            if not hasattr(self, "lazy"):
                return
            self.finish()
            self.lazy.module.synchronize()
            for seen, values in self.snapshots:
                assert torch.equal(self.lazy.see(seen), values.to(seen.dtype))


TestStaged = Staged.TestCase
TestStaged.settings = settings(max_examples=150, stateful_step_count=30)


def test_devices_without_streams_have_no_staging() -> None:
    staging = Staging()
    assert module_of(torch.device("cpu")) is None
    assert module_of(torch.device("meta")) is None
    assert staging.take(100, torch.zeros(25)) is None
    assert staging.take(100, torch.zeros(25, device="meta")) is None
    staging.begin(torch.device("cpu"))
    staging.order()
    staging.settle(0)
    staging.finish()


def test_blocks_are_used_again_once_their_copies_are_done() -> None:
    with lazy_device(1) as lazy:
        lazy.module.eagerness = 0.0
        staging, target = Staging(), lazy.put(torch.zeros(100))
        staging.begin(DEVICE)
        first = staging.take(400, target)
        assert first is not None
        assert (len(first.memory), first.capacity) == (400, 512)
        first.copy_to(target, torch.float32, (1,))
        second = staging.take(400, target)
        assert second is not None
        assert second.content.data_ptr() != first.content.data_ptr()
        staging.settle(1)
        third = staging.take(300, target)
        assert third is not None
        assert third.content.data_ptr() == first.content.data_ptr()
        staging.finish()
