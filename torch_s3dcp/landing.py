"""Items on their way into the state dict, and the parts in which their bytes land.

What runs here runs in the one thread that may talk to the planner.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from torch.distributed.checkpoint.planner import ReadItem

from .filling import Target
from .integrity import Level, Verification
from .plan import PlannedItem
from .spans import Piece
from .stats import Outcome

# Scratch blocks and cuts of large tensors have this many bytes at most.
BLOCK_SIZE = 8 * 1024 * 1024

Serve = Callable[[PlannedItem[ReadItem], memoryview], None]


class Part:
    """One piece of an item. As it is, it lands in scratch that it may share with neighbours."""

    shares_scratch = True
    #: Where the CRC-32 of its bytes is noted, as start, end, value; None: it is not wanted.
    sums: list[tuple[int, int, int]] | None = None

    def __init__(self, owner: Landing, size: int) -> None:
        self.owner = owner
        self.size = size
        self.missing = size
        self.memory: memoryview | None = None

    def prepare(self, size: int) -> int:
        """Get memory of its own; return how many bytes of scratch that took.

        Args:
            size: How many of the bytes come with the first request.
        """
        self.memory = memoryview(bytearray(self.size))
        return self.size

    @property
    def prepared(self) -> bool:
        """Whether there is a place for the bytes."""
        return self.memory is not None

    def place(self, offset: int, size: int) -> Target:
        """Where bytes of the part are to be received."""
        return self.content[offset : offset + size]

    @property
    def content(self) -> memoryview:
        """What has arrived."""
        if self.memory is None:
            raise RuntimeError("nothing has arrived yet")
        return self.memory

    def arrived(self) -> int:
        """All bytes are there; return how many bytes of scratch are free again."""
        return 0


class Landing(ABC):
    """One stored item on its way into the state dict.

    Args:
        path: Its object, relative to the checkpoint.
        planned: The item, and who wants it.
        level: How far it is to be verified.
    """

    def __init__(self, path: str, planned: PlannedItem[ReadItem], level: Level) -> None:
        self.path = path
        self.planned = planned
        self.verification = Verification(planned.stored, level)
        #: Times that it arrived damaged, as a whole.
        self.damaged = 0
        self.start = planned.stored.byte_range.start
        self.end = planned.stored.byte_range.end
        self.missing = 0
        #: Bytes of scratch that the item holds.
        self.held = 0

    @property
    def whole(self) -> int:
        """Bytes of memory that it takes at once, all on the word of the metadata."""
        return 0

    @property
    def name(self) -> str:
        """Name of the item, for messages."""
        return self.planned.requests[0].storage_index.fqn

    @abstractmethod
    def pieces(self, max_gap: int) -> Iterator[Piece[Part]]:
        """The bytes that the item needs, with the part that each becomes.

        To be called again if the item is to be fetched again.
        """

    @abstractmethod
    def finish(self) -> Outcome:
        """Check what has arrived and hand it to the planner.

        Raises:
            LayoutError: The archive is not what the metadata promised; the item must be
                fetched whole and decoded the ordinary way.
            DamagedItem: The item must be fetched again.
        """

    def piece(self, start: int, end: int, part: Part) -> Piece[Part]:
        """A piece of the object, counted as missing."""
        self.missing += end - start
        return Piece(start, end, part)


class WholeItem(Landing):
    """An item that is decoded the ordinary way."""

    def __init__(
        self, path: str, planned: PlannedItem[ReadItem], level: Level, serve: Serve
    ) -> None:
        super().__init__(path, planned, level)
        self._serve = serve

    @property
    def whole(self) -> int:
        return self.end - self.start

    def pieces(self, max_gap: int) -> Iterator[Piece[Part]]:
        self._all = Part(self, self.end - self.start)
        yield self.piece(self.start, self.end, self._all)

    def finish(self) -> Outcome:
        data = self._all.content if self._all.size else memoryview(b"")
        self.verification.archive(data)
        self._serve(self.planned, data)
        self._all.memory = None
        return Outcome.FALLBACK
