"""A transport that remembers requests."""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..transports.contract import RawBody, Transport
from ._wrapper import Call, TransportWrapper

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True)
class Request:
    """A :class:`Call` as it was when somebody asked; the fields are the same."""

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
