"""A small S3 on loopback that does to each request what a script says, then serves it well."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BLOB = bytes((7 * i + i // 251) % 256 for i in range(400_000))
MULTIPART = {
    "uploads": b"<InitiateMultipartUploadResult><UploadId>u</UploadId>"
    b"</InitiateMultipartUploadResult>",
    "uploadId": b'<CompleteMultipartUploadResult><ETag>"whole"</ETag>'
    b"</CompleteMultipartUploadResult>",
    "delete": b"<DeleteResult></DeleteResult>",
}

#: Does something to one exchange; True where all has been said.
Step = Callable[["Exchange"], bool]


class Exchange(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    script: Scripted

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, ssl.SSLError, TimeoutError):
            return  # the client has left, as it may

    def answer(self) -> None:
        step = self.script.next_step(self)
        if step is not None and step(self):
            return
        self.serve()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def take(self) -> bytes:
        """The body of the request."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def serve(self) -> None:
        """What a server does."""
        body = self.take()
        if self.command == "GET" and "list-type" not in self.path:
            self.begin()
            self.wfile.write(BLOB[self.span[0] : self.span[1]])
        elif self.command == "HEAD":
            sizes = [len(body) for body in self.script.stored]
            self.say(200, b"", {"ETag": '"one"'}, sum(sizes) or len(BLOB))
        elif self.command == "POST":
            query = self.path.partition("?")[2]
            self.say(200, next(t for name, t in MULTIPART.items() if query.startswith(name)))
        elif self.command == "PUT":
            self.script.stored.append(body)
            self.say(200, b"", {"ETag": '"part"'})
        else:
            self.say(204 if self.command == "DELETE" else 200, b"")

    @property
    def span(self) -> tuple[int, int]:
        """The range that is asked for."""
        first, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
        return int(first), int(last) + 1 if last else len(BLOB)

    def begin(self) -> None:
        """The head of a range."""
        start, end = self.span
        self.send_response(206)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(BLOB)}")
        self.send_header("ETag", '"one"')
        self.end_headers()

    def say(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, size: int = 0
    ) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def reset(self) -> None:
        """End the connection with RST."""
        self.close_connection = True
        time.sleep(0.05)  # what was sent before is to arrive
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.close(self.connection.detach())

    def log_message(self, *_: Any) -> None:
        pass


class Scripted:
    """The server; a context manager.

    ``seen`` are the requests so far, as method, path and range; ``stored`` the bodies that were
    received, and all that HEAD knows of; ``script`` what is done to the next
    ones; ``always`` what is done to all others.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.script: list[Step | None] = []
        self.always: Step | None = None
        self.seen: list[tuple[str, str, str]] = []
        self.stored: list[bytes] = []
        self.released = threading.Event()
        self._lock = threading.Lock()
        handler = type("Handler", (Exchange,), {"script": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        if tls:
            self._http.socket = tls.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )

    def __enter__(self) -> Scripted:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def next_step(self, exchange: Exchange) -> Step | None:
        """Note a request; what is to be done to it."""
        with self._lock:
            path = exchange.path
            self.seen.append((exchange.command, path, exchange.headers.get("Range", "")))
            return self.script.pop(0) if self.script else self.always

    def ranges(self) -> list[tuple[int, int]]:
        """The ranges that were asked for, ends exclusive."""
        spans = [span.removeprefix("bytes=").split("-") for _, _, span in self.seen if span]
        return [(int(first), int(last) + 1) for first, last in spans]


# ---- steps


def refuse(status: int, code: str = "", headers: dict[str, str] | None = None) -> Step:
    """An error as the answer."""
    text = f"<Error><Code>{code}</Code><Message>no</Message></Error>" if code else ""

    def step(exchange: Exchange) -> bool:
        exchange.take()
        exchange.say(status, b"" if exchange.command == "HEAD" else text.encode(), headers)
        return True

    return step


def black_hole(exchange: Exchange) -> bool:
    """The request is accepted and never answered."""
    exchange.take()
    exchange.script.released.wait(60)
    exchange.close_connection = True
    return True


def deaf(exchange: Exchange) -> bool:
    """Nothing of the request's body is received."""
    exchange.script.released.wait(60)
    exchange.close_connection = True
    return True


def stall(after: int) -> Step:
    """Some bytes of the body, then none."""

    def step(exchange: Exchange) -> bool:
        exchange.begin()
        exchange.wfile.write(BLOB[exchange.span[0] :][:after])
        return black_hole(exchange)

    return step


def trickle(rate: int) -> Step:
    """So many bytes per second."""

    def step(exchange: Exchange) -> bool:
        start, end = exchange.span
        exchange.begin()
        while start < end and not exchange.script.released.wait(0.05):
            exchange.wfile.write(BLOB[start : min(end, start + rate // 20)])
            start += rate // 20
        return True

    return step


def broken(after: int, *, reset: bool) -> Step:
    """Some bytes of the body, then RST, or else FIN."""

    def step(exchange: Exchange) -> bool:
        exchange.begin()
        exchange.wfile.write(BLOB[exchange.span[0] :][:after])
        exchange.close_connection = True
        if reset:
            exchange.reset()
        return True

    return step


def hang_up(exchange: Exchange) -> bool:
    """No answer, but the end of the connection."""
    exchange.take()
    exchange.close_connection = True
    return True


def other_range(exchange: Exchange) -> bool:
    """Other bytes than asked for."""
    start, end = exchange.span
    headers = {"Content-Range": f"bytes {start + 1}-{end}/{len(BLOB) + 9}", "ETag": '"one"'}
    exchange.say(206, BLOB[start + 1 : end + 1].ljust(end - start, b"x"), headers)
    return True


def lost(exchange: Exchange) -> bool:
    """The request is received, and the answer is lost."""
    exchange.take()
    exchange.close_connection = True
    return True


def at_work(blanks: int) -> Step:
    """The head of the answer at once, blanks every half a second, then the rest: as S3 does."""

    def step(exchange: Exchange) -> bool:
        exchange.take()
        exchange.send_response(200)
        exchange.send_header("Transfer-Encoding", "chunked")
        exchange.end_headers()
        chunks = [b'<?xml version="1.0"?>', *[b" "] * blanks]
        for chunk in chunks:
            exchange.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            exchange.script.released.wait(0.5)
        text = b'<CopyObjectResult><ETag>"part"</ETag></CopyObjectResult>'
        if exchange.command == "POST":
            text = MULTIPART["uploadId"]
        exchange.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(text), text))
        return True

    return step
