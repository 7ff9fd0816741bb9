"""GET bodies straight from the socket into the caller's memory.

botocore's own body copies: urllib3 reads into a block, then the block is copied to where it
was wanted. ``http.client`` can receive into any buffer. So a handler of botocore's public
event ``before-send.s3.GetObject`` makes the HTTP exchange of GETs itself, over its own
connections, and hands botocore the answer; signing, endpoints, credentials and retries stay
botocore's. Measured in ``docs/design/transport.md``.

What the handler owns in turn: timeouts, TLS, keep-alive, and errors that botocore's retries
understand. Where a proxy is in the way it steps aside and botocore does what it always does.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from botocore.awsrequest import AWSResponse
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import wait_for_read

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from mypy_boto3_s3 import S3Client as Boto3S3Client

_EVENT = "before-send.s3.GetObject"


@dataclass
class DirectExchange:
    """Makes the HTTP exchange of GET requests; keeps connections open between them.

    Args:
        connect_timeout: Seconds to wait for a connection.
        read_timeout: Seconds to wait for the next bytes.
        max_idle: Connections kept open at most.
        verify: True, False, or the path of a file of certificate authorities.
    """

    connect_timeout: float
    read_timeout: float
    max_idle: int
    verify: bool | str = True
    _idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _tls: ssl.SSLContext | None = None

    def register(self, client: Boto3S3Client) -> None:
        """Take over the GETs of a client."""
        # The stubs say that handlers return nothing; for this event the answer counts.
        handler: Any = self.exchange
        client.meta.events.register(_EVENT, handler)

    def exchange(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse | None:
        """Handler of the event; None lets botocore send the request itself.

        Raises:
            HTTPClientError: As botocore's own sender would, so that its retries apply.
        """
        url = urllib.parse.urlsplit(request.url)
        place = (url.scheme, url.netloc)
        if _needs_proxy(url):
            return None
        target = urllib.parse.urlunsplit(("", "", url.path or "/", url.query, ""))
        headers = {name: _text(value) for name, value in request.headers.items()}
        while True:
            connection, fresh = self._take(place, url)
            try:
                connection.request("GET", target, headers=headers)
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if fresh or isinstance(error, TimeoutError):
                    raise _for_botocore(error, request.url) from error
                # An idle connection may have been closed by the server: not a failure.
                continue
            raw = _RawBody(answer, connection, partial(self._give_back, place))
            fields: Any = dict(answer.getheaders())
            return AWSResponse(request.url, answer.status, fields, raw)

    def _take(
        self, place: tuple[str, str], url: urllib.parse.SplitResult
    ) -> tuple[http.client.HTTPConnection, bool]:
        """An open connection to the server, and whether it is a new one."""
        while True:
            with self._lock:
                idle = self._idle.get(place)
                connection = idle.pop() if idle else None
            if connection is None:
                return self._connect(url), True
            if not _dropped(connection):
                return connection, False
            connection.close()

    def _connect(self, url: urllib.parse.SplitResult) -> http.client.HTTPConnection:
        host = url.hostname or ""
        connection: http.client.HTTPConnection
        if url.scheme == "https":
            connection = http.client.HTTPSConnection(
                host, url.port, timeout=self.connect_timeout, context=self._tls_context()
            )
        else:
            connection = http.client.HTTPConnection(host, url.port, timeout=self.connect_timeout)
        try:
            connection.connect()
        except TimeoutError as error:
            raise ConnectTimeoutError(endpoint_url=url.geturl(), error=error) from error
        except ssl.SSLError as error:
            raise SSLError(endpoint_url=url.geturl(), error=error) from error
        except OSError as error:
            raise EndpointConnectionError(endpoint_url=url.geturl(), error=error) from error
        connection.sock.settimeout(self.read_timeout)
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                context = ssl.create_default_context(
                    cafile=self.verify if isinstance(self.verify, str) else None
                )
                if self.verify is False:
                    context.check_hostname = False
                    context.verify_mode = ssl.CERT_NONE
                self._tls = context
            return self._tls

    def _give_back(self, place: tuple[str, str], connection: http.client.HTTPConnection) -> None:
        with self._lock:
            idle = self._idle.setdefault(place, [])
            if connection.sock is not None and len(idle) < self.max_idle:
                idle.append(connection)
                return
        connection.close()


class _RawBody:
    """The body of an answer, as botocore's ``StreamingBody`` expects its raw stream."""

    def __init__(
        self,
        answer: http.client.HTTPResponse,
        connection: http.client.HTTPConnection,
        give_back: Callable[[http.client.HTTPConnection], None],
    ) -> None:
        self._answer = answer
        self._connection: http.client.HTTPConnection | None = connection
        self._give_back = give_back

    def readinto(self, buffer: memoryview) -> int:
        """Receive into the buffer; 0 at the end of the body."""
        try:
            count = self._answer.readinto(buffer)
        except http.client.HTTPException as error:
            raise ConnectionError(f"the body is broken: {error!r}") from error
        self._release_at_end()
        return count

    def read(self, amt: int | None = None) -> bytes:
        """Up to ``amt`` bytes, or all that are left."""
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
        if connection is not None and connection.sock is not None:
            # Wakes a thread that is waiting for bytes; closing alone would wait for it.
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        self._answer.close()
        if connection is not None:
            connection.close()

    def _release_at_end(self) -> None:
        """A connection whose answer was read to its end can serve the next request."""
        whole = self._answer.isclosed() and not self._answer.length
        if whole and not self._answer.will_close and self._connection is not None:
            connection, self._connection = self._connection, None
            self._give_back(connection)


def _dropped(connection: http.client.HTTPConnection) -> bool:
    """Whether an idle connection has been closed by the server, or sent what nobody asked for."""
    if connection.sock is None:
        return True
    return wait_for_read(connection.sock, timeout=0)


def _needs_proxy(url: urllib.parse.SplitResult) -> bool:
    proxies = urllib.request.getproxies()
    return url.scheme in proxies and not urllib.request.proxy_bypass(url.hostname or "")


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _for_botocore(error: Exception, url: str) -> Exception:
    if isinstance(error, TimeoutError):
        return ReadTimeoutError(endpoint_url=url, error=error)
    if isinstance(error, ssl.SSLError):
        return SSLError(endpoint_url=url, error=error)
    return ConnectionClosedError(endpoint_url=url, request=None, error=error)
