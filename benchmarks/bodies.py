"""The body of a request, however it is wrapped: a length, HTTP's chunks, AWS's chunks in either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from .listening import Incoming


class Body(Protocol):
    """The bytes of a body, in order."""

    def receive(self, memory: memoryview) -> int:
        """Some bytes, as many as the memory takes at most; 0: there are no more."""


class _Counted:
    """So many bytes."""

    def __init__(self, source: Incoming, count: int) -> None:
        self._source = source
        self._left = count

    def receive(self, memory: memoryview) -> int:
        if not self._left:
            return 0
        count = self._source.receive(memory[: self._left])
        self._left -= count
        return count


class _Lines:
    """The lines between AWS's chunks, which are few: byte by byte out of another body."""

    def __init__(self, source: Body) -> None:
        self._source = source

    def line(self) -> bytes:
        line, one = bytearray(), bytearray(1)
        while not line.endswith(b"\r\n"):
            if not self._source.receive(memoryview(one)):
                raise ConnectionError("the body ended within a line")
            line += one
        return bytes(line[:-2])

    def receive(self, memory: memoryview) -> int:
        count = self._source.receive(memory)
        if not count:
            raise ConnectionError("the body ended within a chunk")
        return count


class _Chunked:
    """Chunks, each behind a line with its size; after the last come lines up to an empty one."""

    def __init__(self, source: Incoming | _Lines) -> None:
        self._source = source
        self._left = 0
        self._ended = False

    def receive(self, memory: memoryview) -> int:
        if not self._left and not self._ended:
            self._left = int(self._source.line().partition(b";")[0], 16)
            if not self._left:
                self._ended = True
                while self._source.line():
                    pass
        if self._ended:
            return 0
        count = self._source.receive(memory[: self._left])
        self._left -= count
        if not self._left:
            self._source.line()
        return count


class _Unwrapped:
    """What is in AWS's chunks of a body; nothing of the body stays behind."""

    def __init__(self, outer: Body) -> None:
        self._outer = outer
        self._inner = _Chunked(_Lines(outer))

    def receive(self, memory: memoryview) -> int:
        count = self._inner.receive(memory)
        while not count and self._outer.receive(memory):
            pass
        return count


def body_of(headers: Mapping[str, str], incoming: Incoming) -> Body:
    """The body that comes behind a head with these headers, whose names are in lower case."""
    body: Body
    if "chunked" in headers.get("transfer-encoding", ""):
        body = _Chunked(incoming)
    else:
        body = _Counted(incoming, int(headers.get("content-length", 0)))
    streaming = headers.get("x-amz-content-sha256", "").startswith("STREAMING-")
    return _Unwrapped(body) if streaming else body
