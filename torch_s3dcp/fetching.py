"""Performs many range requests at once, each into memory that was given to it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .filling import Fetch, Filling, RangeStream
from .transports.effort import Halt, halted_by

T = TypeVar("T")


OpenRange = Callable[[str, int, int], RangeStream]


@dataclass(frozen=True)
class Fetched(Generic[T]):
    """A request that has ended: well, or with ``error``.

    ``waited`` is the seconds until the answer began, ``took`` those of the body; ``retries``
    counts the requests that failed on the way. ``damaged`` counts the times that bytes did not
    match their checksum, ``again`` the bytes that were received anew because of that. ``found``
    are the checksums that were asked for: start, end, value.
    """

    fetch: Fetch[T]
    error: BaseException | None
    waited: float = 0.0
    took: float = 0.0
    retries: int = 0
    damaged: int = 0
    again: int = 0
    found: Sequence[tuple[int, int, int]] = ()


def _nothing() -> None:
    """There are no connections to leave."""


class FetchPool(Generic[T]):
    """Threads that fetch. Used as a context manager; leaving it ends what is running.

    Args:
        open_range: Begins a request: ``(path, start, end)`` to a stream.
        concurrency: Requests in flight at most, until :meth:`resize`.
        reconnect: Called before bytes that arrived damaged are asked for again.
    """

    def __init__(
        self,
        open_range: OpenRange,
        concurrency: int,
        reconnect: Callable[[], None] = _nothing,
    ) -> None:
        self._open_range = open_range
        self._reconnect = reconnect
        self._wanted = concurrency
        self._waiting: queue.SimpleQueue[Fetch[T] | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[Fetched[T]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._halt = Halt()
        self._open: set[RangeStream] = set()
        self._lock = threading.Lock()
        self._running = 0  # threads that have not ended, nor are about to
        self._bytes = 0
        self.pending = 0
        #: The most bytes that the requests in flight asked for at one time.
        self.peak_bytes = 0
        #: Bytes of scratch that the threads hold.
        self.scratch = 0

    def __enter__(self) -> FetchPool[T]:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
            streams = list(self._open)
        # After an error nobody waits for what the others still receive, nor for its answers.
        self._halt.set()
        for stream in streams:
            stream.close()
        for _thread in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def count_scratch(self, more: int) -> None:
        """A thread holds more scratch."""
        with self._lock:
            self.scratch += more

    def resize(self, concurrency: int) -> None:
        """Have more or fewer requests in flight from now on."""
        with self._lock:
            self._wanted = concurrency

    def submit(self, fetch: Fetch[T]) -> None:
        """Queue a request."""
        self.pending += 1
        self._waiting.put(fetch)
        with self._lock:
            more = self._running < min(self._wanted, self.pending)
            self._running += more
        if more:
            thread = threading.Thread(target=self._work, name="s3dcp-load", daemon=True)
            thread.start()
            self._threads.append(thread)

    def next(self, timeout: float | None = None) -> Fetched[T] | None:
        """Wait for a request to end, well or badly; None where none did in ``timeout`` seconds."""
        try:
            ended = self._ended.get(timeout=timeout)
        except queue.Empty:
            return None
        self.pending -= 1
        return ended

    def _work(self) -> None:
        scratch = _ThreadScratch(self)
        while True:
            fetch = self._waiting.get()
            if fetch is None or self._stopped:
                return
            with halted_by(self._halt):
                ended = self._receive(fetch, scratch)
            with self._lock:
                surplus = self._running > self._wanted
                self._running -= surplus
            self._ended.put(ended)
            if surplus:
                return

    def _receive(self, fetch: Fetch[T], scratch: _ThreadScratch) -> Fetched[T]:
        asked = time.perf_counter()
        with self._lock:
            self._bytes += len(fetch)
            self.peak_bytes = max(self.peak_bytes, self._bytes)
        filling = Filling(fetch, scratch.of, lambda: self._stopped)
        try:
            stream = self._open_range(fetch.path, fetch.start, fetch.end)
            answered = time.perf_counter()
            retries = 0
            while not self._pour(filling, stream):
                retries += stream.retries
                self._reconnect()
                stream = self._open_range(fetch.path, filling.position, fetch.end)
            took = time.perf_counter() - answered
            retries += stream.retries
            return _ended(filling, None, answered - asked, took, retries)
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            return _ended(filling, error)
        finally:
            with self._lock:
                self._bytes -= len(fetch)

    def _pour(self, filling: Filling[T], stream: RangeStream) -> bool:
        with self._lock:
            self._open.add(stream)
        try:
            # A stream that is opened after the end was closed by nobody.
            return self._stopped or filling.pour(stream)
        finally:
            with self._lock:
                self._open.discard(stream)
            stream.close()


def _ended(
    filling: Filling[T],
    error: BaseException | None,
    waited: float = 0.0,
    took: float = 0.0,
    retries: int = 0,
) -> Fetched[T]:
    damaged, again = filling.damaged, filling.again
    return Fetched(filling.fetch, error, waited, took, retries, damaged, again, filling.found)


class _ThreadScratch:
    """Memory of one thread, as large as the largest use of it so far."""

    def __init__(self, pool: FetchPool[T]) -> None:
        self._count = pool.count_scratch
        self._memory = memoryview(b"")

    def of(self, size: int) -> memoryview:
        if len(self._memory) < size:
            self._count(size - len(self._memory))
            self._memory = memoryview(bytearray(size))
        return self._memory[:size]
