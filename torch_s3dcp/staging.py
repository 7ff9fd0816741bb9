"""The way onto a device: pinned host memory, and copies on a stream of their own.

A block arrives in pinned memory, and the device fetches it from there while the next blocks
are received. Three laws keep that as safe as a copy that waits:

* A copy runs after all that was queued on the device's current stream when the load began to
  use the destination.
* What is queued on that stream after a commit runs after the copies of what is committed.
* Neither pinned memory nor a destination is let go, or used again, while a copy uses it.

Nothing here is particular to CUDA: a device takes part if its module in torch has streams and
events. Used by one thread.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, cast

import torch

_log = logging.getLogger(__name__)
_NEEDED = ("Stream", "Event", "stream", "current_stream", "is_initialized", "device_count")


class DeviceEvent(Protocol):
    """A mark in a stream."""

    def record(self, stream: DeviceStream, /) -> None:
        """Set the mark after all that is queued on a stream now."""
        ...

    def query(self) -> bool:
        """Whether the device has passed the mark."""
        ...

    def synchronize(self) -> None:
        """Wait until it has."""
        ...


class DeviceStream(Protocol):
    """A queue of work of a device."""

    def wait_event(self, event: DeviceEvent, /) -> None:
        """Hold back what is queued from now on until a mark is passed."""
        ...

    def synchronize(self) -> None:
        """Wait until all that is queued is done."""
        ...


class DeviceModule(Protocol):
    """What is used of ``torch.cuda``, ``torch.xpu`` and their like."""

    def Stream(self, device: torch.device) -> DeviceStream:
        """A new stream."""
        ...

    def Event(self) -> DeviceEvent:
        """A new mark."""
        ...

    def stream(self, stream: DeviceStream, /) -> AbstractContextManager[object]:
        """Makes a stream the current one."""
        ...

    def current_stream(self, device: torch.device, /) -> DeviceStream:
        """The stream on which a device's work is queued now."""
        ...

    def is_initialized(self) -> bool:
        """Whether the process uses any of the devices."""
        ...

    def device_count(self) -> int:
        """How many devices there are."""
        ...


def module_of(device: torch.device) -> DeviceModule | None:
    """The module of a device that has streams of its own; None for all other devices."""
    if device.type == "cpu":  # its module has streams that do nothing
        return None
    try:
        module = torch.get_device_module(device)
    except RuntimeError:
        return None
    return cast(DeviceModule, module) if all(hasattr(module, name) for name in _NEEDED) else None


def current_streams() -> dict[torch.device, DeviceStream]:
    """This thread's current stream of each device, by device; none if none is in use."""
    kind = torch.accelerator.current_accelerator()
    module = module_of(kind) if kind is not None else None
    if kind is None or module is None or not module.is_initialized():
        return {}
    devices = [torch.device(kind.type, number) for number in range(module.device_count())]
    return {device: module.current_stream(device) for device in devices}


class Lane:
    """The stream on which one device is filled, or what it has is copied."""

    def __init__(self, module: DeviceModule, device: torch.device) -> None:
        self.module = module
        self.device = device
        self.stream = module.Stream(device=device)
        self._last: DeviceEvent | None = None

    def begin(self) -> None:
        """Copies from now on run after what is queued on the current stream."""
        self.after(self.module.current_stream(self.device))

    def after(self, stream: DeviceStream) -> None:
        """Copies from now on run after what is queued on another stream."""
        queued = self.module.Event()
        queued.record(stream)
        self.stream.wait_event(queued)

    def mark(self) -> DeviceEvent:
        """An event that is passed when all copies so far are done."""
        self._last = self.module.Event()
        self._last.record(self.stream)
        return self._last

    def order(self) -> None:
        """What is queued on the current stream from now on runs after the copies so far."""
        if self._last is not None:
            self.module.current_stream(self.device).wait_event(self._last)


class PinnedBlock:
    """Pinned memory, receiving or being copied from.

    Args:
        staging: Takes the block back.
        lane: The way to the device.
        whole: All of the block's memory, one byte an element.
        size: Bytes of it that are used.
    """

    def __init__(self, staging: Staging, lane: Lane, whole: torch.Tensor, size: int) -> None:
        self._staging = staging
        self.lane = lane
        self.whole = whole
        self.content = whole[:size]
        self.memory = memoryview(self.content.numpy())  # type: ignore[arg-type]
        self.capacity = whole.numel()

    def copy_to(self, target: torch.Tensor, dtype: torch.dtype, strides: Sequence[int]) -> None:
        """Have the bytes copied, as :meth:`HostBlock.copy_to`; the block may be in use longer."""
        self._staging.send(self, target, dtype, strides)


