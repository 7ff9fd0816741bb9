"""A proxy on loopback between a client and an S3 server: notes requests, lets chosen ones fail."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.dcp import Place

_DROPPED = frozenset({"connection", "expect", "transfer-encoding", "content-length"})
# By method, and by the names in the query of which one decides.
_OPERATIONS = {
    ("PUT", "partNumber"): "UploadPart",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("POST", "delete"): "DeleteObjects",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
    ("GET", "uploads"): "ListMultipartUploads",
    ("GET", "list-type"): "ListObjectsV2",
    ("GET", ""): "GetObject",
    ("HEAD", ""): "HeadObject",
    ("PUT", ""): "PutObject",
    ("DELETE", ""): "DeleteObject",
}


class Fault(Enum):
    """What becomes of a request."""

    DENY = "403, and the server never sees it"
    FAIL = "500, and the server never sees it"
    CUT = "the connection is reset, and the server never sees it"
    LOSE = "the server acts on it, then the connection is reset instead of an answer"
    LATE = "the connection is reset; the server sees it long after, when it is released"


_ERRORS = {Fault.DENY: (403, "AccessDenied"), Fault.FAIL: (500, "InternalError")}


@dataclass(frozen=True)
class Request:
    """One HTTP request: the same one again is equal to it."""

    operation: str
    key: str
    part: int | None = None


#: What becomes of a request; None: it is passed on.
Judge = Callable[[Request], Fault | None]


class FaultProxy:
    """Stands in front of a server; a context manager.

    ``judge`` may be set at any time. ``requests`` are all that came, in the order of their arrival.
    """

    def __init__(self, endpoint_url: str) -> None:
        place = urllib.parse.urlsplit(endpoint_url)
        self.server = (str(place.hostname), int(place.port or 80))
        self.judge: Judge = lambda request: None
        self.requests: list[Request] = []
        self._held: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.proxy = self  # type: ignore[attr-defined]
        self.endpoint_url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def operations(self) -> list[str]:
        """The operations of all requests, in the order of their arrival."""
        return [request.operation for request in self.requests]

    def before(self, place: Place, **settings: Any) -> Place:
        """A place of the server, reached through here; ``settings`` of the client change."""
        direct: Any = place.transport
        config = direct.config.replace(endpoint_url=self.endpoint_url, **settings)
        return place.over(dataclasses.replace(direct, config=config))

    def release(self) -> None:
        """Let the requests arrive that were late, in their order."""
        while self._held:
            self._held.pop(0)()

    def hold(self, send: Callable[[], object]) -> None:
        """Keep a request until :meth:`release`."""
        self._held.append(send)

    def admit(self, request: Request) -> Fault | None:
        """Note a request and say what becomes of it."""
        with self._lock:
            self.requests.append(request)
            return self.judge(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    _upstream: HTTPConnection | None = None

    def _handle(self) -> None:
        proxy: FaultProxy = self.server.proxy  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = proxy.admit(_request_of(self.command, self.path))
        if fault in _ERRORS:
            status, code = _ERRORS[fault]
            text = f"<Error><Code>{code}</Code><Message>a fault</Message></Error>".encode()
            self._answer(status, [], text)
        elif fault is Fault.CUT:
            self._reset()
        elif fault is Fault.LATE:
            proxy.hold(lambda: self._pass_on(HTTPConnection(*proxy.server, timeout=60), body))
            self._reset()
        else:
            if self._upstream is None:
                self._upstream = HTTPConnection(*proxy.server, timeout=60)
            status, headers, data = self._pass_on(self._upstream, body)
            if fault is Fault.LOSE:
                self._reset()
            else:
                self._answer(status, headers, data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _pass_on(
        self, upstream: HTTPConnection, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        # The headers are signed: they go as they came.
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _DROPPED:
                upstream.putheader(name, value)
        upstream.putheader("Content-Length", str(len(body)))
        upstream.endheaders(body)
        answer = upstream.getresponse()
        return answer.status, answer.getheaders(), answer.read()

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() not in _DROPPED:
                self.send_header(name, value)
            elif self.command == "HEAD" and name.lower() == "content-length":
                length = value
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        """End the connection with RST."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.close(self.connection.detach())

    def finish(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _request_of(method: str, target: str) -> Request:
    url = urllib.parse.urlsplit(target)
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    _, _, key = urllib.parse.unquote(url.path).lstrip("/").partition("/")
    decisive = next((name for name in query if (method, name) in _OPERATIONS), "")
    if "partNumber" in query:
        decisive = "partNumber"
    part = int(query["partNumber"]) if "partNumber" in query else None
    return Request(_OPERATIONS[method, decisive], key, part)
