"""The proxy of `torch_s3dcp.testing`, with one function that judges all requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from support.dcp import Place

from torch_s3dcp.testing import FaultProxy as WireProxy
from torch_s3dcp.testing import S3Request, faults


class Fault(Enum):
    """What becomes of a request."""

    DENY = faults.Reply(403, "AccessDenied")
    FAIL = faults.Reply(500, "InternalError")
    CUT = faults.Reset("unseen")
    LOSE = faults.Reset("answer")
    LATE = faults.Late()


@dataclass(frozen=True)
class Request:
    """One HTTP request: the same one again is equal to it."""

    operation: str
    key: str
    part: int | None = None


#: What becomes of a request; None: it is passed on.
Judge = Callable[[Request], Fault | None]


class FaultProxy(WireProxy):
    """One function judges all requests.

    ``judge`` may be set at any time. ``requests`` are all that came, in the order of their arrival.
    """

    def __init__(self, endpoint_url: str) -> None:
        super().__init__(endpoint_url)
        self.judge: Judge = lambda request: None
        self.requests: list[Request] = []
        self.add(self._admit)

    def operations(self) -> list[str]:
        """The operations of all requests, in the order of their arrival."""
        return [request.operation for request in self.requests]

    def before(self, place: Place, **settings: Any) -> Place:
        """A place of the server, reached through here; ``settings`` of the client change."""
        direct: Any = place.transport
        config = direct.config.replace(endpoint_url=self.endpoint_url, **settings)
        return place.over(dataclasses.replace(direct, config=config))

    def _admit(self, seen: S3Request) -> faults.WireFault | None:
        request = Request(seen.operation, seen.key, seen.part)
        self.requests.append(request)
        fault = self.judge(request)
        return fault.value if fault else None
