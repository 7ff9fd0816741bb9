"""The way off a device: copies to pinned host memory, while what was copied before is sent.

The data of a tensor comes in blocks, by copies on a stream of their own; a few are under way
beyond the one that is asked for. These laws keep that as safe as a copy that waits:

* A copy runs after all that was queued, when it is asked for, on the device's current stream of the
  thread that began the save, and on that of the thread that has the tensor.
* Bytes are handed out after the event of their copy has passed, and a block is filled again only
  when all of it was released (``block_ring``).
* Neither a block nor the tensor is let go while a copy uses it, after a failure neither.

What surrounds the data is known before: see ``envelopes``. Nothing here is particular to CUDA; a
device takes part if its module in torch has streams and events.
"""

from __future__ import annotations

import logging
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from .block_ring import Claim, Ring
from .envelopes import Envelope
from .items import envelope_of
from .staging import DeviceEvent, DeviceStream, Lane, current_streams, module_of

_log = logging.getLogger(__name__)

# Large enough that a copy takes far longer than queueing it does (0.3 ms at 25 GB/s), small enough
# that a part of an upload, 32 MiB, is begun early and that many files share a budget.
BLOCK = 8 * 1024 * 1024
# Smaller tensors are not worth a place in a block.
_SMALL = 64 * 1024
# One block is copied while another waits to be asked for; more would be missing in the upload.
_AHEAD = 2
#: Tensors whose bytes are their elements and nothing else.
PLAIN_TYPES: tuple[type[torch.Tensor], ...] = (torch.Tensor, torch.nn.Parameter)


