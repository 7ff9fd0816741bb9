"""Loading straight into memory: all requests of a load in flight together.

One thread plans, prepares memory, and talks to the planner; others only receive bytes. A
tensor is committed when all its bytes have come and its envelope was checked. An item whose
envelope holds a surprise is fetched whole, at the end, and decoded by ``torch.load``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem

from .archive import LayoutError
from .collector import CollectorPause
from .concurrency import ConcurrencyLimit
from .exceptions import S3DCPError
from .fetching import Fetch, Fetched, FetchPool, OpenRange
from .landing import (
    BLOCK_SIZE,
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
from .link import LinkEstimate, LoadConditions
from .memory import Destinations, Scratch
from .places import Places
from .plan import FilePlan, PlannedItem
from .spans import Cut, Piece, Span
from .staging import Staging
from .stats import LoadStats
from .uri import S3URI

# Requests that wait in the queue with scratch in their hands.
_AHEAD_WITH_SCRATCH = 2


@runtime_checkable
class FillsMemory(Protocol):
    """A reader strategy that plans the requests of a whole load, for memory to be filled.

    Optional: the storage reader uses it where a reader constructor offers it, instead of
    building a file-like reader for each object.
    """

    def gap(self, conditions: LoadConditions) -> int:
        """Bytes between two wanted ranges that it would rather read through."""
        ...

    def plan_spans(
        self, pieces: Iterable[Piece[Any]], conditions: LoadConditions
    ) -> Sequence[Span[Any]]:
        """The requests for the pieces of one object, ascending by start.

        Called for one object after the other, with what is known by then.
        """
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
        limit: Says how many requests may be in flight.
        memory_budget: Bytes of scratch; a request begins only while less is in use.
        link: What is known of the way to the server; it learns more.
    """

    def __init__(
        self,
        strategy: FillsMemory,
        open_range: OpenRange,
        serve: Serve,
        planner: LoadPlanner,
        described: Mapping[str, Any],
        base: S3URI,
        *,
        limit: ConcurrencyLimit,
        memory_budget: int,
        link: LinkEstimate,
    ) -> None:
        self._strategy = strategy
        self._open_range = open_range
        self._serve = serve
        self._described = described
        self._base = base
        self._limit = limit
        self._budget = memory_budget
        self._link = link
        self._begin_with = limit.limit
        staging = Staging()
        self._destinations = Destinations(planner, staging)
        self._scratch = Scratch(staging)
        self._outcomes = dict.fromkeys(Outcome, 0)
        self._needed = self._held = self._peak = 0
        self._stats = LoadStats()
        self._next_is_prepared = False
        self._again: list[Landing] = []

    def run(self, files: Sequence[FilePlan[ReadItem]]) -> LoadStats:
        """Load everything in the plans.

        Raises:
            S3DCPError: A request failed, or what came cannot be used; it names range and item.
        """
        with CollectorPause() as pause:
            return self._run(files, pause)

    def _run(self, files: Sequence[FilePlan[ReadItem]], pause: CollectorPause) -> LoadStats:
        begin = time.perf_counter()
        items = [self._landing(file.path, item) for file in files for item in file.items]
        pieces = self._pieces_of(items)
        needed = self._needed
        planned = time.perf_counter()
        self._perform(self._fetches_of(pieces), pause)
        # What held a surprise is fetched whole now, for torch.load.
        again = [WholeItem(item.path, item.planned, self._serve) for item in self._again]
        usual = self._stats.data_requests
        self._perform(self._fetches_of(self._pieces_of(again)), pause)
        return replace(
            self._stats,
            data_requests=usual,
            fallback_requests=self._stats.data_requests - usual,
            bytes_needed=needed,
            direct_items=self._outcomes[Outcome.DIRECT],
            scratch_items=self._outcomes[Outcome.SCRATCH],
            fallback_items=self._outcomes[Outcome.FALLBACK],
            concurrency=self._limit.highest,
            plan_seconds=planned - begin,
            read_seconds=time.perf_counter() - planned,
        )

    def _landing(self, path: str, planned: PlannedItem[ReadItem]) -> Landing:
        """The way in which an item will arrive."""
        layout = predict_layout(planned, self._described)
        if layout is None:
            return WholeItem(path, planned, self._serve)
        if len(planned.stored.byte_range) <= SMALL_ITEM:
            return SmallTensor(path, planned, layout, self._destinations, self._serve)
        return LargeTensor(path, planned, layout, self._destinations, self._scratch)

    def _pieces_of(self, items: Sequence[Landing]) -> dict[str, list[Piece[Part]]]:
        """What items need, object by object. Items without bytes are done at once."""
        gap = self._strategy.gap(self._conditions())
        by_path: dict[str, list[Piece[Part]]] = {}
        for item in items:
            by_path.setdefault(item.path, []).extend(item.pieces(gap))
            self._needed += item.missing
            if not item.missing:
                self._outcomes[item.finish()] += 1
        return by_path

    def _fetches_of(
        self, by_path: Mapping[str, Sequence[Piece[Part]]]
    ) -> Iterator[Fetch[Sequence[Cut[Part]]]]:
        """The requests, planned and given memory as they are asked for."""
        for path, pieces in by_path.items():
            spans = self._strategy.plan_spans(pieces, self._conditions())
            for number, span in enumerate(spans):
                following = spans[number + 1 : number + 2]
                for fetch in self._prepare(path, span):
                    ended = fetch.end == span.end
                    self._next_is_prepared = ended and any(map(_is_prepared, following))
                    yield fetch

    def _conditions(self) -> LoadConditions:
        return self._link.conditions(self._needed, self._begin_with)

    def _perform(self, work: Iterator[Fetch[Sequence[Cut[Part]]]], pause: CollectorPause) -> None:
        """Make all requests, as many at once as allowed."""
        pool = FetchPool[Sequence[Cut[Part]]](self._open_range, self._limit.limit)
        # The scratch is left last: nothing is received into it any more then.
        with self._scratch, pool:
            while True:
                while self._room(pool) and (fetch := next(work, None)) is not None:
                    self._limit.begin(time.perf_counter())
                    pool.submit(fetch)
                if not pool.pending:
                    break
                fetched = pool.next(pause.seconds_left)
                if not pause.seconds_left:
                    pause.end()
                if fetched is None:
                    continue
                self._learn(fetched)
                pool.resize(self._limit.limit)
                self._take(fetched)
            peak = max(self._stats.peak_in_flight, pool.peak_bytes)
            scratch = max(self._stats.peak_scratch, self._peak + pool.scratch)
            self._stats = replace(self._stats, peak_in_flight=peak, peak_scratch=scratch)

    def _room(self, pool: FetchPool[Sequence[Cut[Part]]]) -> bool:
        # Some wait in the queue, so that no connection waits for this thread: few where each
        # takes fresh memory.
        ahead = _AHEAD_WITH_SCRATCH if self._held else self._limit.limit
        full = self._held >= self._budget and not self._next_is_prepared
        if pool.pending and (full or pool.pending >= self._limit.limit + ahead):
            return False
        # Copies to devices are done sooner than the next request.
        self._scratch.settle(self._budget - self._held)
        return True

    def _learn(self, fetched: Fetched[Sequence[Cut[Part]]]) -> None:
        """From how one request went to how the next ones are made."""
        received = len(fetched.fetch)
        self._limit.end(received, fetched.retries, time.perf_counter())
        if fetched.error is None and not fetched.retries:
            self._link.learn(fetched.waited, received, fetched.took)
        self._stats = replace(
            self._stats,
            data_requests=self._stats.data_requests + 1,
            retries=self._stats.retries + fetched.retries,
            bytes_read=self._stats.bytes_read + received,
        )

    def _prepare(self, path: str, span: Span[Part]) -> Iterator[Fetch[Sequence[Cut[Part]]]]:
        """Give every byte of a span a place to land, in the order in which they come.

        A span that needs much scratch becomes several requests: all connections are to have
        something to do within the budget.
        """
        places, cuts, scratch = Places(), list[Cut[Part]](), 0
        for cut in span.cuts:
            part = cut.piece.owner
            if cuts and scratch >= BLOCK_SIZE:
                yield _fetch(path, places, cuts)
                places, cuts, scratch = Places(), [], 0
            taken = places.skip(cut.start - cuts[-1].end) if cuts else 0
            cuts.append(cut)
            if part.shares_scratch and len(cut) == part.size:
                places.share(part)
                taken += part.size
            else:
                taken += 0 if part.prepared else part.prepare(len(cut))
                places.add(part.place(cut.offset, len(cut)))
            self._hold(part.owner, taken)
            scratch += taken
        yield _fetch(path, places, cuts)

    def _hold(self, item: Landing, scratch: int) -> None:
        item.held += scratch
        self._held += scratch
        self._peak = max(self._peak, self._held + self._scratch.in_flight)

    def _release(self, item: Landing, scratch: int) -> None:
        item.held -= scratch
        self._held -= scratch

    def _take(self, fetched: Fetched[Sequence[Cut[Part]]]) -> None:
        """Take note of what has arrived; finish the items that have all they need."""
        for cut in fetched.fetch.tag:
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


def _fetch(path: str, places: Places, cuts: Sequence[Cut[Part]]) -> Fetch[Sequence[Cut[Part]]]:
    """The request that fills places with cuts."""
    return Fetch(path, cuts[0].start, cuts[-1].end, places.targets(), cuts)


def _is_prepared(span: Span[Part]) -> bool:
    """Whether a request for it takes no more memory."""
    return all(cut.piece.owner.prepared for cut in span.cuts)
