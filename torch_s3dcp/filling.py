"""One request's bytes on their way into memory, verified before they count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from .checks import Check, Checker
from .exceptions import IntegrityError, TruncatedObjectError
from .readers.contract import ObjectStream, fill_from

T = TypeVar("T")

# Bytes are verified in steps of this size. Smaller ones stay in the cache, but cost more: after
# each, a thread waits for the interpreter's lock (docs/design/reliability.md).
_STEP = 8 * 1024 * 1024
# How often bytes may arrive damaged before the load fails.
MOST_TRIES = 3


class RangeStream(ObjectStream, Protocol):
    """A byte range, arriving over connections that may break."""

    @property
    def retries(self) -> int:
        """Requests for it that failed so far."""
        ...


class Unwanted:
    """Bytes of a gap: received and forgotten."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def put(self, content: memoryview) -> None:
        """Forget them."""


class Passing(Protocol):
    """Bytes that pass through scratch of the thread that receives them."""

    def __len__(self) -> int: ...

    def put(self, content: memoryview) -> None:
        """Take all of the bytes, in the receiving thread. The memory is used again after that.

        Called again, with the right bytes, where they turn out to be damaged.
        """
        ...


Target = memoryview | Passing


@dataclass(frozen=True)
class Fetch(Generic[T]):
    """One request: ``[start, end)`` of an object, received into ``targets`` one after another.

    The targets' sizes add up to ``end - start``. ``checks`` ascend, don't overlap and lie inside.
    """

    path: str
    start: int
    end: int
    targets: Sequence[Target]
    tag: T
    checks: Sequence[Check] = ()

    def __len__(self) -> int:
        return self.end - self.start


@dataclass
class Filling(Generic[T]):
    """The targets of a request while they are filled, by one stream or by several.

    Args:
        fetch: The request.
        scratch: Gives the memory for bytes that pass.
        stopped: Whether nobody wants the bytes any more.
    """

    fetch: Fetch[T]
    scratch: Callable[[int], memoryview]
    stopped: Callable[[], bool]
    #: Where the next stream has to begin.
    position: int = field(init=False)
    #: Times that bytes arrived damaged.
    damaged: int = 0
    #: Bytes that were received more than once.
    again: int = 0

    def __post_init__(self) -> None:
        self.position = self.fetch.start
        self._checker = Checker(self.fetch.checks, self.fetch.start)
        self._tries = Counter[int]()

    @property
    def found(self) -> list[tuple[int, int, int]]:
        """The checksums that were asked for: start, end, value."""
        return self._checker.found

    def pour(self, stream: RangeStream) -> bool:
        """Fill the targets; False where damage was found, and another stream has to go on.

        Raises:
            IntegrityError: The same bytes were damaged too often.
            TruncatedObjectError: The stream ended early.
        """
        place = self.fetch.start
        for target in self.fetch.targets:
            begin, place = place, place + len(target)
            if place <= self.position:
                continue
            if self.stopped():
                return True
            bad = self._fill(target, begin, stream)
            if bad is not None:
                self._go_back(bad)
                return False
        return True

    def _fill(self, target: Target, begin: int, stream: RangeStream) -> Check | None:
        """Fill the rest of a target that begins at a place."""
        if not isinstance(target, memoryview):
            memory = self.scratch(len(target))
            bad = self._receive(stream, memory)
            target.put(memory)
            return bad
        rest = target[self.position - begin :]
        if not self.fetch.checks:
            return self._receive(stream, rest)
        while rest:
            bad = self._receive(stream, rest[:_STEP])
            if bad is not None:
                return bad
            rest = rest[_STEP:]
        return None

    def _receive(self, stream: RangeStream, memory: memoryview) -> Check | None:
        if fill_from(stream, memory) < len(memory):
            raise TruncatedObjectError(
                "the stream ended early", byte_range=(self.fetch.start, self.fetch.end)
            )
        self.position += len(memory)
        return self._checker.feed(memory) if self.fetch.checks else None

    def _go_back(self, bad: Check) -> None:
        """To where the damaged bytes, and what they passed through, begin."""
        self.damaged += 1
        self._tries[bad.start] += 1
        if self._tries[bad.start] >= MOST_TRIES:
            raise damage(bad.start, bad.end)
        place = before = bad.start
        while True:
            place = self._checker.begins_at(self._target_at(place))
            if place == before:
                break
            before = place
        self.again += self.position - place
        self.position = place
        self._checker.rewind(place)

    def _target_at(self, position: int) -> int:
        """Where to begin anew so that a byte is received: what passes comes from its start."""
        place = self.fetch.start
        for target in self.fetch.targets:
            if place <= position < place + len(target):
                return position if isinstance(target, memoryview) else place
            place += len(target)
        return position


def damage(start: int, end: int) -> IntegrityError:
    """The error for bytes of an object that stay wrong."""
    return IntegrityError(
        "the bytes do not match the checksum that was saved with them, each time that they were "
        "asked for; the object is damaged, load another checkpoint",
        byte_range=(start, end),
        attempts=MOST_TRIES,
    )