class Unloading:
    """What the files of a save share; made in the thread that began the save.

    Args:
        budget: Bytes of blocks for each of the files that are written at the same time.
        block_size: Bytes of a block.
    """

    def __init__(self, budget: int, block_size: int = BLOCK) -> None:
        self._limit = max(2, budget // block_size)
        self._block_size = block_size
        self._streams = current_streams()

    def file(self, proceed: Callable[[], None]) -> Unloader:
        """For one file; ``proceed`` raises once the save is stopped."""
        return Unloader(self._streams, self._block_size, self._limit, proceed)


class Unloader:
    """Copies the tensors of one file, in order. Used by one thread, but for releases.

    Args:
        streams: The current streams of the thread that began the save.
        block_size: Bytes of a block.
        limit: How many blocks there are, unless more are needed at once.
        proceed: Raises once the save is stopped.
    """

    def __init__(
        self,
        streams: dict[torch.device, DeviceStream],
        block_size: int,
        limit: int,
        proceed: Callable[[], None],
    ) -> None:
        self.ring: Ring[torch.Tensor] = Ring(self._make, block_size, limit, proceed)
        self._block_size = block_size
        self._most_ahead = _AHEAD * block_size
        self._streams = streams
        self._lanes: dict[torch.device, Lane | None] = {}
        # Those with copies to queue, and all that are not handed out: nobody else may keep them.
        self._line: deque[Unloaded] = deque()
        self._begun: deque[Unloaded] = deque()
        self._can_pin = True
        self._ahead = 0

    @property
    def looks_ahead(self) -> bool:
        """Whether another tensor may begin before the last one was handed out."""
        return self._ahead < self._most_ahead and not self._line

    def begin(self, tensor: torch.Tensor, whole: bool) -> Unloaded | None:
        """Begin to copy a tensor; it is to be handed out after those that were begun before.

        None for one that has to be copied at once: because it is wanted ``whole``, small, not
        dense, of a special kind, or on a device without streams. That may then be done on the
        current stream.
        """
        lane = self._lane(tensor.device)
        if lane is None:
            return None
        data = None if whole else _bytes_of(tensor)
        envelope = None if data is None else envelope_of(tensor)
        if data is None or envelope is None:
            self._order(lane)
            return None
        lane.begin()
        unloaded = Unloaded(self, lane, data, envelope)
        self._begun.append(unloaded)
        self._line.append(unloaded)
        self.run_ahead()
        return unloaded

    def run_ahead(self) -> None:
        """Queue copies, as far as there are free blocks, and not too far."""
        while self._line and self._ahead < self._most_ahead:
            claim = self.ring.claim(self._line[0].unqueued)
            if claim is None:
                return
            self.queue(claim)

    def queue(self, claim: Claim[torch.Tensor] | None = None) -> None:
        """Queue the next copy, into a block that may have to be waited for."""
        first = self._line[0]
        self._ahead += first.queue(claim or self.ring.insist(first.unqueued))
        if not first.unqueued:
            self._line.popleft()

    def handed_out(self, count: int) -> None:
        """So many bytes are no longer ahead."""
        self._ahead -= count

    def done(self, unloaded: Unloaded) -> None:
        """All of a tensor, the first of those that were begun, was handed out."""
        self._begun.remove(unloaded)

    def finish(self) -> None:
        """Wait for all copies, and let go of all memory."""
        try:
            for lane in self._lanes.values():
                if lane is not None:
                    lane.stream.synchronize()
        finally:
            self._lanes.clear()
            self._line.clear()
            self._begun.clear()
            self.ring.clear()

    def _lane(self, device: torch.device) -> Lane | None:
        if device not in self._lanes:
            module = module_of(device)
            lane = self._lanes[device] = Lane(module, device) if module else None
            if lane is not None and device in self._streams:
                lane.after(self._streams[device])
        return self._lanes[device]

    def _order(self, lane: Lane) -> None:
        """What is queued on the current stream runs after what the save's own thread queued."""
        if lane.device in self._streams:
            queued = lane.module.Event()
            queued.record(self._streams[lane.device])
            lane.module.current_stream(lane.device).wait_event(queued)

    def _make(self) -> torch.Tensor:
        if self._can_pin:
            try:
                return torch.empty(
                    self._block_size, dtype=torch.uint8, device="cpu", pin_memory=True
                )
            except RuntimeError as error:
                _log.warning("no more memory can be pinned, copies from devices wait: %s", error)
                self._can_pin = False
        return torch.empty(self._block_size, dtype=torch.uint8, device="cpu")


class _Copy(NamedTuple):
    """A copy into a block, and the event that tells when it is done."""

    landed: DeviceEvent
    claim: Claim[torch.Tensor]


class Unloaded:
    """A tensor that is being copied: what ``torch.save`` would write of it on the CPU.

    Args:
        unloader: Made it.
        lane: Where the copies are queued.
        data: The tensor's bytes, on the device.
        envelope: What surrounds them.
    """

    def __init__(
        self, unloader: Unloader, lane: Lane, data: torch.Tensor, envelope: Envelope
    ) -> None:
        self._unloader = unloader
        self._lane = lane
        self._data = data
        self._envelope = envelope
        self._copies: deque[_Copy] = deque()
        self._queued = 0
        self._crc = 0
        self.header = envelope.header
        #: Bytes of data.
        self.size = data.numel()
        #: Bytes of all.
        self.length = len(envelope.header) + self.size + len(envelope.trailer)

    @property
    def unqueued(self) -> int:
        """Bytes of data whose copies are not queued yet."""
        return self.size - self._queued

    def queue(self, claim: Claim[torch.Tensor]) -> int:
        """Queue the copy of the next bytes; returns their number."""
        target = claim.memory[claim.begin : claim.begin + claim.size]
        source = self._data[self._queued : self._queued + claim.size]
        with self._lane.module.stream(self._lane.stream):
            target.copy_(source, non_blocking=True)
        self._copies.append(_Copy(self._lane.mark(), claim))
        self._queued += claim.size
        return claim.size

    def blocks(self, start: int) -> Iterator[memoryview]:
        """The data, which begins at a place in the file, when it has arrived."""
        done = 0
        while done < self.size:
            if not self._copies:
                self._unloader.queue()
            self._unloader.run_ahead()
            landed, claim = self._copies[0]
            landed.synchronize()
            self._copies.popleft()
            self._unloader.ring.hand_out(claim, start + done)
            self._unloader.handed_out(claim.size)
            whole = memoryview(claim.memory.numpy())  # type: ignore[arg-type]
            memory = whole[claim.begin : claim.begin + claim.size]
            self._crc = zlib.crc32(memory, self._crc)
            done += claim.size
            yield memory
        self._unloader.done(self)

    def trailer(self) -> bytes:
        """What comes behind the data; to be asked for when all of that was handed out."""
        return self._envelope.trailer_for(self._crc)


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The elements of a tensor as they lie in memory; None where a copy would lie otherwise."""
    tensor = tensor.detach()
    plain = type(tensor) in PLAIN_TYPES and tensor.layout is torch.strided
    if not plain or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return None
    size = tensor.numel() * tensor.element_size()
    if size <= _SMALL or not _is_dense(tensor):
        return None
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether its elements fill their memory, each once, so that a copy keeps the strides."""
    expected = 1
    dims = zip(tensor.stride(), tensor.size(), strict=True)
    for stride, count in sorted(dim for dim in dims if dim[1] != 1):
        if stride != expected:
            return False
        expected *= count
    return True