class _Flight(NamedTuple):
    """A copy that may not be done yet, with what it reads and writes."""

    landed: DeviceEvent
    block: PinnedBlock
    target: torch.Tensor


class Staging:
    """Fills tensors on devices from pinned memory that is used again."""

    def __init__(self) -> None:
        self._lanes: dict[torch.device, Lane | None] = {}
        self._flights: deque[_Flight] = deque()
        self._spare: dict[int, list[torch.Tensor]] = {}
        self._can_pin = True
        #: Bytes of blocks whose copies may not be done yet.
        self.in_flight = 0

    def begin(self, device: torch.device) -> None:
        """Copies to a device from now on run after what is queued on its current stream."""
        lane = self._lane(device)
        if lane is not None:
            lane.begin()

    def order(self) -> None:
        """What is queued on the current streams from now on runs after the copies so far."""
        for lane in self._lanes.values():
            if lane is not None:
                lane.order()

    def take(self, size: int, target: torch.Tensor) -> PinnedBlock | None:
        """A block to receive into, for a target. A new one has the next power of two of bytes.

        None where a copy would not leave the host free anyway: the target's device has no
        streams, or no memory can be pinned; and for layouts that need more than one copy.
        """
        plain = target.layout is torch.strided and not target.is_quantized
        lane = self._lane(target.device) if plain else None
        if lane is None:
            return None
        self._land()
        fitting = [
            capacity for capacity, blocks in self._spare.items() if capacity >= size and blocks
        ]
        if fitting:
            whole: torch.Tensor | None = self._spare[min(fitting)].pop()
        else:
            # Spare blocks that are too small would only add to the memory in use.
            self._spare.clear()
            whole = self._pin(1 << max(0, size - 1).bit_length())
        return None if whole is None else PinnedBlock(self, lane, whole, size)

    def send(
        self, block: PinnedBlock, target: torch.Tensor, dtype: torch.dtype, strides: Sequence[int]
    ) -> None:
        """Queue the copy of a block; it comes back to be used again when that is done."""
        try:
            with block.lane.module.stream(block.lane.stream):
                source = block.content
                if source.numel() > target.numel() * dtype.itemsize:
                    # With gaps torch would pack the source on the host. Its way of converting
                    # needs no help: it copies as stored, and converts on the device.
                    source = torch.empty(source.size(), dtype=torch.uint8, device=target.device)
                    source.copy_(block.content, non_blocking=True)
                shaped = source.view(dtype).as_strided(target.size(), strides)
                target.copy_(shaped, non_blocking=True)
        finally:
            # Also after an error: the first of two copies may be on its way.
            self._flights.append(_Flight(block.lane.mark(), block, target))
            self.in_flight += block.capacity

    def settle(self, limit: int) -> None:
        """Wait until fewer than ``limit`` bytes are in flight, or none."""
        self._land()
        while self._flights and self.in_flight >= limit:
            self._flights[0].landed.synchronize()
            self._land_first()

    def finish(self) -> None:
        """Wait for all copies, and let go of all memory."""
        for lane in self._lanes.values():
            if lane is not None:
                lane.stream.synchronize()
        self._lanes.clear()
        self._flights.clear()
        self._spare.clear()
        self.in_flight = 0

    def _land(self) -> None:
        """Take back the blocks whose copies are done, without waiting."""
        while self._flights and self._flights[0].landed.query():
            self._land_first()

    def _land_first(self) -> None:
        block = self._flights.popleft().block
        self.in_flight -= block.capacity
        self._spare.setdefault(block.capacity, []).append(block.whole)

    def _lane(self, device: torch.device) -> Lane | None:
        if device not in self._lanes:
            module = module_of(device)
            self._lanes[device] = Lane(module, device) if module else None
        return self._lanes[device]

    def _pin(self, size: int) -> torch.Tensor | None:
        if not self._can_pin:
            return None
        try:
            return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
        except RuntimeError as error:
            # There is a limit to pinned memory; what worked without must not fail for it.
            _log.warning("no more memory can be pinned, copies to devices wait: %s", error)
            self._can_pin = False
            return None
