"""A server that answers ranged GETs from files as fast as the kernel can: the server is not
the limit when a client is measured against it. It can also be made as slow as is wanted.

    python -m benchmarks.static_server FOLDER [--tls CERTIFICATE KEY] [--delay SECONDS]
        [--bandwidth BYTES_PER_SECOND]

It prints its address, and ends when its standard input does.
``http://127.0.0.1:PORT/BUCKET/KEY`` is the file ``FOLDER/BUCKET/KEY``. It understands GET and
HEAD with one range, keeps connections open, and checks nothing.
"""

from __future__ import annotations

import argparse
import email.utils
import functools
import mmap
import os
import re
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .listening import Incoming, add_tls, listen, tls_context

_RANGE = re.compile(rb"\r\nrange: bytes=(\d+)-(\d*)", re.IGNORECASE)
# How often a throttled answer goes on.
_TICK = 0.02


@dataclass(frozen=True)
class Settings:
    """What is served, and how.

    ``delay`` is seconds before each answer, ``bandwidth`` bytes per second of each connection;
    0: all that the kernel takes.
    """

    folder: Path
    tls: ssl.SSLContext | None = None
    delay: float = 0.0
    bandwidth: float = 0.0


def serve(settings: Settings) -> None:
    """Serve until standard input ends."""
    if settings.tls:
        # Before the first request, which would pay for it, and only once.
        for path in settings.folder.rglob("*"):
            if path.is_file() and path.stat().st_size:
                _mapped(path)

    def serve_connection(connection: socket.socket, incoming: Incoming) -> None:
        while True:
            request = incoming.head()
            time.sleep(settings.delay)
            _answer(connection, request, settings)

    listen(serve_connection, settings.tls)


def _answer(connection: socket.socket, request: bytes, settings: Settings) -> None:
    method, target, _ = request.split(b"\r\n", 1)[0].split(b" ")
    path = settings.folder / urllib.parse.unquote(target.split(b"?")[0].decode()).lstrip("/")
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError:
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        return
    with file:
        about = os.fstat(file.fileno())
        size = about.st_size
        start, end, status = 0, size, b"200 OK"
        found = _RANGE.search(request)
        extra = b""
        if found:
            start = int(found[1])
            end = min(int(found[2]) + 1, size) if found[2] else size
            status = b"206 Partial Content"
            extra = b"Content-Range: bytes %d-%d/%d\r\n" % (start, end - 1, size)
        modified = email.utils.formatdate(about.st_mtime, usegmt=True).encode()
        connection.sendall(
            b"HTTP/1.1 %s\r\nContent-Length: %d\r\nLast-Modified: %s\r\n"
            b'ETag: "static"\r\nAccept-Ranges: bytes\r\n%s\r\n'
            % (status, end - start, modified, extra)
        )
        if method == b"GET" and start < end:
            _pace(start, end, settings.bandwidth, _sender(connection, path, file))


def _sender(connection: socket.socket, path: Path, file: BinaryIO) -> Callable[[int, int], object]:
    """Sends a range of the file: by the kernel alone, or encrypted out of mapped memory."""
    if not isinstance(connection, ssl.SSLSocket):
        return lambda start, end: connection.sendfile(file, start, end - start)
    memory = _mapped(path)
    return lambda start, end: connection.sendall(memory[start:end])


@functools.cache
def _mapped(path: Path) -> memoryview:
    """The file as memory, with all its pages there: a fifth less CPU than reading blocks."""
    with open(path, "rb") as file:
        populated = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        return memoryview(mmap.mmap(file.fileno(), 0, populated, mmap.PROT_READ))


def _pace(start: int, end: int, bandwidth: float, send: Callable[[int, int], object]) -> None:
    """Send all at once, or in pieces that keep to the bandwidth."""
    if not bandwidth:
        send(start, end)
        return
    step = max(1, int(bandwidth * _TICK))
    begin = time.monotonic()
    for cut in range(start, end, step):
        stop = min(cut + step, end)
        send(cut, stop)
        due = begin + (stop - start) / bandwidth
        time.sleep(max(0.0, due - time.monotonic()))


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="A fast static range server on loopback.")
    parser.add_argument("folder", type=Path)
    add_tls(parser)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument(
        "--bandwidth", type=float, default=0.0, help="bytes per second of each connection"
    )
    options = parser.parse_args()
    context = tls_context(options.tls)
    serve(Settings(options.folder, context, options.delay, options.bandwidth))


if __name__ == "__main__":
    main()
