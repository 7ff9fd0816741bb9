"""Transports around a transport: count requests, delay them, make them fail.

Each delegates everything and can be put around any other, in any order::

    transport = RecordingTransport(LatencyTransport(BotoTransport(), 0.02))
"""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..exceptions import ConfigurationError, EndpointError
from ..transports.contract import (
    Composes,
    CopiedRange,
    ListPage,
    ObjectBody,
    ObjectInfo,
    RawBody,
    Reconnects,
    Transport,
    Uploaded,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

OPERATIONS = ("head", "get", "put", "upload", "compose", "copy", "delete", "list")


@dataclass(frozen=True)
class Request:
    """One call of a transport's method, or one page of a listing.

    ``key`` is the prefix of a listing, and None where several objects are deleted. ``start``
    and ``end`` are what was asked for. ``bytes`` is what has been moved so far: received
    from a ``get``'s body, sent by a ``put``, read from an ``upload``'s stream.
    """

    operation: str
    bucket: str
    key: str | None
    start: int | None = None
    end: int | None = None
    bytes: int = 0


@dataclass(frozen=True)
class Summary:
    """Requests by operation, and bytes in each direction."""

    requests: Mapping[str, int]
    received: int
    sent: int


@dataclass
class Call:
    """A :class:`Request` while it goes on."""

    operation: str
    bucket: str
    key: str | None
    start: int | None = None
    end: int | None = None
    bytes: int = 0


class TransportWrapper:
    """Delegates every request; a subclass overrides what it wants to see or to change.

    Args:
        transport: Does the requests.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def before(self, call: Call) -> None:
        """Called before each request. What it raises is raised instead of the request."""

    def body(self, call: Call, raw: RawBody) -> RawBody:
        """The body to hand out instead of ``raw``."""
        return raw

    def stream(self, call: Call, stream: io.RawIOBase) -> io.RawIOBase:
        """The stream to upload instead of ``stream``."""
        return stream

    def head(self, bucket: str, key: str) -> ObjectInfo:
        self._begin("head", bucket, key)
        return self.transport.head(bucket, key)

    def get(
        self,
        bucket: str,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        if_match: str | None = None,
    ) -> ObjectBody:
        call = self._begin("get", bucket, key, start, end)
        body = self.transport.get(bucket, key, start, end, if_match=if_match)
        return ObjectBody(self.body(call, body), body.info, body.start, body.end)

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        self._begin("put", bucket, key, size=len(data))
        return self.transport.put(
            bucket, key, data, if_match=if_match, if_none_match=if_none_match, metadata=metadata
        )

    def upload(
        self,
        bucket: str,
        key: str,
        stream: io.RawIOBase,
        *,
        expected_size: int | None,
        storage_class: str | None = None,
    ) -> Uploaded:
        call = self._begin("upload", bucket, key)
        return self.transport.upload(
            bucket,
            key,
            self.stream(call, stream),
            expected_size=expected_size,
            storage_class=storage_class,
        )

    def reconnect(self) -> None:
        if isinstance(self.transport, Reconnects):
            self.transport.reconnect()

    def check_compose(self) -> None:
        self._composing().check_compose()

    def compose(
        self,
        bucket: str,
        key: str,
        copied: Sequence[CopiedRange],
        stream: io.RawIOBase,
        *,
        expected_size: int,
    ) -> Uploaded:
        call = self._begin("compose", bucket, key)
        stream = self.stream(call, stream)
        return self._composing().compose(bucket, key, copied, stream, expected_size=expected_size)

    def copy(self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str) -> None:
        self._begin("copy", src_bucket, src_key)
        self.transport.copy(src_bucket, src_key, dst_bucket, dst_key)

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        names = list(keys)
        self._begin("delete", bucket, names[0] if len(names) == 1 else None)
        self.transport.delete(bucket, names)

    def list(
        self,
        bucket: str,
        prefix: str = "",
        *,
        delimiter: str = "",
        page_size: int = 1000,
    ) -> Iterator[ListPage]:
        pages = self.transport.list(bucket, prefix, delimiter=delimiter, page_size=page_size)
        self._begin("list", bucket, prefix)
        for number, page in enumerate(pages):
            if number:
                self._begin("list", bucket, prefix)
            yield page

    def _composing(self) -> Composes:
        if not isinstance(self.transport, Composes):
            raise ConfigurationError(f"{type(self.transport).__name__} cannot compose objects")
        return self.transport

    def _begin(
        self,
        operation: str,
        bucket: str,
        key: str | None,
        start: int | None = None,
        end: int | None = None,
        size: int = 0,
    ) -> Call:
        call = Call(operation, bucket, key, start, end, size)
        self.before(call)
        return call


class RecordingTransport(TransportWrapper):
    """Remembers every request in the order in which they began, failed ones included.

    May be pickled where the transport inside may; the copy starts with no requests.
    """

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._lock = threading.Lock()
        self._calls: list[Call] = []
        self._bodies: list[_CountedBody] = []

    @property
    def requests(self) -> tuple[Request, ...]:
        """All requests so far."""
        with self._lock:
            return tuple(Request(**vars(call)) for call in self._calls)

    def of(self, operation: str) -> tuple[Request, ...]:
        """The requests of one operation."""
        return tuple(request for request in self.requests if request.operation == operation)

    def summary(self) -> Summary:
        """Counts so far. Operations that were not used are not in ``requests``."""
        requests = self.requests
        received = sum(r.bytes for r in requests if r.operation == "get")
        sent = sum(r.bytes for r in requests if r.operation in ("put", "upload", "compose"))
        return Summary(dict(Counter(r.operation for r in requests)), received, sent)

    def clear(self) -> None:
        """Forget the requests so far."""
        with self._lock:
            self._calls = []
            self._bodies = [body for body in self._bodies if not body.closed]

    def before(self, call: Call) -> None:
        with self._lock:
            self._calls.append(call)

    @property
    def open_bodies(self) -> int:
        """Bodies that were handed out and not closed: each may hold a connection."""
        with self._lock:
            return sum(not body.closed for body in self._bodies)

    def body(self, call: Call, raw: RawBody) -> RawBody:
        body = _CountedBody(raw, call)
        with self._lock:
            self._bodies.append(body)
        return body

    def stream(self, call: Call, stream: io.RawIOBase) -> io.RawIOBase:
        return _CountedStream(stream, call)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.transport,)


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


class _CountedBody:
    def __init__(self, raw: RawBody, call: Call) -> None:
        self._raw = raw
        self._call = call
        self.closed = False

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._raw.readinto(buffer) or 0
        self._call.bytes += count
        return count

    def close(self) -> None:
        self.closed = True
        self._raw.close()


class _CountedStream(io.RawIOBase):
    def __init__(self, stream: io.RawIOBase, call: Call) -> None:
        self._stream = stream
        self._call = call

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes | None:
        data = self._stream.read(size)
        self._call.bytes += len(data or b"")
        return data

    def readinto(self, buffer: Buffer, /) -> int | None:
        count: int | None = self._stream.readinto(buffer)
        self._call.bytes += count or 0
        return count


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
