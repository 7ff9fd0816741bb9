"""How long a thread waits for the interpreter lock, which others of its process hold.

A thread sleeps 1 ms over and over. It is late when no core is free, which Linux counts
(``schedstat``: time in the run queue), and when the lock is not: what is left of the lateness.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

PERIOD = 0.001
_BLOCK = 2**24


@dataclass(frozen=True)
class Tick:
    """A sleep that ended at ``end``, and what happened from the one before until then.

    Seconds; ``end`` is of ``time.perf_counter``. ``queued``: no core was free for this thread.
    ``others``: CPU time of the other threads of the process.
    """

    end: float
    late: float
    queued: float
    others: float

    @property
    def begin(self) -> float:
        """When the sleep began."""
        return self.end - self.late - PERIOD

    @property
    def stalled(self) -> float:
        """How long it waited for the lock while others ran: of lateness what is left at most.

        Whoever holds the lock may have to wait for a core, too. That is the machine's.
        """
        return max(0.0, min(self.late - self.queued, self.others))


@dataclass
class Ticker:
    """The thread that sleeps, from ``__enter__`` to ``__exit__``."""

    ticks: list[Tick] = field(default_factory=list)

    def __enter__(self) -> Ticker:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def between(self, begin: float, end: float) -> list[Tick]:
        """Ticks that began in this time."""
        return [tick for tick in self.ticks if begin <= tick.begin < end]

    def _run(self) -> None:
        with _own_time() as own:
            last, (queued, others) = time.perf_counter(), own.read()
            while not self._ended.is_set():
                time.sleep(PERIOD)
                now, (queue, cpu) = time.perf_counter(), own.read()
                self.ticks.append(Tick(now, now - last - PERIOD, queue - queued, cpu - others))
                last, queued, others = now, queue, cpu


@dataclass(frozen=True)
class _OwnTime:
    """What Linux counts of one thread."""

    file: int
    text: ctypes.Array[ctypes.c_char] = field(
        default_factory=lambda: ctypes.create_string_buffer(80)
    )

    def read(self) -> tuple[float, float]:
        """How long the thread could have run, but had no core; CPU time of all others.

        Unlike ``os.pread`` it keeps the interpreter lock: there is nothing new to wait for.
        """
        count = _LIBRARY.pread(self.file, self.text, len(self.text), ctypes.c_long(0))
        ran, queued, _ = self.text.raw[:count].split()
        return int(queued) / 1e9, time.process_time() - int(ran) / 1e9


_LIBRARY = ctypes.PyDLL(None)


@contextlib.contextmanager
def _own_time() -> Iterator[_OwnTime]:
    """What is counted of the thread that calls."""
    file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    try:
        yield _OwnTime(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """A thread for each core that computes in C, without the interpreter lock."""
    ended = threading.Event()
    block = bytes(_BLOCK)

    def compute() -> None:
        while not ended.is_set():
            zlib.crc32(block)

    threads = [threading.Thread(target=compute) for _ in range(os.cpu_count() or 1)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def watch(seconds: float) -> list[Tick]:
    """Ticks while this thread does nothing."""
    with Ticker() as ticker:
        time.sleep(seconds)
    return ticker.ticks


def summary(ticks: list[Tick]) -> dict[str, float]:
    """Milliseconds of lateness, and of that the lock's; the share of time that these are."""
    if not ticks:
        raise SystemExit("it was over within a tick: there is nothing to tell")
    late = [tick.late * 1000 for tick in ticks]
    stalled = [tick.stalled * 1000 for tick in ticks]
    spent = ticks[-1].end - ticks[0].begin
    return {
        "ticks": len(ticks),
        **{f"late_{name}": value for name, value in _spread(late).items()},
        **{f"stall_{name}": value for name, value in _spread(stalled).items()},
        "stalled_share": sum(stalled) / 1000 / spent,
    }


def _spread(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    values = sorted(values)
    last = values[min(len(values) - 1, len(values) * 99 // 100)]
    return {"p50": statistics.median(values), "p99": last, "max": values[-1]}
