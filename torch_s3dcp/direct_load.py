"""Loading straight into memory: all requests of a load in flight together.

One thread plans, prepares memory, and talks to the planner; others only receive bytes. A
tensor is committed when all its bytes have come and its envelope was checked. An item whose
envelope holds a surprise is fetched whole, at the end, and decoded by ``torch.load``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem

from .archive import LayoutError
from .exceptions import S3DCPError
from .fetching import Fetch, Fetched, FetchPool
from .landing import (
    SMALL_ITEM,
    Landing,
    LargeTensor,
    Outcome,
    Part,
    Serve,
    SmallTensor,
    WholeItem,
    predict_layout,
)
from .memory import Destinations, Scratch
from .plan import FilePlan, PlannedItem
from .readers.contract import ObjectStream
from .spans import Piece, Span
from .stats import LoadStats
from .uri import S3URI


@runtime_checkable
class FillsMemory(Protocol):
    """A reader strategy that plans the requests of a whole load, for memory to be filled.

    Optional: the storage reader uses it where a reader constructor offers it, instead of
    building a file-like reader for each object.
    """

    def gap(self, seconds_per_request: float) -> int:
        """Bytes between two wanted ranges that it would rather read through."""
        ...

    def plan_spans(
        self, pieces: Iterable[Piece[Any]], seconds_per_request: float
    ) -> Sequence[Span[Any]]:
        """The requests for the pieces of one object, ascending by start."""
        ...


class DirectLoad:
    """One load; ``run`` does it.

    Args:
        strategy: Says which requests to make.
        open_range: Begins a request: ``(path, start, end)`` to a stream.
        serve: Decodes an item the ordinary way, from all of its bytes.
        planner: Gives and takes the tensors.
        described: What the metadata says of each name: ``state_dict_metadata``.
        base: Address of the checkpoint, for messages.
        concurrency: Requests in flight at most.
        memory_budget: Bytes of scratch; a request begins only while less is in use.
        seconds_per_request: What a request costs, as far as it is known.
    """

    def __init__(
        self,
        strategy: FillsMemory,
        open_range: Callable[[str, int, int], ObjectStream],
        serve: Serve,
        planner: LoadPlanner,
        described: Mapping[str, Any],
        base: S3URI,
        *,
        concurrency: int,
        memory_budget: int,
        seconds_per_request: float,
    ) -> None:
        self._strategy = strategy
        self._open_range = open_range
        self._serve = serve
        self._described = described
        self._base = base
        self._concurrency = concurrency
        self._budget = memory_budget
        self._seconds_per_request = seconds_per_request
        self._destinations = Destinations(planner)
        self._scratch = Scratch()
        self._outcomes = dict.fromkeys(Outcome, 0)
        self._needed = self._read = self._requests = 0
        self._held = self._peak = 0
        self._again: list[Landing] = []

    def run(self, files: Sequence[FilePlan[ReadItem]]) -> LoadStats:
        """Load everything in the plans.

        Raises:
            S3DCPError: A request failed, or what came cannot be used; it names range and item.
        """
        begin = time.perf_counter()
        work = deque(self._plan(files))
        planned = time.perf_counter()
        self._perform(work)
        # What held a surprise is fetched whole now, for torch.load.
        again = [WholeItem(item.path, item.planned, self._serve) for item in self._again]
        self._perform(deque(self._spans_of(again)))
        return LoadStats(
            requests=self._requests,
            bytes_needed=self._needed,
            bytes_read=self._read,
            direct_items=self._outcomes[Outcome.DIRECT],
            scratch_items=self._outcomes[Outcome.SCRATCH],
            fallback_items=self._outcomes[Outcome.FALLBACK],
            peak_scratch=self._peak,
            plan_seconds=planned - begin,
            read_seconds=time.perf_counter() - planned,
        )

    def _plan(self, files: Sequence[FilePlan[ReadItem]]) -> Iterator[tuple[str, Span[Part]]]:
        for file in files:
            items = [self._landing(file.path, planned) for planned in file.items]
            yield from self._spans_of(items)

    def _landing(self, path: str, planned: PlannedItem[ReadItem]) -> Landing:
        """The way in which an item will arrive."""
        layout = predict_layout(planned, self._described)
        if layout is None:
            return WholeItem(path, planned, self._serve)
        if len(planned.stored.byte_range) <= SMALL_ITEM:
            return SmallTensor(path, planned, layout, self._destinations, self._serve)
        return LargeTensor(path, planned, layout, self._destinations, self._scratch)

    def _spans_of(self, items: Sequence[Landing]) -> Iterator[tuple[str, Span[Part]]]:
        """The requests for items, object by object. Items without bytes are done at once."""
        gap = self._strategy.gap(self._seconds_per_request)
        by_path: dict[str, list[Piece[Part]]] = {}
        for item in items:
            pieces = list(item.pieces(gap))
            self._needed += item.missing
            by_path.setdefault(item.path, []).extend(pieces)
            if not item.missing:
                self._outcomes[item.finish()] += 1
        for path, pieces in by_path.items():
            for span in self._strategy.plan_spans(pieces, self._seconds_per_request):
                yield path, span

    def _perform(self, work: deque[tuple[str, Span[Part]]]) -> None:
        """Make all requests, as many at once as allowed."""
        with FetchPool[Span[Part]](self._open_range, self._concurrency) as pool:
            while work or pool.pending:
                while work and self._room(pool):
                    pool.submit(self._prepare(*work.popleft()))
                self._take(pool.next())

    def _room(self, pool: FetchPool[Span[Part]]) -> bool:
        if not pool.pending:
            return True
        return pool.pending < 2 * self._concurrency and self._held < self._budget

    def _prepare(self, path: str, span: Span[Part]) -> Fetch[Span[Part]]:
        """Give every byte of a span a place to land, in the order in which they come."""
        places = _Places()
        position = span.start
        for cut in span.cuts:
            part = cut.piece.owner
            places.skip(cut.start - position)
            position = cut.end
            if part.shares_scratch and len(cut) == part.size:
                places.share(part)
                self._hold(part.owner, part.size)
            else:
                if part.memory is None:
                    self._hold(part.owner, part.prepare())
                places.add(part.content[cut.offset : cut.offset + len(cut)])
        places.close()
        self._requests += 1
        self._read += len(span)
        return Fetch(path, span.start, span.end, places.targets, span)

    def _hold(self, item: Landing, scratch: int) -> None:
        item.held += scratch
        self._held += scratch
        self._peak = max(self._peak, self._held)

    def _release(self, item: Landing, scratch: int) -> None:
        item.held -= scratch
        self._held -= scratch

    def _take(self, fetched: Fetched[Span[Part]]) -> None:
        """Take note of what has arrived; finish the items that have all they need."""
        for cut in fetched.fetch.tag.cuts:
            part = cut.piece.owner
            item = part.owner
            try:
                if fetched.error is not None:
                    raise fetched.error
                part.missing -= len(cut)
                item.missing -= len(cut)
                if not part.missing:
                    self._release(item, part.arrived())
                if not item.missing:
                    self._outcomes[item.finish()] += 1
                    self._release(item, item.held)
            except LayoutError:
                self._release(item, item.held)
                self._again.append(item)
            except S3DCPError as error:
                raise error.locate(
                    bucket=self._base.bucket,
                    key=self._base.join(item.path).key,
                    byte_range=(item.start, item.end),
                    tensor=item.name,
                ) from error


class _Places:
    """Memory for the bytes of one request, in order; neighbours in scratch share a block."""

    def __init__(self) -> None:
        self.targets: list[memoryview] = []
        self._size = 0
        self._shared: list[tuple[Part, int]] = []

    def skip(self, count: int) -> None:
        """Bytes of a gap: read and forgotten."""
        self._size += count

    def share(self, part: Part) -> None:
        """A part that lands in shared scratch."""
        self._shared.append((part, self._size))
        self._size += part.size

    def add(self, memory: memoryview) -> None:
        """Bytes that have memory of their own."""
        self.close()
        self.targets.append(memory)

    def close(self) -> None:
        """Allocate what is shared so far."""
        if not self._size:
            return
        block = memoryview(bytearray(self._size))
        for part, offset in self._shared:
            part.memory = block[offset : offset + part.size]
        self.targets.append(block)
        self._shared, self._size = [], 0
