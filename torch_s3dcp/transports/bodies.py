"""Bodies of answers, received straight into the caller's memory."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .patience import Guard

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _Counted(io.RawIOBase):
    """Counts the bytes that a connection brings, and has a guard watch how fast they come.

    Args:
        receive: Waits for bytes; after a timeout it may be called again.
        source: Closed in the end.
    """

    def __init__(
        self, receive: Callable[[Buffer], int | None], source: io.RawIOBase, guard: Guard
    ) -> None:
        self._receive = receive
        self._source = source
        self.guard = guard
        self.delivered = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int | None:
        guard = self.guard
        guard.check()
        while True:
            begun = time.monotonic()
            try:
                count = self._receive(buffer) or 0
            except TimeoutError:
                guard.stalled()  # raises, or has it waited for longer
                continue
            self.delivered += count
            guard.received(count, time.monotonic() - begun)
            return count

    def close(self) -> None:
        self._source.close()
        super().close()


class CountedResponse(http.client.HTTPResponse):
    """An answer that knows how far it came when its connection breaks."""

    def __init__(self, sock: Any, *arguments: Any, guard: Guard, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        source: Any = self.fp.detach()
        # A socket's own file refuses to go on after a timeout.
        receive = sock.recv_into if isinstance(sock, socket.socket) else source.readinto
        self.connection = _Counted(receive, source, guard)
        self.fp = io.BufferedReader(self.connection)


class ConnectionBody:
    """The body of an answer, as botocore's ``StreamingBody`` expects its raw stream."""

    def __init__(
        self,
        answer: http.client.HTTPResponse,
        connection: http.client.HTTPConnection,
        plain: socket.socket | None,
        give_back: Callable[[http.client.HTTPConnection], None],
    ) -> None:
        self._answer = answer
        self._first: memoryview | None = None
        self._received = 0
        self._error: OSError | None = None
        self._socket = plain
        self._connection: http.client.HTTPConnection | None = connection
        self._give_back = give_back
        self._lock = threading.Lock()

    def readinto(self, buffer: memoryview) -> int:
        """Receive into the buffer; 0 at the end of the body.

        Fills all of it, unless the body ends or the connection breaks. Bytes that came before
        it broke count: the error is raised by the next call.
        """
        if self._error is not None:
            raise self._error
        if self._first is None:
            self._begin()
        if self._first:
            count = min(len(self._first), len(buffer))
            buffer[:count], self._first = self._first[:count], self._first[count:]
        else:
            count = self._receive(buffer)
        if not self._first:
            self._release_at_end()
        return count

    def _begin(self) -> None:
        """Take what came along with the head, so that the rest needs no buffer in between."""
        with _broken():
            self._first = memoryview(self._answer.read1(io.DEFAULT_BUFFER_SIZE))
        self._received = self._delivered()

    def _receive(self, buffer: memoryview) -> int:
        try:
            with _broken():
                count = self._answer.readinto(buffer)
        except OSError as error:
            count = self._delivered() - self._received
            if not 0 < count <= len(buffer):
                raise
            self._error = error
        self._received += count
        return count

    def _delivered(self) -> int:
        """Bytes that the connection has brought for this answer, its head included."""
        answer = self._answer
        return answer.connection.delivered if isinstance(answer, CountedResponse) else 0

    def read(self, amt: int | None = None) -> bytes:
        """Up to ``amt`` bytes, or all that are left."""
        with _broken():
            data = self._answer.read(amt)
        self._release_at_end()
        return data

    def stream(self) -> Iterator[bytes]:
        """All of the body; botocore reads errors this way."""
        yield self.read()

    def readable(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """End; a body that was not read to its end takes its connection along."""
        self.wake()  # closing alone would wait for who waits for bytes
        connection = self._take_connection()
        self._answer.close()
        if connection is not None:
            connection.close()

    def wake(self) -> None:
        """End the wait of who waits for bytes; for any thread."""
        with self._lock:
            # One that was given back serves somebody else.
            if self._connection is not None and self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _take_connection(self) -> http.client.HTTPConnection | None:
        with self._lock:
            connection, self._connection = self._connection, None
        return connection

    def _release_at_end(self) -> None:
        """A connection whose answer was read to its end can serve the next request."""
        whole = self._answer.length == 0 or (self._answer.isclosed() and not self._answer.length)
        if whole:
            self._answer.close()  # the answer's file, not the connection
        if not whole or self._answer.will_close:
            return
        connection = self._take_connection()
        if connection is not None:
            if isinstance(self._answer, CountedResponse):
                self._answer.connection.guard.finished()
            self._give_back(connection)


@contextlib.contextmanager
def _broken() -> Iterator[None]:
    """http.client's errors about a body as those of a connection."""
    try:
        yield
    except http.client.HTTPException as error:
        raise ConnectionError(f"the body is broken: {error!r}") from error
