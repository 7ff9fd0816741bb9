"""How long a connection may bring nothing, or too little, before the request is made again.

A request that makes too little progress is closed and continued on a new connection. It is
replaced rather than raced: its bytes land in the caller's memory, and two connections must
never write to the same place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .effort import Effort

#: Seconds that a server may take at first before it answers what costs it little.
QUICK = 2.0
#: The same for what it works on, and what can be sent again without harm.
WORKING = 10.0
#: Seconds without a byte sent, at first: a server that works takes none for a while.
_SENDING = WORKING
#: Patience is never less than so many times the longest wait of late. Where that is known,
#: a server that works is not given the time above, but this; a part once more does no harm.
_LATENCIES = 4.0
_WORKING_LATENCIES = 3.0
# Seconds after which patience is asked anew: other requests may have been answered meanwhile.
_LOOK = 2.0
# How fast the longest wait is forgotten, with each answer.
_FORGOTTEN = 0.98
#: Requests that may be given up in this way: so many, and this share of all.
FREE, SHARE = 8, 0.05
#: Seconds of waiting over which a rate is measured.
WINDOW = 2.0
#: Bytes per second below which a body is too slow: this, or a share of what is usual.
FLOOR, OF_USUAL = 100_000, 0.05
# How much a body counts for what is usual; smaller ones than this say nothing.
_NEWEST = 0.2
_TELLING = 256 * 1024


class Patience:
    """What the requests of one client have in common. For any number of threads.

    Args:
        longest: Seconds to wait when all is said and done.
    """

    def __init__(self, longest: float) -> None:
        self.longest = longest
        self._latency = 0.0
        self._working = 0.0
        self._usual = 0.0
        self._requests = 0
        self._given_up = 0
        self._lock = threading.Lock()

    @property
    def spent(self) -> bool:
        """Whether no more requests may be given up: the server or the network is slow, that is."""
        return self._given_up >= FREE + SHARE * self._requests

    def begin(self) -> None:
        """A request begins."""
        with self._lock:
            self._requests += 1

    def wait(self, first: float, abandoned: int) -> float:
        """Seconds to wait for a byte, of a request that was given up so many times already."""
        if self.spent:
            return self.longest
        seconds = max(first, _LATENCIES * self._latency)
        if first == WORKING and self._working:
            seconds = max(QUICK, _WORKING_LATENCIES * self._working)
        return min(self.longest, seconds * 2.0 ** min(abandoned, 16))

    def least_rate(self, abandoned: int) -> float:
        """Bytes per second that a body must bring."""
        if self.spent:
            return 0.0
        # What is usual may be much; then a slow connection is worth a new one. But not twice.
        usual = 0.0 if abandoned else OF_USUAL * self._usual
        return max(FLOOR, usual) / 2.0 ** min(abandoned, 16)

    def spend(self) -> bool:
        """Give up one request; False where too many were already."""
        with self._lock:
            if self.spent:
                return False
            self._given_up += 1
            return True

    def answered(self, first: float, seconds: float) -> None:
        """An answer began after so long, that was waited for so long at first."""
        # No lock: a value that gets lost now and then does no harm.
        if first <= QUICK:
            self._latency = max(seconds, self._latency * _FORGOTTEN)
        elif first == WORKING:
            self._working = max(seconds, self._working * _FORGOTTEN)

    def finished(self, count: int, seconds: float) -> None:
        """A body of so many bytes came to its end."""
        if count >= _TELLING and seconds > 0:
            rate = count / seconds
            self._usual = rate if not self._usual else self._usual + _NEWEST * (rate - self._usual)


class Guard:
    """Watches over one request on one connection.

    Args:
        patience: That of the client.
        effort: What the request has cost so far.
        set_timeout: Sets for how long the connection waits.
        clock: Seconds of any clock.
    """

    def __init__(
        self,
        patience: Patience,
        effort: Effort,
        set_timeout: Callable[[float], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience = patience
        self._effort = effort
        self._set_timeout = set_timeout
        self._clock = clock
        self._first = _SENDING
        self._timeout = 0.0
        self._waited = 0.0
        self._begun = 0.0
        self._is_body = self._at_work = False
        self._bytes = self._received = 0
        self._window = 0.0
        self._slow = False

    def send(self) -> None:
        """A request is being sent."""
        self._patience.begin()
        self._effort.begin_sending()
        self._expect(_SENDING)

    def sent(self, count: int) -> None:
        """So many bytes of it were taken.

        Raises:
            TimeoutError: Too few, in all the time that there was.
        """
        self._effort.sent(count)
        self._came()
        if self._effort.left <= 0:
            raise TimeoutError("the connection takes too few bytes")

    def answer(self, first: float | None) -> None:
        """It is sent. ``first``: how long to wait at first; None: as long as it takes."""
        self._begun = self._clock()
        self._at_work = first is None
        self._expect(self._patience.longest if first is None else first)

    def body(self) -> None:
        """The head of the answer is there, in good time."""
        self._patience.answered(self._first, self._clock() - self._begun)
        self._is_body = True
        self._begun = self._clock()
        # S3 begins its answer to what it works on at once, and sends blanks until it is done.
        self._expect(self._first)

    def received(self, count: int, seconds: float) -> None:
        """So many bytes have come, after so long.

        A connection that is too slow is given up by the next :meth:`check`: these bytes count.
        """
        self._came()
        if not self._is_body:
            self._slow = self._effort.left <= 0
            return
        self._effort.waited(seconds)
        self._effort.moved(count)
        self._received += count
        self._bytes += count
        self._window += seconds
        if self._window < WINDOW:
            return
        rate = self._bytes / self._window
        late = self._effort.left <= 0
        least = 0.0 if self._at_work else self._patience.least_rate(self._effort.abandoned)
        self._slow = late or (rate < least and self._patience.spend())
        self._bytes, self._window = 0, 0.0

    def check(self) -> None:
        """Before more is received.

        Raises:
            TimeoutError: The connection is too slow.
        """
        if self._slow:
            raise TimeoutError("the connection brings too few bytes")

    def stalled(self) -> None:
        """Nothing came for as long as the connection waits.

        Raises:
            TimeoutError: That was long enough. Else it is waited for longer.
        """
        self._waited += self._timeout
        if self._is_body:
            self._effort.waited(self._timeout)
        rest = min(self._patience.longest - self._waited, self._effort.left)
        more = self._patience.wait(self._first, self._effort.abandoned) - self._waited
        if rest > 0 and more > 0:
            self._wait_for(min(rest, more, _LOOK))
        elif rest <= 0 or self._patience.spend():
            raise TimeoutError(f"nothing came for {self._waited:.1f} s")
        else:
            self._wait_for(rest)

    def finished(self) -> None:
        """The body has come to its end."""
        self._patience.finished(self._received, self._clock() - self._begun)

    def _expect(self, first: float) -> None:
        self._first = first
        self._waited = 0.0
        enough = self._patience.wait(first, self._effort.abandoned)
        self._wait_for(min(enough, self._effort.left, _LOOK))

    def _came(self) -> None:
        if self._waited:
            self._expect(self._first)

    def _wait_for(self, seconds: float) -> None:
        seconds = max(0.01, seconds)
        if seconds != self._timeout:
            self._timeout = seconds
            self._set_timeout(seconds)
