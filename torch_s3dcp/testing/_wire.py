"""HTTP/1.1 over a socket of an event loop: heads, and bodies in pieces that are not kept.

Sockets instead of asyncio's streams: one buffer per connection is received into and sent from.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

_BUFFER = 256 * 1024
_LARGEST_HEAD = 64 * 1024
# They are about one connection, not about the message.
_HOP = frozenset({"connection", "keep-alive", "proxy-connection", "expect"})


class WireError(ConnectionError):
    """The other side sent something that is not HTTP, or left too early."""


@dataclass
class Head:
    """First line and headers of a message, as they came."""

    line: str
    headers: list[tuple[str, str]] = field(default_factory=list)

    def get(self, name: str, default: str = "") -> str:
        """A header, by its name in lower case."""
        return next((text for known, text in self.headers if known.lower() == name), default)

    def lower(self) -> dict[str, str]:
        """All headers, by their names in lower case."""
        return {name.lower(): text for name, text in self.headers}

    def replace(self, **changes: str | None) -> Head:
        """Other values for some headers; ``content_length=None`` drops one."""
        names = {name.replace("_", "-"): text for name, text in changes.items()}
        kept = [(name, text) for name, text in self.headers if name.lower() not in names]
        new = [(name.title(), text) for name, text in names.items() if text is not None]
        return Head(self.line, kept + new)

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.line.split(" ", 2)[1])

    @property
    def length(self) -> int | None:
        """Size of the body; None if the head does not say it."""
        text = self.get("content-length")
        return int(text) if text.isdecimal() else None

    @property
    def chunked(self) -> bool:
        """Whether the body says its length piece by piece."""
        return "chunked" in self.get("transfer-encoding").lower()

    @property
    def closes(self) -> bool:
        """Whether the connection ends with the message."""
        said = self.get("connection").lower()
        return "close" in said or ("HTTP/1.0" in self.line and "keep-alive" not in said)

    def encode(self) -> bytes:
        """As it is passed on."""
        lines = [f"{name}: {text}" for name, text in self.headers if name.lower() not in _HOP]
        return "\r\n".join([self.line, *lines, "", ""]).encode("latin-1")


def _parse(data: bytes) -> Head:
    first, *lines = data.decode("latin-1").split("\r\n")
    headers = []
    for line in lines:
        name, colon, text = line.partition(":")
        if not colon:
            raise WireError(f"not a header: {line[:80]!r}")
        headers.append((name, text.strip()))
    if first.count(" ") < 1 or "HTTP/" not in first:
        raise WireError(f"not HTTP: {first[:80]!r}")
    return Head(first, headers)


class Wire:
    """One connection. What its methods give out is valid until the next call."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._view = memoryview(bytearray(_BUFFER))
        self._start = self._end = 0

    @classmethod
    async def connect(cls, address: tuple[str, int]) -> Wire:
        """A new connection; raises OSError."""
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    @property
    def stale(self) -> bool:
        """Whether the other side has closed, or said something unasked."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it."""
        await self._loop.sock_sendall(self._sock, data)

    async def head(self) -> Head | None:
        """The next message's head; None if the other side has ended in between."""
        while True:
            found = bytes(self._view[self._start : self._end]).find(b"\r\n\r\n")
            if found >= 0:
                data = bytes(self._view[self._start : self._start + found])
                self._start += found + 4
                return _parse(data)
            if self._end - self._start > _LARGEST_HEAD:
                raise WireError("a head that does not end")
            empty = self._start == self._end
            if not await self._fill():
                if empty:
                    return None
                raise WireError("the connection ended within a head")

    async def body(self, head: Head, *, bare: bool = False) -> AsyncIterator[memoryview]:
        """A message's body in pieces.

        Args:
            bare: There is none, whatever the head says: the answer of a HEAD.
        """
        answer = head.line.startswith("HTTP/")
        if bare or (answer and (head.status in (204, 304) or head.status < 200)):
            return
        if head.chunked:
            async for piece in self._chunks():
                yield piece
        elif head.length is not None:
            async for piece in self._exactly(head.length):
                yield piece
        elif answer:
            while self._start < self._end or await self._fill():
                yield self._take(self._end - self._start)

    def _take(self, most: int) -> memoryview:
        piece = self._view[self._start : min(self._end, self._start + most)]
        self._start += len(piece)
        return piece

    async def _exactly(self, length: int) -> AsyncIterator[memoryview]:
        while length:
            if self._start == self._end and not await self._fill():
                raise WireError(f"the connection ended {length} bytes before the body's end")
            piece = self._take(length)
            length -= len(piece)
            yield piece

    async def _chunks(self) -> AsyncIterator[memoryview]:
        while size := int((await self._text()).partition(b";")[0], 16):
            async for piece in self._exactly(size):
                yield piece
            await self._text()
        while await self._text():
            pass  # trailers

    async def _text(self) -> bytes:
        line = bytearray()
        while not line.endswith(b"\r\n"):
            async for piece in self._exactly(1):
                line += piece
        return bytes(line[:-2])

    async def _fill(self) -> bool:
        """Receive something behind what is there; False at the end."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._view):
            rest = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, len(rest)
            self._view[: len(rest)] = rest
        count = await self._loop.sock_recv_into(self._sock, self._view[self._end :])
        self._end += count
        return count > 0

    async def drain(self) -> None:
        """Take everything until the other side leaves."""
        while await self._loop.sock_recv_into(self._sock, self._view):
            pass

    async def pause(self, seconds: float) -> None:
        """Wait; raises WireError if the other side leaves meanwhile."""
        left = self._loop.create_future()

        def look() -> None:
            # Whatever has come stays readable: without this the loop would ask all the time.
            self._loop.remove_reader(self._sock)
            try:
                gone = not self._sock.recv(1, socket.MSG_PEEK)
            except OSError:
                gone = True
            if gone and not left.done():
                left.set_result(None)

        self._loop.add_reader(self._sock, look)
        try:
            done, _ = await asyncio.wait({left}, timeout=seconds)
        finally:
            self._loop.remove_reader(self._sock)
        if done:
            raise WireError("the client left")

    async def delivered(self, seconds: float = 2.0) -> None:
        """Wait until the other side's kernel has what was sent: RST would take it back."""
        deadline = self._loop.time() + seconds
        while self._loop.time() < deadline:
            (unsent,) = struct.unpack("i", fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4)))
            if not unsent:
                return
            await asyncio.sleep(0.001)

    def close(self) -> None:
        """End with FIN."""
        self._sock.close()

    def reset(self) -> None:
        """End with RST."""
        if self._sock.fileno() >= 0:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._sock.close()
