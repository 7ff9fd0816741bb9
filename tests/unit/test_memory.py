"""Scratch that is used again."""

from __future__ import annotations

import torch

from torch_s3dcp.memory import Scratch
from torch_s3dcp.staging import Staging


def test_blocks_that_came_back_are_taken_first_whatever_is_still_out() -> None:
    target = torch.zeros(1000)
    with Scratch(Staging()) as scratch:
        first, second = scratch.take(4000, target), scratch.take(4000, target)
        wholes = [first.memory.obj, second.memory.obj]
        first.copy_to(target, torch.float32, (1,))
        third = scratch.take(3000, target[:750])
        assert third.memory.obj is wholes[0]
        second.copy_to(target, torch.float32, (1,))
        fourth = scratch.take(2000, target[:500])
        assert fourth.memory.obj is wholes[1]
        assert fourth.capacity == 4096


def test_the_smallest_block_that_fits_is_taken() -> None:
    target = torch.zeros(8000)
    with Scratch(Staging()) as scratch:
        large, small = scratch.take(32_000, target), scratch.take(4000, target)
        large.copy_to(target, torch.float32, (1,))
        small.copy_to(target[:1000], torch.float32, (1,))
        assert scratch.take(100, target).capacity == 4096
        assert scratch.take(5000, target).capacity == 32_768
