"""Pieces of bodies on their way through a proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ._wire import Wire, WireError


class ServerGoneError(Exception):
    """The server did not answer."""


def flipped(piece: memoryview, bit: int | None, before: int) -> memoryview:
    """The piece, which begins at byte ``before`` of its body; the bit is flipped if it is here."""
    if bit is not None and before <= bit // 8 < before + len(piece):
        piece[bit // 8 - before] ^= 1 << bit % 8
    return piece


async def try_send(wire: Wire, data: bytes | memoryview) -> bool:
    """Send; False where the server has stopped listening, what it said is still to be read."""
    try:
        await wire.send(data)
    except OSError:
        return False
    return True


async def as_pieces(data: bytes) -> AsyncIterator[memoryview]:
    """Data as one piece, or none."""
    if data:
        # A fault may flip a bit of it.
        yield memoryview(bytearray(data))


async def server_side(pieces: AsyncIterator[memoryview]) -> AsyncIterator[memoryview]:
    """The pieces; the server's errors are told from those of the client."""
    try:
        async for piece in pieces:
            yield piece
    except WireError as error:
        raise ServerGoneError(f"the server's answer broke off: {error}") from error
    except OSError as error:
        raise ServerGoneError(f"the server's connection broke: {error}") from error
