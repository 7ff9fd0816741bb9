"""A stream is closed by another thread, at every point of its going on over a new connection."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch_s3dcp import pinned
from torch_s3dcp.exceptions import EndpointError, S3DCPError
from torch_s3dcp.transports import ObjectBody, ObjectInfo
from torch_s3dcp.transports.retries import Limits

SIZE = 100


class Body:
    """The first one breaks; what the others bring, ends only when they are closed."""

    def __init__(self, *, breaks: bool) -> None:
        self.breaks = breaks
        self.closed = False

    def readinto(self, buffer: memoryview) -> int:
        if self.breaks or self.closed:
            raise EndpointError("it broke")
        buffer[:1] = b"x"
        return 1

    def close(self) -> None:
        self.closed = True


class Point:
    """Calls something, once, before line number ``number`` that a thread runs in a module."""

    def __init__(self, module: Any, number: int, act: Callable[[], None]) -> None:
        self.file, self.left, self.act = module.__file__, number, act
        self.reached = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != self.file:
            return None
        if event == "line":
            self.left -= 1
            if self.left < 0 and not self.reached:
                self.reached = True
                self.act()
        return self


def close_at(number: int) -> tuple[bool, list[bool]]:
    """Close a stream there; whether it came to that, and which of its bodies are closed."""
    bodies: list[Body] = []
    handed: list[ObjectBody] = []  # what is let go of closes by itself

    def open_range(start: int, end: int | None) -> ObjectBody:
        bodies.append(Body(breaks=not bodies))
        handed.append(ObjectBody(bodies[-1], ObjectInfo("bucket", "key", SIZE), start, SIZE))
        return handed[-1]

    stream = pinned.ResumingStream(open_range, 0, SIZE, Limits(5, pause_factor=0))
    closer = threading.Thread(target=stream.close)

    def close() -> None:
        closer.start()
        # It may have to wait for the thread that stands here.
        closer.join(0.2)

    point = Point(pinned, number, close)
    before = sys.gettrace()
    sys.settrace(point)
    try:
        stream.readinto(memoryview(bytearray(1)))
    except (S3DCPError, ValueError):
        pass
    finally:
        sys.settrace(before)
    if point.reached:
        closer.join(10)
        assert not closer.is_alive()
    return point.reached, [body.closed for body in bodies]


def test_no_body_stays_open() -> None:
    number = 0
    begun = 0
    while True:
        reached, closed = close_at(number)
        if not reached:
            break
        assert all(closed), f"closed at line {number}"
        begun += len(closed) > 1
        number += 1
    assert begun, "some were closed while a new body was being opened"
    assert number > begun, "others before it"
