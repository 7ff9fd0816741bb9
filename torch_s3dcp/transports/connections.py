"""HTTP connections whose bodies are received straight into the caller's memory."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from urllib3.util import wait_for_read

from .tls import TLSSocket, decrypting_turns

if TYPE_CHECKING:
    from typing_extensions import Buffer

_Place = tuple[str, str]


class ConnectFailed(OSError):
    """There is no connection to the server; its cause says why."""


@dataclass(frozen=True)
class Answer:
    """The head of an HTTP answer, and its body to come."""

    status: int
    headers: http.client.HTTPMessage
    body: RawBody


@dataclass
class Connections:
    """Sends GET requests; keeps connections open between them. For any number of threads.

    Args:
        connect_timeout: Seconds to wait for a connection.
        read_timeout: Seconds to wait for the next bytes.
        max_idle: Connections to one server kept open at most.
        authorities: Path of a file of certificate authorities; None: those of the system.
    """

    connect_timeout: float
    read_timeout: float
    max_idle: int
    authorities: str | None = None
    _idle: dict[_Place, list[http.client.HTTPConnection]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turns: Iterator[threading.Lock] = field(default_factory=decrypting_turns)
    _tls: ssl.SSLContext | None = None

    def get(self, address: str, headers: Mapping[str, str]) -> Answer | None:
        """Send a request, and wait for the head of its answer.

        Returns:
            None where a proxy is in the way: this is not for us.

        Raises:
            ConnectFailed: No connection.
            OSError, http.client.HTTPException: It broke before the answer's head was complete.
        """
        url = urllib.parse.urlsplit(address)
        place = (url.scheme, url.netloc)
        target = urllib.parse.urlunsplit(("", "", url.path or "/", url.query, ""))
        while True:
            connection = self._idle_one(place)
            fresh = connection is None
            if connection is None:
                if _needs_proxy(url):
                    return None
                connection = self._connect(url)
            try:
                connection.request("GET", target, headers=dict(headers))
                plain = connection.sock  # after "Connection: close" http.client forgets it
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if fresh or isinstance(error, TimeoutError):
                    raise
                # An idle connection may have been closed by the server: not a failure.
                continue
            except BaseException:
                connection.close()
                raise
            body = RawBody(answer, connection, plain, partial(self._give_back, place))
            return Answer(answer.status, answer.headers, body)

    def _idle_one(self, place: _Place) -> http.client.HTTPConnection | None:
        """An open connection to the server that nobody uses."""
        while True:
            with self._lock:
                idle = self._idle.get(place)
                connection = idle.pop() if idle else None
            if connection is None or not _dropped(connection):
                return connection
            connection.close()

    def _connect(self, url: urllib.parse.SplitResult) -> http.client.HTTPConnection:
        host = url.hostname or ""
        connection: http.client.HTTPConnection
        if url.scheme == "https":
            connection = _TLSConnection(
                host, url.port or 443, self.connect_timeout, self._tls_context(), next(self._turns)
            )
        else:
            port = url.port or 80
            connection = _Connection(host, port, timeout=self.connect_timeout)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise ConnectFailed(str(error)) from error
        connection.sock.settimeout(self.read_timeout)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                # Not create_default_context: new Pythons make it stricter than botocore's own.
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                if self.authorities is None:
                    context.load_default_certs()
                else:
                    context.load_verify_locations(self.authorities)
                self._tls = context
            return self._tls

    def _give_back(self, place: _Place, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            idle = self._idle.setdefault(place, [])
            if not _dropped(connection) and len(idle) < self.max_idle:
                idle.append(connection)
                return
        connection.close()


class _Counted(io.RawIOBase):
    """Counts the bytes that a connection brings."""

    def __init__(self, source: io.RawIOBase) -> None:
        self._source = source
        self.delivered = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int | None:
        count = self._source.readinto(buffer)
        self.delivered += count or 0
        return count

    def close(self) -> None:
        self._source.close()
        super().close()


class _CountedResponse(http.client.HTTPResponse):
    """An answer that knows how far it came when its connection breaks."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        plain: Any = self.fp.detach()
        self.source = _Counted(plain)
        self.fp = io.BufferedReader(self.source)


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket."""

    response_class = _CountedResponse


class _TLSConnection(_Connection):
    """HTTP over a :class:`TLSSocket`."""

    default_port = 443

    def __init__(
        self,
        host: str,
        port: int | None,
        timeout: float,
        context: ssl.SSLContext,
        turn: threading.Lock,
    ) -> None:
        super().__init__(host, port, timeout=timeout)
        self._context = context
        self._turn = turn

    def connect(self) -> None:
        super().connect()
        secured: Any = TLSSocket(self.sock, self._context, self.host, self._turn)
        self.sock = secured


class RawBody:
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
        source = self._answer
        return source.source.delivered if isinstance(source, _CountedResponse) else 0

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
        connection, self._connection = self._connection, None
        if connection is not None and self._socket is not None:
            # Wakes a thread that is waiting for bytes; closing alone would wait for it.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._answer.close()
        if connection is not None:
            connection.close()

    def _release_at_end(self) -> None:
        """A connection whose answer was read to its end can serve the next request."""
        whole = self._answer.length == 0 or (self._answer.isclosed() and not self._answer.length)
        if whole:
            self._answer.close()  # the answer's file, not the connection
        if whole and not self._answer.will_close and self._connection is not None:
            connection, self._connection = self._connection, None
            self._give_back(connection)


def _dropped(connection: http.client.HTTPConnection) -> bool:
    """Whether an idle connection has been closed by the server, or sent what nobody asked for."""
    held: Any = connection.sock
    if held is None or (isinstance(held, TLSSocket) and held.pending):
        return True
    return wait_for_read(held, timeout=0)


@contextlib.contextmanager
def _broken() -> Iterator[None]:
    """http.client's errors about a body as those of a connection."""
    try:
        yield
    except http.client.HTTPException as error:
        raise ConnectionError(f"the body is broken: {error!r}") from error


def _needs_proxy(url: urllib.parse.SplitResult) -> bool:
    proxies = urllib.request.getproxies()
    return url.scheme in proxies and not urllib.request.proxy_bypass(url.hostname or "")
