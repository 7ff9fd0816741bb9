"""TLS for bodies of gigabytes: many records for each system call.

``ssl.SSLSocket`` asks the kernel for every record of 16 KiB, twice, and passes through several
layers of Python each time; with many connections the threads then mostly fight over the
interpreter lock. Here the kernel fills a buffer of many records, and these are decrypted from
memory (``ssl.SSLObject``, public API) straight into the caller's memory. Few threads at a time
receive and decrypt; the others wait for their turn, or for the network. Measured in
``docs/design/transport.md``.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from urllib3.util import wait_for_read

from .patience import Guard

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Bytes that one system call brings at most: 32 records.
_CIPHERTEXT = 512 * 1024
# More threads than this are no faster: they hand the interpreter lock around. And the kernel,
# which receives, needs processors too.
_MOST_AT_WORK = 4
_PROCESSORS_EACH = 2


def decrypting_turns() -> Iterator[threading.Lock]:
    """A lock for each connection, few in all: who holds one may receive and decrypt.

    Plain locks, because a semaphore of Python's costs more than it saves.
    """
    few = max(1, min(_MOST_AT_WORK, (os.cpu_count() or 1) // _PROCESSORS_EACH))
    return itertools.cycle([threading.Lock() for _ in range(few)])


def push(plain: socket.socket, data: Buffer, guard: Guard | None) -> None:
    """Send all. Not ``sendall``: its timeout holds for the whole, however slow the network is."""
    rest = memoryview(data).cast("B")
    while rest:
        try:
            count = plain.send(rest)
        except TimeoutError:
            if guard is None:
                raise
            guard.stalled()  # raises, or has it waited for longer
        else:
            rest = rest[count:]
            if guard is not None:
                guard.sent(count)


class TLSSocket:
    """The part of a TLS socket that ``http.client`` uses. For one thread at a time.

    Args:
        plain: A connected socket; this object owns it from now on.
        context: Settings of TLS, and what certificates to trust.
        host: Name that the server's certificate must carry.
        turn: Held while receiving and decrypting, see :func:`decrypting_turns`.

    Raises:
        ssl.SSLError: The server speaks no TLS, or its certificate is not to be trusted.
        OSError: The connection broke.
    """

    def __init__(
        self, plain: socket.socket, context: ssl.SSLContext, host: str, turn: threading.Lock
    ) -> None:
        self._plain = plain
        #: Watches over what is sent.
        self.guard: Guard | None = None
        self._turn = turn
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        # The stubs don't know that reading into a buffer gives a count.
        self._tls: Any = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._ciphertext = memoryview(bytearray(_CIPHERTEXT))
        self._handshake()

    def sendall(self, data: Buffer) -> None:
        """Encrypt and send."""
        rest = memoryview(data).cast("B")
        while rest:
            # Not all at once: what is encrypted but not sent lies in memory.
            with self._turn:
                rest = rest[self._tls.write(rest[:_CIPHERTEXT]) :]
            self._flush()

    def makefile(self, mode: str, buffering: int = -1) -> io.BufferedReader:
        """A file to read the answer from. Like a socket's, it may outlive ``close``."""
        if mode != "rb":
            raise ValueError(f"only mode 'rb' is offered, not {mode!r}")
        return io.BufferedReader(_Received(self, self._plain.makefile("rb", buffering=0)))

    def receive_into(self, buffer: Buffer, source: io.RawIOBase) -> int:
        """Put decrypted bytes into ``buffer``; 0 at the end of the connection."""
        target = memoryview(buffer).cast("B")
        filled, ended = self._decrypt(target) if self.pending else (0, False)
        readable: Any = source  # all that is asked of it is its file descriptor
        until = self._until()
        while not filled and not ended:
            # Waited for here, so that who has the turn never waits for the network. All in all no
            # longer than the timeout: nothing can be decrypted before a record is complete.
            rest = max(0.0, until - time.monotonic())
            if not wait_for_read(readable, None if rest == math.inf else rest):
                raise TimeoutError("timed out")
            with self._turn:
                count = source.readinto(self._ciphertext)
                filled, ended = self._decrypt(target, count or 0)
            ended = ended or not count
        self._flush()  # such as the answer to a change of keys
        return filled

    @property
    def pending(self) -> bool:
        """Whether bytes have come that nobody has asked for."""
        return bool(self._incoming.pending or self._tls.pending())

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Set an option of the connection."""
        self._plain.setsockopt(level, option, value)

    def settimeout(self, seconds: float | None) -> None:
        """Seconds that a system call may wait."""
        self._plain.settimeout(seconds)

    def shutdown(self, how: int) -> None:
        """End the connection and wake whoever waits for it."""
        self._plain.shutdown(how)

    def fileno(self) -> int:
        """The connection's file descriptor, to be waited for."""
        return self._plain.fileno()

    def close(self) -> None:
        """Close, as soon as no file is open on it any more."""
        self._plain.close()

    def _until(self) -> float:
        """When a wait that begins now is over."""
        limit = self._plain.gettimeout()
        return math.inf if limit is None else time.monotonic() + limit

    def _handshake(self) -> None:
        until = self._until()
        while True:
            try:
                self._tls.do_handshake()
                self._flush()
                return
            except ssl.SSLWantReadError:
                self._flush()
                count = self._plain.recv_into(self._ciphertext)
                if not count:
                    raise ssl.SSLEOFError("the server hung up during the handshake") from None
                if time.monotonic() > until:
                    raise TimeoutError("the handshake takes too long") from None
                self._incoming.write(self._ciphertext[:count])
            except ssl.SSLError:
                self._flush()  # the server is told why
                raise

    def _decrypt(self, target: memoryview, received: int = 0) -> tuple[int, bool]:
        """Decrypt what has come into ``target``: how many bytes, and whether it was the last."""
        filled = 0
        self._incoming.write(self._ciphertext[:received])
        try:
            while filled < len(target):
                count = self._tls.read(len(target) - filled, target[filled:])
                if not count:
                    return filled, True
                filled += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            return filled, True
        return filled, False

    def _flush(self) -> None:
        if self._outgoing.pending:
            push(self._plain, self._outgoing.read(), self.guard)


class _Received(io.RawIOBase):
    """The readable side of a TLSSocket."""

    def __init__(self, tls: TLSSocket, source: io.RawIOBase) -> None:
        self._tls = tls
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        return self._tls.receive_into(buffer, self._source)

    def close(self) -> None:
        self._source.close()
        super().close()
