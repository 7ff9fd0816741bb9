"""Loading straight into memory: all requests of a load in flight together.

One thread plans, prepares memory, and talks to the planner; others only receive bytes. A
tensor is committed when all its bytes have come and its envelope was checked. An item whose
envelope holds a surprise is fetched whole, at the end, and decoded by ``torch.load``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem

from .archive import LayoutError
from .collector import CollectorPause
from .concurrency import ConcurrencyLimit
from .exceptions import S3DCPError
from .fetching import Fetched, FetchPool, OpenRange
from .filling import MOST_TRIES, Fetch, damage
from .integrity import DamagedItem, Level
from .landing import Landing, Part, Serve, WholeItem
from .layout import predict_layout
from .link import LinkEstimate, LoadConditions
from .memory import Destinations, Scratch
from .places import is_prepared, requests_of
from .plan import LARGE_ITEM, FilePlan, PlannedItem, check_end
from .spans import Cut, Piece, Span
from .staging import Staging
from .stats import LoadStats, LoadTally
from .tensor_landing import LargeTensor, SmallTensor
from .units import Unit, units_of
from .uri import S3URI

# Archives up to this size are fetched whole: their envelope is small change.
SMALL_ITEM = 128 * 1024
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

        A piece with ``edges`` may be cut there only, so that what arrives can be verified.
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
        level: How far what arrives is verified.
        reconnect: Called before damaged bytes are asked for again.
        size_of: Asks for the size of an object.
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
        level: Level,
        reconnect: Callable[[], None],
        size_of: Callable[[str], int],
    ) -> None:
        self._strategy = strategy
        self._open_range = open_range
        self._serve = serve
        self._described = described
        self._base = base
        self._limit = limit
        self._budget = memory_budget
        self._link = link
        self._level = level
        self._reconnect = reconnect
        self._size_of = size_of
        self._begin_with = limit.limit
        staging = Staging()
        self._destinations = Destinations(planner, staging)
        self._scratch = Scratch(staging)
        self._needed = self._held = self._peak = 0
        self._tally = LoadTally()
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
        usual = self._tally.requests
        while self._again:
            # Whole, for torch.load, or once more.
            again, self._again = self._again, []
            self._perform(self._fetches_of(self._pieces_of(again)), pause)
        return replace(
            self._tally.stats(len(items), usual),
            bytes_needed=needed,
            concurrency=self._limit.highest,
            plan_seconds=planned - begin,
            read_seconds=time.perf_counter() - planned,
        )

    def _landing(self, path: str, planned: PlannedItem[ReadItem]) -> Landing:
        """The way in which an item will arrive."""
        layout, level = predict_layout(planned, self._described), self._level
        if layout is None:
            return WholeItem(path, planned, level, self._serve)
        if len(planned.stored.byte_range) <= SMALL_ITEM:
            return SmallTensor(path, planned, level, layout, self._destinations, self._serve)
        return LargeTensor(path, planned, level, layout, self._destinations, self._scratch)

    def _pieces_of(self, items: Sequence[Landing]) -> dict[str, list[Piece[Unit[Part]]]]:
        """What items need, object by object. Items without bytes are done at once."""
        gap = self._strategy.gap(self._conditions())
        by_path: dict[str, list[Piece[Unit[Part]]]] = {}
        for item in items:
            if item.whole > LARGE_ITEM:
                self._check_end(item)
            units = units_of(item.pieces(gap), (item.start, item.end), item.verification.checksums)
            by_path.setdefault(item.path, []).extend(units)
            self._needed += item.missing
            if not item.missing:
                self._finish(item)
        return by_path

    def _fetches_of(
        self, by_path: Mapping[str, Sequence[Piece[Unit[Part]]]]
    ) -> Iterator[Fetch[Sequence[Cut[Part]]]]:
        """The requests, planned and given memory as they are asked for."""
        for path, pieces in by_path.items():
            spans = self._strategy.plan_spans(pieces, self._conditions())
            for number, span in enumerate(spans):
                following = spans[number + 1 : number + 2]
                for fetch in requests_of(path, span, self._hold):
                    ended = fetch.end == span.end
                    self._next_is_prepared = ended and any(map(is_prepared, following))
                    yield fetch

    def _conditions(self) -> LoadConditions:
        return self._link.conditions(self._needed, self._begin_with)

    def _perform(self, work: Iterator[Fetch[Sequence[Cut[Part]]]], pause: CollectorPause) -> None:
        """Make all requests, as many at once as allowed."""
        pool = FetchPool[Sequence[Cut[Part]]](self._open_range, self._limit.limit, self._reconnect)
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
            self._tally.add_peaks(self._peak + pool.scratch, pool.peak_bytes)

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
        if fetched.error is None and not (fetched.retries or fetched.damaged):
            self._link.learn(fetched.waited, received, fetched.took)
        self._tally.add_request(received, fetched.again, fetched.retries, fetched.damaged)

    def _hold(self, item: Landing, scratch: int) -> None:
        item.held += scratch
        self._held += scratch
        self._peak = max(self._peak, self._held + self._scratch.in_flight)

    def _release(self, item: Landing, scratch: int) -> None:
        item.held -= scratch
        self._held -= scratch

    def _take(self, fetched: Fetched[Sequence[Cut[Part]]]) -> None:
        """Take note of what has arrived; finish the items that have all they need."""
        sums = {start: value for start, _, value in fetched.found}
        for cut in fetched.fetch.tag:
            part = cut.piece.owner
            item = part.owner
            try:
                if fetched.error is not None:
                    item = _concerned(fetched, fetched.error) or item
                    raise fetched.error
                part.missing -= len(cut)
                item.missing -= len(cut)
                if part.sums is not None:
                    part.sums.append((cut.start, cut.end, sums[cut.start]))
                if not part.missing:
                    self._release(item, part.arrived())
                if not item.missing:
                    self._finish(item)
            except S3DCPError as error:
                raise self._located(error, item) from error

    def _located(self, error: S3DCPError, item: Landing) -> S3DCPError:
        """The error with the item's place and name."""
        return error.locate(
            bucket=self._base.bucket,
            key=self._base.join(item.path).key,
            byte_range=(item.start, item.end),
            tensor=item.name,
        )

    def _check_end(self, item: Landing) -> None:
        """Before much memory is taken on the word of the metadata: is there so much?"""
        try:
            check_end(item.end, self._size_of(item.path))
        except S3DCPError as error:
            raise self._located(error, item) from error

    def _finish(self, item: Landing) -> None:
        """All of an item has arrived: commit it, or have it fetched again."""
        try:
            self._tally.add_item(item.finish(), item.verification.enough)
        except LayoutError:
            self._again.append(WholeItem(item.path, item.planned, self._level, self._serve))
        except DamagedItem:
            item.damaged += 1
            self._tally.damaged += 1
            if item.damaged >= MOST_TRIES:
                raise damage(item.start, item.end) from None
            self._reconnect()
            self._again.append(item)
        finally:
            self._release(item, item.held)


def _concerned(fetched: Fetched[Sequence[Cut[Part]]], error: BaseException) -> Landing | None:
    """The item that an error is about."""
    if isinstance(error, S3DCPError) and error.byte_range is not None:
        for cut in fetched.fetch.tag:
            item = cut.piece.owner.owner
            if item.start <= error.byte_range[0] < item.end:
                return item
    return None
