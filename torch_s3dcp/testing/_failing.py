"""A transport that lets chosen requests fail, or damages what they bring."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..exceptions import ConfigurationError, EndpointError
from ..transports.contract import RawBody, Transport
from ._wrapper import OPERATIONS, Call, TransportWrapper


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and at which of the requests that match.

    Args:
        operation: Name of the transport's method, such as ``"get"``.
        error: Raised instead of the request.
        body: What happens to a ``get``'s body at byte ``after``: ``"truncate"`` ends it,
            ``"cut"`` breaks the connection, ``"flip"`` turns that one byte's bits round.
        after: Bytes of the body that come unharmed.
        nth: The first request to fail, counted from 1.
        times: How many in a row fail; None: all from ``nth`` on.
        key: Only requests for this key.

    Raises:
        ConfigurationError: Unknown operation, or not exactly one of ``error`` and ``body``.
    """

    operation: str
    error: BaseException | None = None
    body: Literal["truncate", "cut", "flip"] | None = None
    after: int = 0
    nth: int = 1
    times: int | None = 1
    key: str | None = None

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise ConfigurationError(f"operation must be one of {', '.join(OPERATIONS)}")
        if (self.error is None) == (self.body is None):
            raise ConfigurationError("a fault needs either an error or a body")
        if self.body is not None and self.operation != "get":
            raise ConfigurationError("only a get has a body that can be damaged")

    def matches(self, call: Call) -> bool:
        """Whether it is a request of the kind that is counted."""
        return call.operation == self.operation and self.key in (None, call.key)

    def strikes(self, number: int) -> bool:
        """Whether the ``number``-th matching request fails, counted from 1."""
        last = None if self.times is None else self.nth + self.times
        return number >= self.nth and (last is None or number < last)


@dataclass
class _Rule:
    fault: Fault
    seen: int = 0
    struck: int = 0
    damaged: list[Call] = field(default_factory=list)


class FaultTransport(TransportWrapper):
    """Lets chosen requests fail.

    Args:
        transport: Does the requests.
        faults: What goes wrong; each counts its own requests.
    """

    def __init__(self, transport: Transport, faults: Sequence[Fault]) -> None:
        super().__init__(transport)
        self._lock = threading.Lock()
        self._rules = [_Rule(fault) for fault in faults]

    @property
    def struck(self) -> int:
        """How many faults have happened. A test that expects one should look."""
        with self._lock:
            return sum(rule.struck for rule in self._rules)

    def before(self, call: Call) -> None:
        error = None
        with self._lock:
            for rule in self._rules:
                if not rule.fault.matches(call):
                    continue
                rule.seen += 1
                if rule.fault.strikes(rule.seen):
                    rule.struck += 1
                    error = error or rule.fault.error
                    if rule.fault.body is not None:
                        rule.damaged.append(call)
        if error is not None:
            raise error

    def body(self, call: Call, raw: RawBody) -> RawBody:
        with self._lock:
            faults = [rule.fault for rule in self._rules if any(c is call for c in rule.damaged)]
        for fault in faults:
            raw = _DamagedBody(raw, fault)
        return raw


class _DamagedBody:
    def __init__(self, raw: RawBody, fault: Fault) -> None:
        self._raw = raw
        self._fault = fault
        self._position = 0

    def readinto(self, buffer: memoryview, /) -> int:
        left = self._fault.after - self._position
        if self._fault.body != "flip":
            buffer = buffer[: max(0, left)]
        if not len(buffer):
            if self._fault.body == "cut":
                raise EndpointError("the connection broke: a fault that was asked for")
            return 0
        count = self._raw.readinto(buffer) or 0
        if self._fault.body == "flip" and 0 <= left < count:
            buffer[left] ^= 0xFF
        self._position += count
        return count

    def close(self) -> None:
        self._raw.close()
