"""What a load did, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadStats:
    """Figures of one rank's load through a strategy that fills memory.

    Bytes are bytes of objects, seconds are wall time. ``direct_items`` were received into
    their destination, ``scratch_items`` copied once, ``fallback_items`` decoded by
    ``torch.load`` or the planner. ``peak_scratch`` is memory beside the destinations.
    """

    requests: int
    bytes_needed: int
    bytes_read: int
    direct_items: int
    scratch_items: int
    fallback_items: int
    peak_scratch: int
    plan_seconds: float
    read_seconds: float

    @property
    def bytes_wasted(self) -> int:
        """Bytes that were read and thrown away."""
        return max(0, self.bytes_read - self.bytes_needed)

    def __str__(self) -> str:
        rate = self.bytes_needed / 1e9 / self.read_seconds if self.read_seconds else 0.0
        return (
            f"{self.bytes_needed / 1e6:.1f} MB in {self.read_seconds:.2f} s ({rate:.2f} GB/s), "
            f"{self.requests} requests, {self.bytes_wasted / 1e6:.1f} MB wasted, items: "
            f"{self.direct_items} direct, {self.scratch_items} through scratch, "
            f"{self.fallback_items} decoded by torch"
        )
