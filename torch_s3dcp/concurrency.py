"""How many requests to have in flight: more while that brings more, fewer when told. Pure."""

from __future__ import annotations

import math

# More requests must bring this much more, else they were too many.
_WORTHWHILE = 1.1
_GROWTH = 1.5
# Rounds after which a limit that had settled is tried again: networks change.
_SETTLED_ROUNDS = 16


class ConcurrencyLimit:
    """Climbs while throughput does, and halves when the server refuses or breaks requests.

    A round is as many requests as may be in flight. A round that brings clearly more bytes per
    second than the best before lets the limit grow by half; one that does not takes the last
    growth back, and the limit rests for a while.

    Args:
        start: Requests in flight to begin with.
        most: Requests in flight at most.
    """

    def __init__(self, start: int, most: int) -> None:
        self.limit = max(1, min(start, most))
        #: The highest that the limit has been.
        self.highest = self.limit
        self._most = most
        self._before = self.limit
        self._best = 0.0
        self._resting = 0
        self._excused = 0
        self._ended = 0
        self._bytes = 0
        self._begun: float | None = None

    def begin(self, now: float) -> None:
        """A request has been sent, at ``now`` seconds of any clock."""
        if self._begun is None:
            self._begun = now

    def end(self, received: int, retries: int, now: float) -> None:
        """A request has ended that brought ``received`` bytes, after ``retries`` failures."""
        excused, self._excused = self._excused > 0, max(0, self._excused - 1)
        if retries and not excused:
            # Slower at once; but what is in flight already failed for the same reason. What was
            # best before is no measure for what comes.
            self._excused = self.limit - 1
            self.limit = self._before = max(1, self.limit // 2)
            self._best = 0.0
            self._resting = _SETTLED_ROUNDS
            self._restart(now)
            return
        self._ended += 1
        self._bytes += received
        if self._ended >= self.limit and self._begun is not None and now > self._begun:
            self._judge(self._bytes / (now - self._begun))
            self._restart(now)

    def _judge(self, rate: float) -> None:
        if self._resting:
            self._resting -= 1
            if not self._resting:
                self._best = 0.0
            return
        if rate >= self._best * _WORTHWHILE:
            self._best = rate
            self._before = self.limit
            self.limit = min(self._most, math.ceil(self.limit * _GROWTH))
            self.highest = max(self.highest, self.limit)
        else:
            self.limit = self._before
            self._resting = _SETTLED_ROUNDS

    def _restart(self, now: float) -> None:
        self._begun, self._ended, self._bytes = now, 0, 0
