"""A scripted server to put behind a proxy, and a client that sees how an answer breaks."""

from __future__ import annotations

import http.client
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from torch_s3dcp.testing import FaultProxy

BLOB = random.Random(7).randbytes(200_000)
# What a GET asks for.
START, END = 1000, 51_000
WANTED = BLOB[START:END]
UPLOADED = (
    b"<InitiateMultipartUploadResult><UploadId>u-1</UploadId></InitiateMultipartUploadResult>"
)


class Origin(ThreadingHTTPServer):
    """``got`` holds method, target, headers and body of each request."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[str, str, dict[str, str], bytes]] = []

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def origin() -> Iterator[Origin]:
    """It listens on loopback; its one object is ``BLOB``, at every key."""
    with Origin() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Origin

    def _handle(self) -> None:
        body = self._body()
        self.server.got.append((self.command, self.path, dict(self.headers), body))
        if self.command in ("GET", "HEAD"):
            self._object()
        else:
            self._answer(200, UPLOADED if self.path.endswith("?uploads") else b"")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _object(self) -> None:
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if "chunked" in self.path:
            self._chunked()
        elif asked:
            start, end = int(asked[1]), min(int(asked[2]) + 1, len(BLOB))
            where = f"bytes {start}-{end - 1}/{len(BLOB)}"
            self._answer(206, BLOB[start:end], ("Content-Range", where))
        else:
            self._answer(200, BLOB)

    def _chunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(BLOB), 70_000):
            piece = BLOB[start : start + 70_000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, text in headers:
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def connect(proxy: FaultProxy) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(proxy.endpoint_url.removeprefix("http://"), timeout=20)


class Answer:
    """An answer, read to its end or to where it broke."""

    def __init__(self, client: http.client.HTTPConnection) -> None:
        self.error: Exception | None = None
        self.data = b""
        answer = client.getresponse()
        self.status, self.headers = answer.status, answer.headers
        try:
            while block := answer.read1(4096):
                self.data += block
            if answer.length:
                raise http.client.IncompleteRead(b"", answer.length)
        except (OSError, http.client.HTTPException) as error:
            self.error = error
        answer.close()


def ask(proxy: FaultProxy, method: str = "GET", target: str = "/b/k", **options: Any) -> Answer:
    """One request on a connection of its own; a GET asks for `WANTED`."""
    client = connect(proxy)
    try:
        if method == "GET":
            options.setdefault("headers", {"Range": f"bytes={START}-{END - 1}"})
        client.request(method, target, **options)
        return Answer(client)
    finally:
        client.close()
        proxy.log.settle()
