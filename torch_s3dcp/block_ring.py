"""Blocks of memory that a stream hands out, and fills again once their bytes are stored. Pure.

Bytes are claimed in the order in which they are handed out, and released in any order, by other
threads. A block is filled again when all of it has been released, never before.

There is a limit to the blocks, and a thread that needs one waits for a release; but only for bytes
that the transport is bound to release without asking for more: those that it took before the last
time. Where there are none the limit gives way, for waiting would never end. So what is in use is
the limit, or what two calls of ``take`` give.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
# A save that is stopped has no way to wake who waits here.
_LOOK_UP = 0.05


@dataclass(eq=False)
class _Block(Generic[T]):
    """``used`` bytes of it are claimed, ``held`` of these not released."""

    memory: T
    used: int = 0
    held: int = 0


@dataclass(frozen=True)
class Claim(Generic[T]):
    """``size`` bytes of a block, from ``begin`` on."""

    block: _Block[T]
    begin: int
    size: int

    @property
    def memory(self) -> T:
        """All of the block."""
        return self.block.memory


@dataclass(eq=False)
class _Span(Generic[T]):
    """Bytes of the stream; ``left`` of them are not released."""

    start: int
    end: int
    left: int
    block: _Block[T] | None = None


class Ring(Generic[T]):
    """The blocks of one stream.

    Args:
        make: Makes the memory of a block.
        block_size: Its bytes.
        limit: How many blocks there are, unless more are needed at once.
        proceed: Asked while waiting; raises where that should end.
    """

    def __init__(
        self, make: Callable[[], T], block_size: int, limit: int, proceed: Callable[[], None]
    ) -> None:
        self._make = make
        self._block_size = block_size
        self._limit = limit
        self._proceed = proceed
        self._changed = threading.Condition()
        self._blocks = 0
        self._spare: list[_Block[T]] = []
        self._current: _Block[T] | None = None
        self._handed: list[_Span[T]] = []
        self._taken: list[_Span[T]] = []
        self._last: _Span[T] | None = None
        self._error: BaseException | None = None

    def claim(self, wanted: int) -> Claim[T] | None:
        """Up to ``wanted`` bytes, if there are any free ones within the limit."""
        with self._changed:
            return self._claim(wanted, self._free())

    def insist(self, wanted: int) -> Claim[T]:
        """Up to ``wanted`` bytes, if need be after a release or beyond the limit.

        Raises:
            BaseException: What the upload failed with, or what ``proceed`` raised.
        """
        with self._changed:
            while True:
                self._proceed()
                if self._error is not None:
                    raise self._error
                claim = self._claim(wanted, self._free() or self._beyond())
                if claim is not None:
                    return claim
                self._changed.wait(_LOOK_UP)

    def hand_out(self, claim: Claim[T], start: int) -> None:
        """The claimed bytes are those of the stream from ``start`` on."""
        with self._changed:
            end = start + claim.size
            self._handed.append(_Span(start, end, claim.size, claim.block))

    def taken(self, start: int, end: int) -> None:
        """The transport took these bytes, all at once."""
        with self._changed:
            self._last = _Span(start, end, end - start)
            self._taken.append(self._last)

    def release(self, start: int, size: int) -> None:
        """These bytes are stored. Called by several threads.

        Raises:
            ValueError: Part of them was released before, the rest was not.
        """
        with self._changed:
            for span in (*self._taken, *self._handed):
                count = min(start + size, span.end) - max(start, span.start)
                if count > 0:
                    self._give_back(span, count)
            self._taken = [span for span in self._taken if span.left]
            self._handed = [span for span in self._handed if span.left]
            self._changed.notify_all()

    def give_up(self, error: BaseException) -> None:
        """Not all that was taken will be released: who waits is told why."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def clear(self) -> None:
        """Let go of all blocks; who has their bytes keeps them alive."""
        with self._changed:
            self._spare.clear()
            self._handed.clear()
            self._current = None

    def _claim(self, wanted: int, block: _Block[T] | None) -> Claim[T] | None:
        if block is None:
            return None
        self._current = block
        claim = Claim(block, block.used, min(wanted, self._block_size - block.used))
        block.used += claim.size
        block.held += claim.size
        return claim

    def _free(self) -> _Block[T] | None:
        """A block with free bytes: the one in use, one used before, or a new one."""
        if self._current is not None and self._current.used < self._block_size:
            return self._current
        if self._spare:
            return self._spare.pop()
        return self._another() if self._blocks < self._limit else None

    def _beyond(self) -> _Block[T] | None:
        """A block too many, unless there is something to wait for."""
        return None if any(span is not self._last for span in self._taken) else self._another()

    def _another(self) -> _Block[T]:
        block = _Block(self._make())
        self._blocks += 1
        return block

    def _give_back(self, span: _Span[T], count: int) -> None:
        if count > span.left:
            raise ValueError(f"bytes of [{span.start}, {span.end}) were released twice")
        span.left -= count
        block = span.block
        if block is None:
            return
        block.held -= count
        if block.held or block.used < self._block_size:
            return
        if self._current is block:
            self._current = None
        if self._blocks > self._limit:
            self._blocks -= 1
            return
        block.used = 0
        self._spare.append(block)
