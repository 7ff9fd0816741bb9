"""One request on its way through a proxy, and what a fault makes of it."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator

from . import faults
from ._answers import Shape, as_if_asked, cut_short, error_answer, shape_of
from ._link import Link
from ._pieces import ServerGoneError, as_pieces, flipped, server_side, try_send
from ._signing import without_signature
from ._wire import Head, Wire
from .fault_rules import S3Request, Strike
from .request_log import LoggedRequest

_TOTAL = re.compile(r"/(\d+)$")


class Exchange:
    """Does one request. :meth:`run` says whether the client's connection goes on."""

    def __init__(
        self,
        client: Wire,
        link: Link,
        head: Head,
        request: S3Request,
        strike: Strike | None,
        entry: LoggedRequest,
    ) -> None:
        self._client = client
        self._link = link
        self._log = link.origin.log
        self._head = head
        self._request = request
        self._strike = strike or Strike(faults.WireFault(), 0.0)
        self._fault = self._strike.fault
        self._entry = entry
        self._kept = bytearray() if self._log.keep_bodies and entry.mutates else None

    async def run(self) -> bool:
        """Do it; raises OSError where the client left."""
        fault = self._fault
        if isinstance(fault, faults.Reset) and fault.when == "request":
            return self._reset()
        if isinstance(fault, faults.BlackHole):
            await self._client.drain()
            return False
        if "100-continue" in self._head.get("expect").lower():
            await self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not _reaches(fault):
            return await self._instead()
        try:
            return await self._through()
        except ServerGoneError as error:
            self._entry.problem = str(error)
            self._link.drop()
            return self._reset()

    # --- without the server -------------------------------------------------------------

    async def _instead(self) -> bool:
        fault, data = self._fault, await self._whole_body()
        if isinstance(fault, faults.Reply):
            return await self._reply(fault)
        if isinstance(fault, faults.Redirect):
            location = fault.location.replace("{target}", self._request.target)
            headers = (("Location", location),)
            return await self._reply(
                faults.Reply(fault.status, "TemporaryRedirect", headers=headers)
            )
        if isinstance(fault, faults.Garbage):
            await self._client.send(fault.data)
            return False
        if isinstance(fault, faults.Late):
            self._link.origin.held.append(lambda: self._send_late(data))
        return self._reset()

    async def _send_late(self, data: bytes) -> None:
        link = Link(self._link.origin)
        self._link = link
        try:
            head, server = await self._ask(self._head, as_pieces(data))
            await self._take_answer(head, server)
        except ServerGoneError as error:
            self._entry.problem = str(error)
        finally:
            link.drop()

    async def _reply(self, fault: faults.Reply) -> bool:
        self._entry.status = fault.status
        await self._client.send(error_answer(fault, self._request))
        return True

    def _reset(self) -> bool:
        self._client.reset()
        return False

    # --- through the server -------------------------------------------------------------

    async def _through(self) -> bool:
        fault, pieces, head = self._fault, self._client.body(self._head), self._head
        if isinstance(fault, faults.Delay):
            pieces = as_pieces(await self._whole_body())
            await self._client.pause(fault.seconds)
        if isinstance(fault, faults.WrongRange | faults.IgnoreRange):
            head = await self._other_range(fault)
        if isinstance(fault, faults.Reset) and fault.when == "upload":
            await self._send_some(pieces, self._strike.place(fault.after, self._request.size))
            return self._reset()
        answer, server = await self._ask(head, pieces)
        if isinstance(fault, faults.WrongRange) and fault.lie and answer.status == 206:
            answer = as_if_asked(answer, self._request)
        return await self._pass_back(answer, server)

    async def _ask(self, head: Head, pieces: AsyncIterator[memoryview]) -> tuple[Head, Wire]:
        """Send a request, return the answer's head. The client's errors are raised as they are."""
        server = await self._open()
        self._entry.server_begin = time.monotonic()
        listens = await try_send(server, head.encode())
        flip = self._place_of_flip("request", self._request.size)
        async for piece in pieces:
            data = flipped(piece, flip, self._entry.sent)
            self._entry.sent += len(piece)
            if self._kept is not None:
                self._kept += data
            framed = b"%x\r\n%b\r\n" % (len(data), bytes(data)) if head.chunked else data
            # A server that refuses early stops listening: the client is heard to its end.
            listens = listens and await try_send(server, framed)
        if head.chunked and listens:
            await try_send(server, b"0\r\n\r\n")
        if self._kept is not None:
            self._entry.body = bytes(self._kept)
        try:
            while (answer := await server.head()) is not None:
                if answer.status >= 200:
                    return answer, server
        except OSError as error:
            raise ServerGoneError(f"the server's connection broke: {error}") from error
        raise ServerGoneError("the server closed the connection without an answer")

    async def _open(self) -> Wire:
        try:
            return await self._link.wire()
        except OSError as error:
            raise ServerGoneError(f"the server cannot be reached: {error}") from error

    async def _send_some(self, pieces: AsyncIterator[memoryview], count: int) -> None:
        """The request's first bytes; the server's connection is then reset."""
        server = await self._open()
        self._entry.server_begin = time.monotonic()
        await try_send(server, self._head.encode())
        async for piece in pieces:
            part = piece[: count - self._entry.sent]
            await try_send(server, part)
            self._entry.sent += len(part)
            if self._entry.sent >= count:
                break
        await server.delivered()
        self._link.drop(reset=True)

    async def _whole_body(self) -> bytes:
        data = bytearray()
        async for piece in self._client.body(self._head):
            data += piece
        return bytes(data)

    async def _other_range(self, fault: faults.WireFault) -> Head:
        """The same GET for other bytes of the object, signed anew."""
        if isinstance(fault, faults.IgnoreRange):
            return self._signed(None)
        first, server = await self._ask(self._signed("bytes=0-0"), as_pieces(b""))
        async for _ in server.body(first):
            pass
        found, request = _TOTAL.search(first.get("content-range")), self._request
        if not found or request.start is None or not isinstance(fault, faults.WrongRange):
            return self._head
        total = int(found[1])
        end = min(total, request.end or total)
        places = [request.start + fault.shift, request.start - abs(fault.shift)]
        places = [min(max(0, place), total - (end - request.start)) for place in places]
        start = next((place for place in places if place != request.start), None)
        if start is None:
            self._entry.problem, self._entry.fault = "the object has no other bytes", None
            return self._head
        return self._signed(f"bytes={start}-{start + end - request.start - 1}")

    def _signed(self, byte_range: str | None) -> Head:
        keys = self._link.origin.keys
        assert keys is not None, "rules are checked when they are added"  # noqa: S101
        headers = {name: text for name, text in self._head.lower().items() if name != "range"}
        if byte_range:
            headers["range"] = byte_range
        method, target, version = self._head.line.split(" ")
        target = without_signature(target)
        signed = keys.sign(method, target, headers)
        return Head(f"{method} {target} {version}", list(signed.items()))

    # --- the way back -------------------------------------------------------------------

    async def _take_answer(self, head: Head, server: Wire) -> bytes:
        """All of an answer; noted."""
        data = bytearray()
        try:
            async for piece in server.body(head, bare=self._request.method == "HEAD"):
                data += piece
        except OSError as error:
            raise ServerGoneError(f"the server's answer broke off: {error}") from error
        self._log.answered(self._entry, head.status, bytes(data) if self._entry.mutates else b"")
        return bytes(data)

    async def _pass_back(self, head: Head, server: Wire) -> bool:
        fault, bare = self._fault, self._request.method == "HEAD"
        pieces = server.body(head, bare=bare)
        lost = isinstance(fault, faults.Reset) and fault.when == "answer"
        whole = self._entry.mutates or lost or isinstance(fault, faults.Reply)
        if whole or (not bare and head.length is None):
            data = await self._take_answer(head, server)
            pieces = as_pieces(data)
            if not bare and head.status != 204:
                head = head.replace(content_length=str(len(data)), transfer_encoding=None)
        else:
            self._log.answered(self._entry, head.status)
        if whole and head.closes:
            self._link.drop()
        if lost:
            return self._reset()
        if isinstance(fault, faults.Reply):
            return await self._reply(fault)
        return await self._send_answer(head, pieces, bare)

    async def _send_answer(self, head: Head, pieces: AsyncIterator[memoryview], bare: bool) -> bool:
        entry, length = self._entry, 0 if bare else head.length or 0
        shape = shape_of(self._strike, length)
        if shape.by:
            head, length = cut_short(head, shape.by), length - shape.by
        entry.flipped = shape.flip if entry.flipped is None else entry.flipped
        entry.status = head.status
        await self._client.send(head.encode())
        try:
            async for piece in server_side(pieces):
                await self._send_piece(piece[: length - entry.received], shape)
                if entry.received == shape.stop or (shape.by and entry.received == length):
                    break
        except ServerGoneError as error:
            entry.problem = str(error)
            self._link.drop()
            return self._reset()
        finally:
            entry.server_end = time.monotonic()
        if shape.stop is None and not shape.by:
            if head.closes:
                self._link.drop()
            return True
        self._link.drop()
        if shape.stop is not None and shape.reset:
            await self._client.delivered()
            return self._reset()
        return shape.stop is None

    async def _send_piece(self, piece: memoryview, shape: Shape) -> None:
        """Send a piece as the fault has it; ``entry.received`` counts what was sent."""
        entry, client = self._entry, self._client
        data = flipped(piece, shape.flip, entry.received)
        while data:
            if shape.pause and entry.received == shape.pause_at:
                await client.pause(shape.pause)
            ends = [place for place in (shape.pause_at, shape.stop) if place is not None]
            most = min(
                [place - entry.received for place in ends if place > entry.received],
                default=len(data),
            )
            if shape.stop == entry.received:
                return
            part = data[: min(most, shape.slice or most)]
            await client.send(part)
            entry.received += len(part)
            data = data[len(part) :]
            if shape.slice:
                await client.pause(len(part) / shape.rate)

    def _place_of_flip(self, body: str, length: int) -> int | None:
        fault = self._fault
        if not isinstance(fault, faults.FlipBit) or fault.body != body or not length:
            return None
        self._entry.flipped = self._strike.place(fault.bit, 8 * length)
        return self._entry.flipped


def _reaches(fault: faults.WireFault) -> bool:
    """Whether the server sees a request that is struck so."""
    if isinstance(fault, faults.Reply):
        return fault.acted
    if isinstance(fault, faults.Reset):
        return fault.when != "unseen"
    return not isinstance(fault, faults.Redirect | faults.Garbage | faults.Late)
