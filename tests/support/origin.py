"""A scripted server behind a proxy: one object, with ranges; it keeps what it was sent."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BLOB = random.Random(7).randbytes(200_000)
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
