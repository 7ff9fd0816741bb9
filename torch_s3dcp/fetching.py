"""Performs many range requests at once, each into memory that was given to it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from .exceptions import TruncatedObjectError
from .readers.contract import ObjectStream, fill_from

T = TypeVar("T")


@dataclass(frozen=True)
class Fetch(Generic[T]):
    """One request: ``[start, end)`` of an object, received into ``targets`` one after another.

    The targets' sizes add up to ``end - start``.
    """

    path: str
    start: int
    end: int
    targets: Sequence[memoryview]
    tag: T


@dataclass(frozen=True)
class Fetched(Generic[T]):
    """A request that has ended: well, or with ``error``."""

    fetch: Fetch[T]
    error: BaseException | None


class FetchPool(Generic[T]):
    """Threads that fetch. Used as a context manager; leaving it ends what is running.

    Args:
        open_range: Begins a request: ``(path, start, end)`` to a stream.
        concurrency: Requests in flight at most.
    """

    def __init__(
        self, open_range: Callable[[str, int, int], ObjectStream], concurrency: int
    ) -> None:
        self._open_range = open_range
        self._threads = ThreadPoolExecutor(concurrency, "s3dcp-load")
        self._ended: queue.SimpleQueue[Fetched[T]] = queue.SimpleQueue()
        self._stopped = False
        self._open: set[ObjectStream] = set()
        self._lock = threading.Lock()
        self.pending = 0

    def __enter__(self) -> FetchPool[T]:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._open)
        # After an error nobody waits for what the others still receive.
        for stream in running:
            stream.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def submit(self, fetch: Fetch[T]) -> None:
        """Queue a request."""
        self.pending += 1
        self._threads.submit(self._run, fetch)

    def next(self) -> Fetched[T]:
        """Wait for a request to end, well or badly."""
        ended = self._ended.get()
        self.pending -= 1
        return ended

    def _run(self, fetch: Fetch[T]) -> None:
        try:
            self._receive(fetch)
        except BaseException as error:  # noqa: BLE001 - raised by next(), in the caller's thread
            self._ended.put(Fetched(fetch, error))
        else:
            self._ended.put(Fetched(fetch, None))

    def _receive(self, fetch: Fetch[T]) -> None:
        stream = self._open_range(fetch.path, fetch.start, fetch.end)
        with self._lock:
            self._open.add(stream)
        try:
            for target in fetch.targets:
                if self._stopped:
                    return
                if fill_from(stream, target) < len(target):
                    raise TruncatedObjectError(
                        "the stream ended early", byte_range=(fetch.start, fetch.end)
                    )
        finally:
            with self._lock:
                self._open.discard(stream)
            stream.close()
