"""What one request has cost so far, over all its tries.

The layers between who insists on a request and the connection that serves it (botocore, a
transport around a transport) have no place for such a thing in their calls. So the effort, and
what may end it early, belong to the thread that makes the request.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from ..exceptions import DeadlineError, S3DCPError
from .retries import TABLE, Kind, Limits, pause

_here = threading.local()


class Halt:
    """Ends the pauses and the waiting of all requests that heed it."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._ends: dict[object, Callable[[], None]] = {}

    def set(self) -> None:
        """End them."""
        with self._lock:
            self._event.set()
            # Under the lock: who leaves in between may have handed on already what ``end`` ends.
            for end in self._ends.values():
                end()

    def is_set(self) -> bool:
        """Whether it was."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait, no longer than until it is set; whether it is."""
        return self._event.wait(seconds)

    @contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """Have ``end`` called when it is set, or at once where it is already."""
        mark = object()
        with self._lock:
            self._ends[mark] = end
            late = self._event.is_set()
        if late:
            end()
        try:
            yield
        finally:
            with self._lock:
                del self._ends[mark]


class Effort:
    """Counts the failures of a request and the time that it takes; decides whether to go on.

    For one thread at a time. Time passes while a request is made, and while its body is waited
    for: not while nobody reads.

    Args:
        limits: How long to insist.
        halt: Ends it early; None: that of the thread, if any.
        clock: Seconds of any clock.
        choose: A random number between two.
        sleep: Waits.
    """

    def __init__(
        self,
        limits: Limits,
        halt: Halt | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        choose: Callable[[float, float], float] = random.uniform,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.limits = limits
        self.halt: Halt | None = halt or halt_here()
        #: Failures in a row, without a new byte in between.
        self.failures = 0
        #: Tries that were given up because they made too little progress.
        self.abandoned = 0
        self._clock = clock
        self._choose = choose
        self._sleep = self.halt.wait if self.halt else sleep
        self._of_kind: Counter[Kind] = Counter()
        self._moved = 0
        # In this try, and in the one that got furthest: what is sent again is no progress.
        self._sent = self._sent_most = 0
        self._spent = 0.0
        self._since: float | None = None

    @property
    def left(self) -> float:
        """Seconds that the request may still take."""
        running = 0.0 if self._since is None else self._clock() - self._since
        return self.limits.allowed(self._moved + self._sent_most) - self._spent - running

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time passes inside."""
        if self._since is not None:
            yield
            return
        self._since = self._clock()
        try:
            yield
        finally:
            self._spent += self._clock() - self._since
            self._since = None

    def waited(self, seconds: float) -> None:
        """So long was a body waited for; that counts once."""
        if self._since is None:
            self._spent += seconds

    def moved(self, count: int) -> None:
        """So many bytes were received."""
        self._moved += count

    def begin_sending(self) -> None:
        """The request is sent from its beginning."""
        self._sent = 0

    def sent(self, count: int) -> None:
        """So many bytes were sent."""
        self._sent += count
        self._sent_most = max(self._sent_most, self._sent)

    def progress(self, moved: int) -> None:
        """New bytes have arrived, ``moved`` in all."""
        self.failures = 0
        self._of_kind.clear()
        self._moved = max(self._moved, moved)

    def failed(
        self, kind: Kind | None, error: BaseException, attempts: int | None = None, tries: int = 1
    ) -> bool:
        """Note a failure, and pause where there will be another try.

        Args:
            kind: None: there will be none.
            error: What happened.
            attempts: Tries of whoever asks, where these are fewer than the limit.
            tries: How many failed, the last one with ``error``.

        Returns:
            Whether to try again.

        Raises:
            DeadlineError: Its time is over.
        """
        self.failures += tries
        if kind is None:
            return False
        self.abandoned += kind is Kind.STALLED
        self._of_kind[kind] += 1
        most = min(self.limits.attempts, attempts or self.limits.attempts)
        if self.failures >= most or self._of_kind[kind] >= (TABLE[kind].most or most):
            return False
        if self.halt is not None and self.halt.is_set():
            return False
        seconds = pause(kind, self.failures, self._choose) * self.limits.pause_factor
        if self.left <= seconds:
            raise self._late(error) from error
        if seconds:
            with self.working():
                self._sleep(seconds)
        return not (self.halt is not None and self.halt.is_set())

    def _late(self, error: BaseException) -> DeadlineError:
        where = error.context if isinstance(error, S3DCPError) else {}
        allowed = self.limits.allowed(self._moved + self._sent_most)
        return DeadlineError(
            f"given up: {allowed:.0f} s brought too little, of late "
            f"{_in_words(error)}; see whether the server is up and the network fast enough, or "
            "allow more with S3ClientConfig(give_up_after=...)",
            **{**where, "attempts": self.failures},
        )


def _in_words(error: BaseException) -> str:
    # Texts of foreign errors hold addresses, and these may hold a signature.
    return getattr(error, "message", None) or type(error).__name__


@contextmanager
def joined(limits: Limits) -> Iterator[Effort]:
    """The effort that the thread makes already, or else a new one."""
    found: Effort | None = getattr(_here, "effort", None)
    if found is not None:
        yield found
        return
    effort = Effort(limits)
    with making(effort):
        yield effort


@contextmanager
def making(effort: Effort) -> Iterator[None]:
    """Requests of this thread are part of an effort."""
    before = getattr(_here, "effort", None)
    _here.effort = effort
    try:
        yield
    finally:
        _here.effort = before


def current() -> Effort:
    """The thread's effort; where none is made, one of its own."""
    found: Effort | None = getattr(_here, "effort", None)
    return found if found is not None else Effort(Limits())


def halt_here() -> Halt | None:
    """What halts the efforts that begin in this thread."""
    found: Halt | None = getattr(_here, "halt", None)
    return found


@contextmanager
def halted_by(halt: Halt | None) -> Iterator[None]:
    """Efforts that begin in this thread heed a halt; None: none."""
    before = getattr(_here, "halt", None)
    _here.halt = halt
    try:
        yield
    finally:
        _here.halt = before


def halting(end: Callable[[], None] | None) -> AbstractContextManager[None]:
    """Have ``end`` called where what this thread does is halted; None: nothing."""
    halt = current().halt if end is not None else None
    return nullcontext() if end is None or halt is None else halt.ending(end)
