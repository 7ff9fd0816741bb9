"""Transports around a transport: count requests, delay them, make them fail.

Each delegates everything and can be put around any other, in any order::

    transport = RecordingTransport(LatencyTransport(BotoTransport(), 0.02))
"""

from __future__ import annotations

import time

from ..transports.contract import Transport
from ._failing import Fault, FaultTransport
from ._recording import RecordingTransport, Request, Summary
from ._wrapper import OPERATIONS, Call, TransportWrapper

__all__ = [
    "OPERATIONS",
    "Call",
    "Fault",
    "FaultTransport",
    "LatencyTransport",
    "RecordingTransport",
    "Request",
    "Summary",
    "TransportWrapper",
]


class LatencyTransport(TransportWrapper):
    """Waits before each request.

    Args:
        transport: Does the requests.
        seconds: How long to wait.
    """

    def __init__(self, transport: Transport, seconds: float) -> None:
        super().__init__(transport)
        self.seconds = seconds

    def before(self, call: Call) -> None:
        time.sleep(self.seconds)
