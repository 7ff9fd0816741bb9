"""What a request costs on the way to the server, learned from the requests of a load. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# Shorter bodies say more about latency than about bandwidth.
_TELLING_BYTES = 1024 * 1024
# What one connection is taken to carry before any was measured: less than S3 gives, so that
# little is read in vain.
ASSUMED_BYTES_PER_SECOND = 25e6
# How much the latest body counts in the average.
_WEIGHT = 0.2


@dataclass(frozen=True)
class LoadConditions:
    """What a plan of requests may depend on.

    Args:
        seconds_per_request: From sending a request to the first byte of its answer, at best.
        bytes_per_second: What one connection carries while the others are busy too.
        bytes_wanted: All that the load needs, over all objects.
        concurrency: Requests in flight to begin with.
    """

    seconds_per_request: float
    bytes_per_second: float
    bytes_wanted: int
    concurrency: int

    @property
    def worthwhile_gap(self) -> int:
        """Bytes that are read through in the time that a request needs to begin."""
        return int(self.seconds_per_request * self.bytes_per_second)


class LinkEstimate:
    """Latency and bandwidth of a connection, as far as they are known.

    The latency is the shortest seen: longer ones tell how busy this machine is, not what one
    request more costs. The bandwidth is a moving average.

    Args:
        seconds_per_request: What is known of the latency beforehand; 0: nothing.
    """

    def __init__(self, seconds_per_request: float) -> None:
        self.seconds_per_request = seconds_per_request
        self.bytes_per_second = ASSUMED_BYTES_PER_SECOND
        self._measured = False

    def learn(self, waited: float, received: int, took: float) -> None:
        """Take note of a request.

        Args:
            waited: Seconds until its answer began.
            received: Bytes of its body.
            took: Seconds from there to the body's end.
        """
        known = self.seconds_per_request
        self.seconds_per_request = min(known, waited) if known else waited
        if received < _TELLING_BYTES or took <= 0:
            return
        rate = received / took
        weight = _WEIGHT if self._measured else 1.0
        self.bytes_per_second += weight * (rate - self.bytes_per_second)
        self._measured = True

    def conditions(self, bytes_wanted: int, concurrency: int) -> LoadConditions:
        """What is known now."""
        return LoadConditions(
            self.seconds_per_request, self.bytes_per_second, bytes_wanted, concurrency
        )
