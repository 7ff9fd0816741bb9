"""HTTP connections, kept open between requests."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from urllib3.util import wait_for_read

from .bodies import ConnectionBody, CountedResponse
from .effort import current, halting
from .patience import QUICK, Guard, Patience
from .tls import TLSSocket, decrypting_turns, push

_Place = tuple[str, str]
_HARMLESS = frozenset({"GET", "HEAD"})


class ConnectFailed(OSError):
    """There is no connection to the server; its cause says why."""


@dataclass(frozen=True)
class Answer:
    """The head of an HTTP answer, and its body to come."""

    status: int
    headers: http.client.HTTPMessage
    body: ConnectionBody


@dataclass
class Connections:
    """Sends requests; keeps connections open between them. For any number of threads.

    Args:
        connect_timeout: Seconds to wait for a connection.
        read_timeout: Seconds to wait for the next bytes at most.
        max_idle: Connections to one server kept open at most.
        authorities: Path of a file of certificate authorities; None: those of the system.
    """

    connect_timeout: float
    read_timeout: float
    max_idle: int
    authorities: str | None = None
    _idle: dict[_Place, list[_Connection]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turns: Iterator[threading.Lock] = field(default_factory=decrypting_turns)
    _patience: Patience = field(init=False)
    _tls: ssl.SSLContext | None = None
    _generation: int = 0

    def __post_init__(self) -> None:
        self._patience = Patience(self.read_timeout)

    def send(
        self,
        method: str,
        address: str,
        headers: Mapping[str, str],
        body: Iterable[memoryview] | None = None,
        *,
        patience: float | None = QUICK,
        cut: bool = True,
    ) -> Answer | None:
        """Send a request, and wait for the head of its answer.

        Args:
            body: Blocks, sent one after another from where they are; iterated again for another
                try. Its length is among the headers.
            patience: Seconds to wait for the answer at first; None: ``read_timeout``.
            cut: Whether a halt cuts it short. Else it only keeps it from being tried again.

        Returns:
            None where a proxy is in the way: this is not for us.

        Raises:
            ConnectFailed: No connection.
            OSError, http.client.HTTPException: It broke before the answer's head was complete.
        """
        url = urllib.parse.urlsplit(address)
        place = (url.scheme, url.netloc)
        target = urllib.parse.urlunsplit(("", "", url.path or "/", url.query, ""))
        effort = current()
        while True:
            generation = self._generation
            # Where one connection brought too little, those opened with it may be no better.
            connection = None if effort.abandoned else self._idle_one(place)
            fresh = connection is None
            if connection is None:
                if _needs_proxy(url):
                    return None
                connection = self._connect(url, effort.left)
            guard = Guard(self._patience, effort, connection.sock.settimeout)
            connection.guard = guard
            try:
                with halting(_waking(connection.sock) if cut else None):
                    plain, answer = _exchange(connection, method, target, headers, body, patience)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if fresh or method not in _HARMLESS or isinstance(error, TimeoutError):
                    raise
                # An idle connection may have been closed by the server: not a failure. Of a
                # request that changes something nobody knows whether the server acted on it.
                continue
            except BaseException:
                connection.close()
                raise
            guard.body()
            give_back = partial(self._give_back, place, generation)
            received = ConnectionBody(answer, connection, plain, give_back)
            return Answer(answer.status, answer.headers, received)

    def reconnect(self) -> None:
        """Have new connections for all further requests."""
        with self._lock:
            self._generation += 1
            leaving = [connection for idle in self._idle.values() for connection in idle]
            self._idle.clear()
        for connection in leaving:
            connection.close()

    def _idle_one(self, place: _Place) -> _Connection | None:
        """An open connection to the server that nobody uses."""
        while True:
            with self._lock:
                idle = self._idle.get(place)
                connection = idle.pop() if idle else None
            if connection is None or not _dropped(connection):
                return connection
            connection.close()

    def _connect(self, url: urllib.parse.SplitResult, left: float) -> _Connection:
        host = url.hostname or ""
        timeout = max(0.01, min(self.connect_timeout, left))
        if url.scheme == "https":
            turn = next(self._turns)
            context = self._tls_context()
            connection: _Connection = _TLSConnection(host, url.port or 443, timeout, context, turn)
        else:
            connection = _Connection(host, url.port or 80, timeout=timeout)
        try:
            connection.connect()
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError as error:
            connection.close()
            raise ConnectFailed(str(error)) from error
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

    def _give_back(self, place: _Place, generation: int, connection: Any) -> None:
        with self._lock:
            idle = self._idle.setdefault(place, [])
            fresh = generation == self._generation
            if fresh and not _dropped(connection) and len(idle) < self.max_idle:
                idle.append(connection)
                return
        connection.close()


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket, watched over."""

    guard: Guard

    def send(self, data: Any) -> None:
        if isinstance(self.sock, TLSSocket):
            self.sock.guard = self.guard
            self.sock.sendall(data)
        else:
            push(self.sock, data, self.guard)

    def receive(self, patience: float | None) -> http.client.HTTPResponse:
        """Wait for the head of the answer."""
        self.guard.answer(patience)
        made: Any = partial(CountedResponse, guard=self.guard)
        self.response_class = made
        return self.getresponse()


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


def _waking(held: Any) -> Callable[[], None]:
    """Wakes who waits for a connection."""

    def wake() -> None:
        with suppress(OSError):
            held.shutdown(socket.SHUT_RDWR)

    return wake


def _exchange(
    connection: _Connection,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: Iterable[memoryview] | None,
    patience: float | None,
) -> tuple[socket.socket, http.client.HTTPResponse]:
    """Send a request and begin to receive its answer; the socket to end it by, and the answer."""
    blocks: Any = body if body is None else iter(body)
    connection.guard.send()
    try:
        connection.request(method, target, body=blocks, headers=dict(headers))
    except (BrokenPipeError, ConnectionResetError, TimeoutError):
        # A server that refuses a request need not wait for its end.
        refusal = _early_refusal(connection)
        if refusal is None:
            raise
        return connection.sock, refusal
    plain = connection.sock  # after "Connection: close" http.client forgets it
    return plain, connection.receive(patience)


def _early_refusal(connection: _Connection) -> http.client.HTTPResponse | None:
    """The answer to a request that could not be sent whole, where there is one."""
    waiting: Any = connection.sock
    if waiting is None or not wait_for_read(waiting, timeout=0):
        return None
    try:
        answer = connection.receive(QUICK)
    except (OSError, http.client.HTTPException):
        return None
    # "Request timeout" is what some servers say before they close an idle connection; and what
    # was not sent whole cannot have succeeded.
    refused = answer.status >= http.client.BAD_REQUEST
    return answer if refused and answer.status != http.client.REQUEST_TIMEOUT else None


def _dropped(connection: http.client.HTTPConnection) -> bool:
    """Whether an idle connection has been closed by the server, or sent what nobody asked for."""
    held: Any = connection.sock
    if held is None or (isinstance(held, TLSSocket) and held.pending):
        return True
    return wait_for_read(held, timeout=0)


def _needs_proxy(url: urllib.parse.SplitResult) -> bool:
    proxies = urllib.request.getproxies()
    return url.scheme in proxies and not urllib.request.proxy_bypass(url.hostname or "")
